//! The database's URL, read by our own rules before the client library sees any of it: that ignores parameters which it
//! does not know, and logs their values.
//!
//! # Why is `verify-ca` refused?
//! The client library trusts the system's authorities beside the given one, so a server with a certificate from any of them,
//! for any name, would pass. `verify-full` compares the name too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;
use url::Url;

use super::SecretFile;
use super::reserved::unencoded;
use crate::transport::on_this_machine;

/// Parameters that say something to us.
const READ: &[&str] = &["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "options"];
/// Parameters whose subject is ours to decide: accepted and left alone.
const OURS: &[&str] = &[
    "application_name",
    "fallback_application_name",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];
/// Parameters that are accepted with these values, which ask for nothing. What the others ask for, nobody here can do.
const HARMLESS: &[(&str, &[&str])] = &[
    ("channel_binding", &["disable", "prefer"]),
    ("gssencmode", &["disable", "prefer"]),
    ("sslnegotiation", &["postgres"]),
    ("target_session_attrs", &["any"]),
    ("load_balance_hosts", &["disable"]),
    ("client_encoding", &["UTF8", "utf8", "auto"]),
];
const MODES: &str = "disable, allow, prefer, require, verify-full";
const DEFAULT_PORT: u16 = 5432;
/// All that RFC 3986 does not call unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A checked PostgreSQL URL, in parts. Nothing of it is shown but the address.
#[derive(Debug, Clone)]
pub struct DatabaseUrl {
    text: SecretString,
    /// Where it stands, if it may change.
    file: Option<SecretFile>,
    pub(crate) server: Server,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: String,
    pub(crate) tls: Tls,
    pub(crate) certificate: Option<ClientCertificate>,
    /// What the operator asks of each session, besides what we ask.
    pub(crate) options: Option<SecretString>,
    /// What the first connection found out; known to all clones.
    pub(crate) reached: Arc<OnceCell<Reached>>,
}

/// How the server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    Directly,
    /// It refuses what we ask of each session.
    WithoutOptions,
    /// A pooler lends its sessions by the transaction.
    ThroughPooler,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Server {
    Tcp { host: String, port: u16 },
    Socket { folder: PathBuf, port: u16 },
}

/// How the connection is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// Only where nobody can listen in: on loopback.
    IfOffered,
    /// Encrypted, with a server that proves nothing.
    Unverified,
    /// Against the system's authorities, and those in this file.
    Verified(Option<PathBuf>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Checks a PostgreSQL URL and takes it apart. Files that it names are read.
///
/// # Errors
/// Says what is wrong without any part of the URL that could be secret.
pub fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    if let Some(fault) = unencoded(text) {
        return Err(fault);
    }
    let url = Url::parse(text).map_err(|fault| format!("is no URL ({fault})"))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(format!("has the scheme {:?}; expected postgres or postgresql", url.scheme()));
    }
    let parameters = parameters(&url)?;
    let parameter = |name: &str| parameters.get(name).map(String::as_str);
    let database = decoded("name of the database", url.path().trim_start_matches('/'))?;
    if database.is_empty() {
        return Err("names no database after the host".to_owned());
    }
    let server = server(&url, parameter("host"))?;
    let user = decoded("user", url.username())?;
    let password = url.password().map(|password| decoded("password", password)).transpose()?;
    Ok(DatabaseUrl {
        text: SecretString::from(text),
        file: None,
        tls: tls(&server, parameter("sslmode"), parameter("sslrootcert"))?,
        server,
        user: Some(user).filter(|user| !user.is_empty()),
        password: password.map(SecretString::from),
        database,
        certificate: client_certificate(parameter("sslcert"), parameter("sslkey"))?,
        options: parameter("options").map(SecretString::from),
        reached: Arc::default(),
    })
}

impl DatabaseUrl {
    /// The same, as it stands in a file.
    pub(super) fn in_file(self, file: Option<SecretFile>) -> Self {
        Self { file, ..self }
    }

    /// The user and the password for a new connection: what the file says now, if the URL stands in one.
    pub(crate) fn credentials(&self) -> (Option<String>, Option<SecretString>) {
        let current = self.file.as_ref().and_then(|file| {
            file.current(|text| {
                let url = database_url(text)?;
                if url.server != self.server || url.database != self.database {
                    return Err("names another server or database, which needs a restart".to_owned());
                }
                Ok((url.user, url.password))
            })
        });
        current.unwrap_or_else(|| (self.user.clone(), self.password.clone()))
    }

    /// What the operator left open, if anything.
    pub(super) fn risk(&self) -> Option<String> {
        let Server::Tcp { host, .. } = &self.server else { return None };
        let open = match self.tls {
            _ if on_this_machine(host) => return None,
            Tls::Verified(_) | Tls::IfOffered => return None,
            Tls::Off => "is in the clear, as sslmode=disable asks",
            Tls::Unverified => "accepts any certificate, as sslmode=require asks",
        };
        Some(format!(
            "the connection to {host} {open}: a machine on the way can read and change every row and statement{}",
            if self.password.is_some() {
                ", and guess the password offline, which is only sent hashed (SCRAM)"
            } else {
                ""
            }
        ))
    }

    /// Whether the server must not learn the password from the answer to its question, because it proves nothing.
    pub(crate) fn unproven(&self) -> bool {
        match self.tls {
            Tls::Unverified => true,
            Tls::Off => !self.server.on_this_machine(),
            Tls::IfOffered | Tls::Verified(_) => false,
        }
    }

