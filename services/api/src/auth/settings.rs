//! What the environment says of authentication.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use common::config::{Reader, Variable, plaintext_hosts};
use common::transport::{Authorities, Exposure, PlaintextHosts, on_this_machine};
use jsonwebtoken::Algorithm;
use url::Url;

use crate::cors::Origins;
use crate::limits::CORS_ORIGINS;

pub(crate) const AUTH: Variable = Variable::optional(
    "AUTH",
    "keys,jwt",
    "Who is served: keys (API keys, see rollcall keys), jwt (access tokens), keys,jwt, or none: everybody, in so many words, \
     or local: everybody who asks for localhost or an IP address, where only this machine can reach the port. \
     When it is not set nobody has to log in, and only this machine's own programs and pages are served, on loopback.",
);
pub(crate) const AUTH_JWT_ISSUER: Variable = Variable::optional(
    "AUTH_JWT_ISSUER",
    "https://login.example.org/",
    "For AUTH=jwt: who signs the tokens, as their iss says it.",
);
pub(crate) const AUTH_JWT_AUDIENCE: Variable = Variable::optional(
    "AUTH_JWT_AUDIENCE",
    "https://rollcall.example.org",
    "For AUTH=jwt: whom the tokens are for, as their aud says it.",
);
pub(crate) const AUTH_JWT_ALGORITHMS: Variable = Variable::with_default(
    "AUTH_JWT_ALGORITHMS",
    "RS256,ES256",
    "For AUTH=jwt: the algorithms that tokens may be signed with, of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, \
     EdDSA.",
);
pub(crate) const AUTH_JWT_TYPES: Variable = Variable::with_default(
    "AUTH_JWT_TYPES",
    "at+jwt",
    "For AUTH=jwt: the types of access tokens, as their typ says it, separated by commas. Many issuers write JWT, for ID tokens \
     as well: then no client's id may be the audience. none is for tokens without a typ.",
);
pub(crate) const AUTH_JWKS: Variable = Variable::optional(
    "AUTH_JWKS",
    "https://login.example.org/.well-known/jwks.json",
    "For AUTH=jwt: the issuer's public keys (JWKS), as an https URL or a file; http on this machine only.",
);
pub(crate) const AUTH_JWKS_CA_FILE: Variable = Variable::optional(
    "AUTH_JWKS_CA_FILE",
    "/etc/rollcall/authority.pem",
    "For AUTH_JWKS with https: a file with the authorities that the certificate must come from, in PEM; those of the system when \
     it is not set.",
);

pub(crate) const AUTH_JWT_MAX_BYTES: Variable = Variable::with_default(
    "AUTH_JWT_MAX_BYTES",
    "16384",
    "For AUTH=jwt: the longest token, in bytes; some issuers list every group of a user in it. A request's head has 128 KiB.",
);

/// All of them: a system of one's own, which serves everybody on loopback, is started without.
pub const VARIABLES: [&Variable; 8] = [
    &AUTH,
    &AUTH_JWT_ISSUER,
    &AUTH_JWT_AUDIENCE,
    &AUTH_JWT_ALGORITHMS,
    &AUTH_JWT_TYPES,
    &AUTH_JWKS,
    &AUTH_JWKS_CA_FILE,
    &AUTH_JWT_MAX_BYTES,
];

/// Asymmetric ones only: nobody who can check a token can make one.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Which proofs are accepted; without any, everybody is served, or everybody here.
#[derive(Debug, Clone, Default)]
pub struct AuthSettings {
    /// API keys.
    pub keys: bool,
    /// Access tokens.
    pub tokens: Option<TokenSettings>,
    /// Only this machine's own programs and pages are served, and pages of these origins.
    pub local: Option<Origins>,
}

/// Which tokens are accepted.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// Their `iss`.
    pub issuer: String,
    /// Their `aud`.
    pub audience: String,
    /// Their `alg`.
    pub algorithms: Vec<Algorithm>,
    /// Their `typ`.
    pub types: Vec<TokenType>,
    /// Where the issuer's keys are.
    pub keys: KeySource,
    /// The longest, in bytes.
    pub longest: usize,
}

/// A type of tokens (RFC 7515 §4.1.9): a media type in lower case without `application/`, or empty for tokens without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenType(String);

impl TokenType {
    /// Reads one; `none` stands for tokens without a type.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = short(text);
        if name == "none" {
            return Ok(Self(String::new()));
        }
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
        if name.is_empty() || !name.bytes().all(fits) {
            return Err(format!("{text:?} is no type of tokens; write at+jwt, JWT, or none for tokens without a typ"));
        }
        Ok(Self(name))
    }

    /// Whether a token says that it is of this type.
    pub(super) fn fits(&self, typ: Option<&str>) -> bool {
        match typ {
            None => self.0.is_empty(),
            Some(typ) => !self.0.is_empty() && short(typ) == self.0,
        }
    }
}

impl fmt::Display for TokenType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { &self.0 })
    }
}

/// `application/` may be left out, and case does not count.
fn short(typ: &str) -> String {
    let name = typ.to_ascii_lowercase();
    name.strip_prefix("application/").unwrap_or(&name).to_owned()
}

/// Where the issuer's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// On this machine.
    File(PathBuf),
    /// Over HTTP, from a server that these authorities vouch for.
    Url(Url, Authorities),
}

#[derive(Debug, Clone, Copy)]
struct Words {
    keys: bool,
    jwt: bool,
    local: bool,
}

