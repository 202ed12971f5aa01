//! Who may do what: the scopes, the clients, and the keys that clients prove themselves with.

mod key;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

pub use key::{ApiKey, InvalidKey};

use crate::command::Principal;

/// What a key or a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Reading and listing users.
    UsersRead,
    /// Creating, changing and deleting users.
    UsersWrite,
    /// Reading what happened to a user.
    HistoryRead,
}

/// Everything that one caller is allowed.
pub type Scopes = BTreeSet<Scope>;

/// Why a text is no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown; expected one of users:read, users:write, history:read")]
pub struct UnknownScope;

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::UsersRead, Self::UsersWrite, Self::HistoryRead];

    /// As tokens, keys and the contract spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UsersRead => "users:read",
            Self::UsersWrite => "users:write",
            Self::HistoryRead => "history:read",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(UnknownScope)
    }
}

/// The name of a program that has keys: stable while its keys change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(String);

/// Why a text is no client's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a name; use 1 to 64 of a-z, 0-9, \".\", \"_\", \"-\", the first a letter or a digit")]
pub struct InvalidClient;

impl Client {
    const MAX_CHARS: usize = 64;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What its commands are recorded under, whichever key it used.
    pub fn principal(&self) -> Principal {
        Principal::of_client(&self.0)
    }
}

impl FromStr for Client {
    type Err = InvalidClient;

    fn from_str(text: &str) -> Result<Self, InvalidClient> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let begins = text.bytes().next().is_some_and(plain);
        let fits = text.len() <= Self::MAX_CHARS && text.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
        if begins && fits { Ok(Self(text.to_owned())) } else { Err(InvalidClient) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_read_as_it_is_written() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
            assert!(UnknownScope.to_string().contains(scope.as_str()), "{scope} is in the message");
        }
        for text in ["", "users", "users:READ", "users:read ", "users:*"] {
            assert_eq!(text.parse::<Scope>(), Err(UnknownScope), "{text:?}");
        }
    }

    #[test]
    fn a_client_has_a_plain_name() {
        for name in ["billing", "0", "a.b-c_d", &"x".repeat(64)] {
            let client: Client = name.parse().expect(name);
            assert_eq!(client.principal().as_str(), format!("key:{name}"));
        }
        for name in ["", "-a", ".a", "Billing", "a b", "a:b", "ä", "a\0", &"x".repeat(65)] {
            assert_eq!(name.parse::<Client>(), Err(InvalidClient), "{name:?}");
        }
    }
}
