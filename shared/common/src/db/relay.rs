//! Relay to a server that proves nothing: keeps the client library from sending the password in clear text or as MD5.
//!
//! # Why a relay?
//! The library answers whatever the server asks for, and has no hook between the socket and the answer. A probe would say
//! nothing about the next connection. So the library gets a socket on this machine, and what the server says is read
//! until the session is ready, because the library answers until then. Each message is copied twice, for operators who
//! asked for less than a verified server (`sslmode=require`, or `disable` to another machine), and for no others.
//!
//! # What is left open?
//! SCRAM keeps the password secret, and nothing else: a machine on the way can pass the exchange on and own the session
//! afterwards, and can try passwords against what it saw. Only a verified server rules that out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::CONNECT_DEADLINE;
use crate::config::{DatabaseUrl, Server, Tls};
use crate::net;

/// Far more than any message has before a session is ready.
const LONGEST_MESSAGE: u32 = 64 * 1024;
/// How long the server says nothing before the system asks whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
/// Asks whether the server speaks TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The port is a part of the socket's name, and stands for nothing.
pub(super) const PORT: u16 = 5432;

/// Opens a connection to the server, and gives the folder of a socket that leads to it, once, and only this process.
pub(super) async fn open(url: &DatabaseUrl) -> Result<PathBuf, sqlx::Error> {
    let Server::Tcp { host, port } = &url.server else {
        return Err(io::Error::from(io::ErrorKind::Unsupported).into());
    };
    let mut server = reach(host, *port).await?;
    server.set_nodelay(true)?;
    // The library waits at a socket of this machine, which never says that the server is gone.
    sockopt::set_socket_keepalive(&server, true).map_err(io::Error::from)?;
    sockopt::set_tcp_keepidle(&server, KEEPALIVE_IDLE).map_err(io::Error::from)?;
    // An abstract name (Linux): no file that others could replace, and nothing to remove.
    let folder = PathBuf::from(format!("\0rollcall-{:032x}", rand::random::<u128>()));
    let listener = UnixListener::bind(folder.join(format!(".s.PGSQL.{PORT}")))?;
    if url.tls == Tls::Unverified {
        server.write_all(&TLS_REQUEST).await?;
        if server.read_u8().await? != b'S' {
            return Err(sqlx::Error::Tls("server does not support TLS".into()));
        }
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let server = TlsConnector::from(any_certificate(url)?).connect(name, server).await?;
        start(listener, server);
    } else {
        start(listener, server);
    }
    Ok(folder)
}

async fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in net::resolve(host, port).await? {
        match net::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

#[expect(clippy::disallowed_methods, reason = "it ends with its connection, whichever side closes that")]
fn start(listener: UnixListener, server: impl AsyncRead + AsyncWrite + Send + 'static) {
    tokio::spawn(async move {
        let Ok(Ok(client)) = timeout(CONNECT_DEADLINE, accept(listener)).await else { return };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = split(server);
        let down = async {
            begin(&mut from_server, &mut to_client).await?;
            copy(&mut from_server, &mut to_client).await
        };
        let up = async {
            copy(&mut from_client, &mut to_server).await?;
            to_server.shutdown().await
        };
        // What one side says last is passed on before the other side is closed.
        tokio::select! {
            _ = down => {}
            _ = up => {}
        }
    });
}

/// The one connection, of this process: any account on the machine may connect to an abstract name.
async fn accept(listener: UnixListener) -> io::Result<UnixStream> {
    loop {
        let (client, _) = listener.accept().await?;
        let pid = client.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok());
        if pid == Some(std::process::id()) {
            return Ok(client);
        }
    }
}

/// Passes on what the server says until the session is ready, and ends it where the answer would show the password.
async fn begin(server: &mut (impl AsyncRead + Unpin), client: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    loop {
        let (kind, length) = (server.read_u8().await?, server.read_u32().await?);
        if !(4..=LONGEST_MESSAGE).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length as usize + 1];
        message[0] = kind;
        message[1..5].copy_from_slice(&length.to_be_bytes());
        server.read_exact(&mut message[5..]).await?;
        let asked = match (kind, &message[5..]) {
            (b'R', [0, 0, 0, 3, ..]) => Some("in clear text"),
            (b'R', [0, 0, 0, 5, ..]) => Some("as MD5"),
            _ => None,
        };
        if let Some(form) = asked {
            client.write_all(&refusal(form)).await?;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        client.write_all(&message).await?;
        // Ready, or an error, after which the library says nothing more.
        if matches!(kind, b'Z' | b'E') {
            return Ok(());
        }
    }
}

/// An error that the library reports as the server's.
fn refusal(form: &str) -> Vec<u8> {
    let text = format!(
        "the server asks for the password {form}, but has not proven who it is; nothing was sent: use sslmode=verify-full, or \
         let the server store and ask for it as scram-sha-256"
    );
    let fields = format!("SFATAL\0VFATAL\0C28000\0M{text}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap_or_default();
    [&b"E"[..], &length.to_be_bytes(), fields.as_bytes()].concat()
}

/// TLS with any server, and with the client's certificate, if the URL names one.
fn any_certificate(url: &DatabaseUrl) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    let config = match &url.certificate {
        None => config.with_no_client_auth(),
        Some(client) => {
            let read = |path: &Path| CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
            let chain = read(&client.certificate).map_err(io::Error::other)?;
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(io::Error::other)?;
            config.with_client_auth_cert(chain, key).map_err(io::Error::other)?
        }
    };
    Ok(Arc::new(config))
}

/// Accepts every certificate; only that the server has its key is checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_nobody_connects_to_ends() {
        let listener = UnixListener::bind(format!("\0rollcall-{:032x}", rand::random::<u128>())).expect("a socket");
        let (server, mut far_end) = tokio::io::duplex(64);
        start(listener, server);
        let ended = timeout(2 * CONNECT_DEADLINE, far_end.read_u8()).await.expect("an end");
        assert_eq!(ended.expect_err("no byte").kind(), io::ErrorKind::UnexpectedEof);
    }
}