impl AuthSettings {
    /// Reads them, and whether anything was said at all; `None` when something is faulty. Pages of `origins` count as this
    /// machine's own.
    pub(crate) fn read(reader: &mut Reader, origins: Option<&Origins>) -> (bool, Option<Self>) {
        let given = reader.text(&AUTH).is_some();
        let words = reader.parse(&AUTH, words);
        if given && words.is_none() {
            return (false, None);
        }
        let Words { keys, jwt, local } = words.unwrap_or(Words { keys: false, jwt: false, local: true });
        let local = origins.filter(|_| local).cloned();
        if local == Some(Origins::Any) {
            let fault = "is *, and nobody has to log in: every page that somebody here opens could read and change the \
                         directory; list the origins, or set AUTH=keys or AUTH=jwt";
            reader.fault(&CORS_ORIGINS, fault);
        }
        let tokens = if jwt { TokenSettings::read(reader).map(Some) } else { unread(reader).then_some(None) };
        (given, tokens.map(|tokens| Self { keys, tokens, local }))
    }
}

/// Notes a fault for each variable that would be ignored, because whoever set it counts on it.
fn unread(reader: &mut Reader) -> bool {
    let of_tokens = VARIABLES.into_iter().filter(|variable| variable.name != AUTH.name);
    let ignored: Vec<_> = of_tokens.filter(|variable| reader.raw(variable.name).is_some()).collect();
    for variable in &ignored {
        reader.fault(variable, "is set, but AUTH does not have jwt; add it there, or unset this");
    }
    ignored.is_empty()
}

impl TokenSettings {
    fn read(reader: &mut Reader) -> Option<Self> {
        let needed = |variable| Variable { required: true, ..variable };
        let text = |text: &str| Ok::<_, String>(text.to_owned());
        let issuer = reader.parse(&needed(AUTH_JWT_ISSUER), text);
        let audience = reader.parse(&needed(AUTH_JWT_AUDIENCE), text);
        let algorithms = reader.parse(&AUTH_JWT_ALGORITHMS, algorithms);
        let types = reader.parse(&AUTH_JWT_TYPES, |text| text.split(',').map(|t| TokenType::parse(t.trim())).collect());
        let keys = key_source(reader);
        let longest = reader.number(&AUTH_JWT_MAX_BYTES, 1024..=65_536_usize);
        let (issuer, audience, algorithms) = (issuer?, audience?, algorithms?);
        Some(Self { issuer, audience, algorithms, types: types?, keys: keys?, longest: longest? })
    }
}

fn words(text: &str) -> Result<Words, String> {
    let words: Vec<_> = text.split(',').map(str::trim).collect();
    let distinct: BTreeSet<_> = words.iter().copied().collect();
    let [none, local, keys, jwt] = ["none", "local", "keys", "jwt"].map(|word| distinct.contains(word));
    let known = [none, local, keys, jwt].iter().filter(|there| **there).count();
    let alone = known == 1 || !none && !local;
    if alone && known == words.len() {
        return Ok(Words { keys, jwt, local });
    }
    Err(format!("{text:?} is unknown; expected one of none, local, keys, jwt, keys,jwt"))
}

fn algorithms(text: &str) -> Result<Vec<Algorithm>, String> {
    let one = |name: &str| {
        let found = ALGORITHMS.into_iter().find(|algorithm| format!("{algorithm:?}") == name);
        let expected = || ALGORITHMS.map(|algorithm| format!("{algorithm:?}")).join(", ");
        found.ok_or_else(|| format!("{name:?} is no algorithm to trust here; expected some of {}", expected()))
    };
    text.split(',').map(|name| one(name.trim())).collect()
}

fn key_source(reader: &mut Reader) -> Option<KeySource> {
    let plaintext = plaintext_hosts(reader);
    let (url, path) = reader.parse(&Variable { required: true, ..AUTH_JWKS }, |text| key_url(text, &plaintext)).unzip();
    let url = url.flatten();
    let authorities = if url.as_ref().is_some_and(|url| url.scheme() == "https") {
        reader.parse(&AUTH_JWKS_CA_FILE, |path| Authorities::in_file(path))
    } else {
        if reader.raw(AUTH_JWKS_CA_FILE.name).is_some() {
            reader.fault(&AUTH_JWKS_CA_FILE, "is set, but AUTH_JWKS is no https URL; change that, or unset this");
        }
        None
    };
    let Some(url) = url else { return path.map(KeySource::File) };
    // What is not on this machine was listed.
    let exposed = url.host_str().filter(|host| url.scheme() == "http" && !on_this_machine(host));
    let stakes = "answer with keys of its own, and sign tokens of any caller with them";
    reader.expose(Exposure::plaintext(AUTH_JWKS.name, exposed.as_slice(), stakes));
    Some(KeySource::Url(url, authorities.unwrap_or_default()))
}

/// A URL, or the path of a file.
fn key_url(text: &str, plaintext: &PlaintextHosts) -> Result<(Option<Url>, PathBuf), String> {
    if !text.contains("://") {
        return Ok((None, text.into()));
    }
    let url = Url::parse(text).map_err(|fault| format!("is no URL ({fault})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or a password; the keys are public, so leave them out".to_owned());
    }
    match url.scheme() {
        "https" => {}
        "http" => drop(plaintext.check(url.host_str(), "https://")?),
        other => return Err(format!("has the scheme {other:?}; use https, or the path of a file")),
    }
    Ok((Some(url), PathBuf::new()))
}