    /// The URL as it was given, its password included.
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// The same server and database for another role; `None` when the URL has no place for a role.
    pub fn with_role(&self, user: &str, password: &str) -> Option<SecretString> {
        let mut url = Url::parse(self.expose()).ok()?;
        // Encoded here, because the setters leave percent signs alone.
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        url.set_username(&encoded(user)).ok()?;
        url.set_password(Some(&encoded(password))).ok()?;
        Some(SecretString::from(String::from(url)))
    }

    /// The password that it carries.
    pub fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    pub(crate) fn address(&self) -> String {
        match &self.server {
            Server::Tcp { host, port } => format!("{host}:{port}"),
            Server::Socket { folder, port } => format!("{} (port {port})", folder.display()),
        }
    }
}

fn parameters(url: &Url) -> Result<BTreeMap<String, String>, String> {
    let mut parameters = BTreeMap::new();
    for (name, value) in url.query_pairs() {
        let harmless = HARMLESS.iter().find(|(known, _)| *known == name);
        if let Some((_, values)) = harmless {
            if !values.contains(&&*value) {
                let known = values.join(" or ");
                return Err(format!(
                    "asks with the parameter {name:?} for what this client cannot do; remove it, or write {known} (only \
                     sslmode=verify-full keeps others out)"
                ));
            }
        } else if !READ.contains(&&*name) && !OURS.contains(&&*name) {
            // A password with a question mark in it ends up here: what cannot be a parameter's name is not shown.
            let name = if name.chars().all(|c| c.is_ascii_alphabetic() || "_-".contains(c)) { &*name } else { "…" };
            return Err(format!(
                "has the unknown parameter {name:?}, which may concern security; known are {}",
                READ.join(", ")
            ));
        }
        if parameters.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return Err(format!("has the parameter {name:?} twice; write it once"));
        }
    }
    Ok(parameters)
}

fn server(url: &Url, parameter: Option<&str>) -> Result<Server, String> {
    let port = url.port().unwrap_or(DEFAULT_PORT);
    let host = decoded("host", url.host_str().unwrap_or_default())?;
    let host = match (host.is_empty(), parameter) {
        (false, None) => host,
        (true, Some(folder)) if folder.starts_with('/') => folder.to_owned(),
        (true, None) => return Err("names no host; write localhost, or host=/folder for a socket".to_owned()),
        _ => {
            return Err(
                "has the parameter \"host\", which can only be a socket's folder without another host".to_owned()
            );
        }
    };
    if host.starts_with('/') {
        return Ok(Server::Socket { folder: PathBuf::from(host), port });
    }
    if host.contains(',') {
        return Err("names several hosts; give one".to_owned());
    }
    // An IPv6 address stands in brackets, which are no part of it.
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Server::Tcp { host, port })
}

impl Server {
    fn on_this_machine(&self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Tcp { host, .. } => on_this_machine(host),
        }
    }
}

fn tls(server: &Server, mode: Option<&str>, authority: Option<&str>) -> Result<Tls, String> {
    let socket = matches!(server, Server::Socket { .. });
    let tls = match (mode, authority) {
        (Some("verify-full") | None, Some("system")) => Tls::Verified(None),
        (Some("verify-full"), authority) | (None, authority @ Some(_)) => {
            Tls::Verified(authority.map(|path| pem("sslrootcert", path, "CERTIFICATE")).transpose()?)
        }
        (Some("verify-ca"), _) => {
            return Err("has sslmode=verify-ca, which would trust every public authority for every name; use \
                        sslmode=verify-full"
                .to_owned());
        }
        (Some("disable" | "allow" | "prefer" | "require"), Some(_)) => {
            return Err("has the parameter \"sslrootcert\", which only counts with sslmode=verify-full".to_owned());
        }
        (None, None) if socket => Tls::Off,
        (None, None) if server.on_this_machine() => Tls::IfOffered,
        (None, None) => Tls::Verified(None),
        (Some("disable"), None) => Tls::Off,
        (Some("allow" | "prefer"), None) => Tls::IfOffered,
        (Some("require"), None) => Tls::Unverified,
        (Some(_), _) => return Err(format!("has an unknown value in \"sslmode\"; expected one of {MODES}")),
    };
    match tls {
        Tls::Unverified | Tls::Verified(_) if socket => {
            Err("demands TLS with the parameter \"sslmode\" on a socket, which has none; remove it".to_owned())
        }
        Tls::IfOffered if !server.on_this_machine() => {
            Err("leaves it to the network with the parameter \"sslmode\" whether there is TLS, but its host is not this \
                 machine; write sslmode=verify-full, or, to accept that nothing is proven or protected, require or disable"
                .to_owned())
        }
        tls => Ok(tls),
    }
}

fn client_certificate(certificate: Option<&str>, key: Option<&str>) -> Result<Option<ClientCertificate>, String> {
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(ClientCertificate {
            certificate: pem("sslcert", certificate, "CERTIFICATE")?,
            key: pem("sslkey", key, "PRIVATE KEY")?,
        })),
        _ => Err("has only one of the parameters \"sslcert\" and \"sslkey\"; give both".to_owned()),
    }
}

/// A file that holds what it should: the client library takes one without a certificate for an empty list.
fn pem(parameter: &str, path: &str, holds: &str) -> Result<PathBuf, String> {
    let text = std::fs::read(path).map_err(|fault| {
        format!("names a file with the parameter {parameter:?} that cannot be read ({})", fault.kind())
    })?;
    let text = String::from_utf8_lossy(&text);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{holds}-----"));
    if text.lines().any(begins) {
        Ok(Path::new(path).to_owned())
    } else {
        Err(format!("names a file with the parameter {parameter:?} that holds no {holds} in PEM"))
    }
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| format!("has a {what} that is not UTF-8"))
}
