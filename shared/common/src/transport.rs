//! Protection of outgoing connections: one rule for the database, the broker, the trace collector, the issuer's keys and
//! the API that a client command is sent to.
//!
//! # The rule
//! A connection that leaves this machine is encrypted, and the server proves its name with a certificate. An operator who
//! wants less writes it out: for PostgreSQL as `sslmode=require` or `sslmode=disable` in the URL, for everything else
//! by listing the host in `PLAINTEXT_HOSTS`. Each start warns of each such setting and names what is not protected.
//!
//! # This machine
//! `localhost`, 127.0.0.0/8 and `::1`, in every spelling that the resolver accepts (`127.1`, `0x7f000001`,
//! `::ffff:127.0.0.1`), and sockets in the file system. Another name is another machine, also when it resolves to such an
//! address: what it resolves to is decided elsewhere, and can change.
//!
//! # Authorities
//! Certificates are checked against the authorities of the system or, where a file is given, against those in the file and no
//! others. Only for PostgreSQL the client library adds those of a file to the system's.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use url::Host;

/// Whether a URL's host is this machine, however it is spelt.
pub fn on_this_machine(host: &str) -> bool {
    match parsed(host) {
        Some(Host::Domain(name)) => matches!(&*name, "localhost" | "localhost."),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// The host as the resolver understands it. Names that a URL parser would map to others are none.
fn parsed(host: &str) -> Option<Host> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<Ipv6Addr>() {
        return Some(Host::Ipv6(address));
    }
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    match Host::parse(host).ok().filter(|_| plain)? {
        // No numbers to the resolver, which asks for them as names.
        Host::Ipv4(_) if host.ends_with('.') || host.split('.').any(|label| label.eq_ignore_ascii_case("0x")) => None,
        found => Some(found),
    }
}

/// The hosts off this machine that may be spoken to in the clear (`PLAINTEXT_HOSTS`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaintextHosts(BTreeSet<Host>);

impl PlaintextHosts {
    /// Reads a list of names and addresses, separated by commas.
    ///
    /// # Errors
    /// Says what an entry must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let host = |entry: &str| {
            parsed(entry.trim())
                .ok_or_else(|| format!("{entry:?} is no host name or IP address; leave out scheme and port"))
        };
        text.split(',').map(host).collect::<Result<_, _>>().map(Self)
    }

    /// Checks the hosts of a URL whose scheme has no TLS, and gives those that stand open because the operator wants it.
    ///
    /// # Errors
    /// A host is neither this machine nor listed. `secure` is how the URL would have to begin.
    pub fn check<'h>(&self, hosts: impl IntoIterator<Item = &'h str>, secure: &str) -> Result<Vec<&'h str>, String> {
        let away: Vec<_> = hosts.into_iter().filter(|host| !on_this_machine(host)).collect();
        if away.iter().all(|host| parsed(host).is_some_and(|host| self.0.contains(&host))) {
            return Ok(away);
        }
        Err(format!(
            "goes to another machine in the clear; write {secure}, or, where something else protects the way, list the host in \
             PLAINTEXT_HOSTS"
        ))
    }
}

/// A connection that the operator left open, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The variable or option that holds the URL.
    pub setting: &'static str,
    /// What is not protected, and from whom.
    pub risk: String,
}

impl Exposure {
    /// For hosts that are spoken to in the clear, if there are any. `stakes` goes on after "can".
    pub fn plaintext(setting: &'static str, hosts: &[&str], stakes: &str) -> Option<Self> {
        let hosts = hosts.join(", ");
        let risk = || {
            format!(
                "the connection to {hosts} is in the clear, as PLAINTEXT_HOSTS allows: a machine on the way can {stakes}"
            )
        };
        (!hosts.is_empty()).then(|| Self { setting, risk: risk() })
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.risk)
    }
}

/// The authorities that a server's certificate must come from: the system's, unless a file was given.
#[derive(Clone, Default)]
pub struct Authorities(Option<Arc<AuthorityFile>>);

struct AuthorityFile {
    pem: Vec<u8>,
    roots: Arc<RootCertStore>,
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.pem() == other.pem()
    }
}

impl Eq for Authorities {}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Authorities(File)" } else { "Authorities(System)" })
    }
}

impl Authorities {
    /// Those in a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate of an authority. The path is not part of it.
    pub fn in_file(path: impl AsRef<Path>) -> Result<Self, String> {
        let pem =
            std::fs::read(path).map_err(|fault| format!("names a file that cannot be read ({})", fault.kind()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let usable = certificate.ok().is_some_and(|certificate| roots.add(certificate).is_ok());
            if !usable {
                return Err("names a file with a CERTIFICATE that cannot be read".to_owned());
            }
        }
        if roots.is_empty() {
            return Err("names a file that holds no CERTIFICATE in PEM".to_owned());
        }
        Ok(Self(Some(Arc::new(AuthorityFile { pem, roots: Arc::new(roots) }))))
    }

    /// The content of the file, for libraries that build their own TLS; `None` stands for the system's.
    pub fn pem(&self) -> Option<&[u8]> {
        self.0.as_ref().map(|file| &*file.pem)
    }

    /// TLS with certificates from these authorities and none of our own.
    pub(crate) fn client_config(&self) -> io::Result<Arc<ClientConfig>> {
        let roots = match &self.0 {
            Some(file) => Arc::clone(&file.roots),
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

/// The system's authorities, read once: there are hundreds.
fn system_roots() -> io::Result<Arc<RootCertStore>> {
    static KNOWN: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(roots) = &*known {
        return Ok(Arc::clone(roots));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let reason = "the system has no certificate authorities; install ca-certificates, or give a file of your own";
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    Ok(Arc::clone(known.insert(Arc::new(roots))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_in_every_spelling() {
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "127.0.0.1",
            "127.1",
            "127.3.2.1",
            "0x7f000001",
            "0x7f.1",
            "017700000001",
            "2130706433",
            "::1",
            "[::1]",
            "0:0:0:0:0:0:0:1",
            "::ffff:127.0.0.1",
        ] {
            assert!(on_this_machine(host), "{host}");
        }
        for host in [
            "",
            "db",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "db.localhost",
            "127.0.0.1@h",
            "127.0.0.1%00",
            "127.0.0.1.",
            "127.0x",
            "127.0X.1",
            "0x7f000001.",
            "10.0.0.1",
            "0.0.0.0",
            "128.1",
            "::",
            "::2",
            "[::1",
            "local%68ost",
            "ｌocalhost",
            "127。0。0。1",
        ] {
            assert!(!on_this_machine(host), "{host}");
        }
    }

    #[test]
    fn only_listed_hosts_are_spoken_to_in_the_clear() {
        let hosts = PlaintextHosts::parse("rabbitmq, 10.0.0.7,FD00::1").expect("hosts");
        assert_eq!(
            hosts.check(["localhost", "RabbitMQ", "10.7", "fd00:0::1"], "x://"),
            Ok(vec!["RabbitMQ", "10.7", "fd00:0::1"])
        );
        assert_eq!(hosts.check(["127.1"], "x://"), Ok(Vec::new()));
        for host in ["rabbitmq.example.org", "rabbit", "10.0.0.8", "rabbitmq."] {
            assert!(hosts.check(["rabbitmq", host], "x://").is_err_and(|fault| fault.contains("write x://")), "{host}");
            assert!(PlaintextHosts::default().check([host], "x://").is_err(), "{host}");
        }
        for entry in ["", "a,,b", "http://a", "a:5672", "*", "a b", "a/b"] {
            assert!(PlaintextHosts::parse(entry).is_err(), "{entry}");
        }
    }
}
