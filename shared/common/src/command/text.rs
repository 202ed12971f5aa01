//! The texts of the contract: e-mail address, name, principal.
//!
//! # Why ASCII addresses only?
//! "Unique without regard to case" must mean the same in every database. Folding the case of other letters depends on
//! the database's locale and its ICU version, and an index built under one is wrong under the next. Domains of other
//! scripts are welcome in their ASCII form (`xn--…`); local parts outside ASCII (RFC 6531) are refused.

use std::fmt;

use email_address::{EmailAddress, Options};
use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::invisible;

/// An e-mail address (RFC 5321 addr-spec, ASCII, a domain with a dot), as it was written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

/// A user's name: 1 to [`Name::MAX_CHARS`] characters.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Who sent a command: what authentication calls them. A token's subject can be an address, so logs get [`Self::logged`].
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Principal(String);

/// What is wrong with a text, and how to mend it: a fragment that follows the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidText(String);

impl InvalidText {
    pub(super) fn new(fault: String) -> Self {
        Self(fault)
    }
}

impl Email {
    /// The longest address that fits SMTP's path (RFC 5321 §4.5.3.1.3).
    pub const MAX_CHARS: usize = 254;

    /// Checks an address.
    ///
    /// # Errors
    /// Says what is wrong without repeating the address, so that it can be logged.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        check_length(text, Self::MAX_CHARS)?;
        if !text.is_ascii() {
            return Err(InvalidText(
                "has a character outside ASCII; write the domain in its xn-- form and the part before @ in ASCII"
                    .into(),
            ));
        }
        check_characters(text)?;
        let options = Options::default().with_required_tld().without_domain_literal().without_display_text();
        match EmailAddress::parse_with_options(text, options) {
            Ok(address) => check_domain(address.domain()).map(|()| Self(text.to_owned())),
            Err(fault) => Err(InvalidText(format!(
                "is no e-mail address ({}); write it like ada@example.org",
                fault.to_string().trim_end_matches('.').to_lowercase()
            ))),
        }
    }

    /// The address as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// The longest name, in Unicode scalar values.
    pub const MAX_CHARS: usize = 200;

    /// Checks a name.
    ///
    /// # Errors
    /// Says what is wrong without repeating the name, so that it can be logged.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        check_length(text, Self::MAX_CHARS)?;
        check_characters(text)?;
        invisible::check_name(text)?;
        check_edges(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// In front of a token's subject, so that no token can name a client's keys.
const SUBJECT: &str = "oidc:";

impl Principal {
    const MAX_CHARS: usize = 200;

    /// Everybody, while nothing authenticates.
    pub fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// Whether it is everybody.
    pub fn is_anonymous(&self) -> bool {
        self.0 == "anonymous"
    }

    /// A client with API keys. `client` has been checked.
    pub(crate) fn of_client(client: &str) -> Self {
        Self(format!("key:{client}"))
    }

    /// Whom a token names.
    ///
    /// # Errors
    /// Says what is wrong with the subject, without repeating it.
    pub fn of_subject(subject: &str) -> Result<Self, InvalidText> {
        check_length(subject, Self::MAX_CHARS - SUBJECT.len())?;
        check_edges(subject)?;
        Self::parse(&format!("{SUBJECT}{subject}"))
    }

    /// Checks a principal's name.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        check_length(text, Self::MAX_CHARS)?;
        check_characters(text)?;
        invisible::check_principal(text)?;
        check_edges(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name for logs: of a token's subject only the first 16 digits of the SHA-256 of the whole name, which tell whether
    /// two lines are of one principal, and whether of one that the reader knows.
    pub fn logged(&self) -> String {
        if !self.0.starts_with(SUBJECT) {
            return self.0.clone();
        }
        let hash = Sha256::digest(self.0.as_bytes());
        hash.iter().take(8).fold(format!("{SUBJECT}sha256:"), |text, byte| format!("{text}{byte:02x}"))
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({})", self.logged())
    }
}

/// Checks a domain name: letters, digits and hyphens (RFC 5321 §4.1.2), and labels that IDNA allows (RFC 5891 §4.2.3.1).
/// A label with `--` in its third and fourth place is reserved: validators of `format: email` refuse it unless it is
/// a valid `xn--` label.
fn check_domain(domain: &str) -> Result<(), InvalidText> {
    if domain.bytes().any(|b| !b.is_ascii_alphanumeric() && b != b'-' && b != b'.') {
        return Err(InvalidText(
            "has a character behind the @ that no domain has; write it like ada@example.org".into(),
        ));
    }
    match Uts46::new().to_ascii(domain.as_bytes(), AsciiDenyList::STD3, Hyphens::Check, DnsLength::Verify) {
        Ok(_) => Ok(()),
        Err(_) => Err(InvalidText(
            "has a domain that no registry allows: -- in the third and fourth place of a label is reserved for valid \
             xn-- labels; write it like ada@example.org"
                .into(),
        )),
    }
}

fn check_length(text: &str, max: usize) -> Result<(), InvalidText> {
    let chars = text.chars().count();
    if chars == 0 {
        Err(InvalidText("is empty; give at least 1 character".into()))
    } else if chars > max {
        Err(InvalidText(format!("has {chars} characters; give at most {max}")))
    } else {
        Ok(())
    }
}

fn check_edges(text: &str) -> Result<(), InvalidText> {
    if text.trim() == text { Ok(()) } else { Err(InvalidText("has white space at its start or end; trim it".into())) }
}

fn check_characters(text: &str) -> Result<(), InvalidText> {
    match text.chars().find(|c| c.is_control()) {
        None => Ok(()),
        // PostgreSQL cannot store NUL, and a line break in an address is a header injection somewhere else.
        Some(c) => Err(InvalidText(format!("has the control character U+{:04X}; remove it", u32::from(c)))),
    }
}

macro_rules! text {
    ($text:ident) => {
        impl TryFrom<String> for $text {
            type Error = InvalidText;

            fn try_from(text: String) -> Result<Self, InvalidText> {
                Self::parse(&text)
            }
        }

        impl From<$text> for String {
            fn from(text: $text) -> Self {
                text.0
            }
        }
    };
}

text!(Email);
text!(Name);
text!(Principal);

// Personal data: never in a log.
macro_rules! hidden {
    ($text:ident) => {
        impl fmt::Debug for $text {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($text), "(…)"))
            }
        }
    };
}

hidden!(Email);
hidden!(Name);
