//! A system whose every connection is verified, and client commands that send nothing to a server that proves nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Output;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use url::Url;

use crate::harness::{System, eventually};
use crate::tls::{Authority, Opening};
use crate::traces::Receiver;

/// An issuer's keys: RFC 8037 A.2.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// The same URL by way of TLS in front of its server.
async fn fronted(ours: &Authority, opening: Opening, url: &str) -> Url {
    let mut url = Url::parse(url).unwrap();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, url.port().unwrap()));
    url.set_host(Some("localhost")).unwrap();
    url.set_port(Some(ours.front("localhost", opening, target).await)).unwrap();
    url
}

/// Answers every request with the issuer's keys.
async fn issuer() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = client.read(&mut request).await;
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{KEYS}", KEYS.len());
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_vouches_for_every_server() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let file = ours.write(folder.path()).to_str().unwrap().to_owned();
    let (receiver, collector) = Receiver::start();
    let mut system = System::prepare().await;
    let database = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let mut database = fronted(&ours, Opening::Postgres, &database).await;
    database.set_query(Some(&format!("sslrootcert={file}")));
    let mut broker = Url::parse(&system.amqp_url.replacen("amqp:", "amqps:", 1)).unwrap();
    broker.set_port(fronted(&ours, Opening::Tls, &system.amqp_url).await.port()).unwrap();
    broker.set_host(Some("localhost")).unwrap();
    broker.set_query(Some(&format!("cacertfile={file}")));
    let https = |url: Url| String::from(url).replacen("http:", "https:", 1);
    let collector = https(fronted(&ours, Opening::Tls, &collector).await);
    let keys = https(fronted(&ours, Opening::Tls, &issuer().await).await);
    for (name, value) in [
        ("DATABASE_URL", database.as_str()),
        ("AMQP_URL", broker.as_str()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", &file),
        ("AUTH", "jwt"),
        ("AUTH_JWT_ISSUER", "https://issuer.example/"),
        ("AUTH_JWT_AUDIENCE", "rollcall"),
        ("AUTH_JWT_ALGORITHMS", "EdDSA"),
        ("AUTH_JWKS", &keys),
        ("AUTH_JWKS_CA_FILE", &file),
    ] {
        system.set(name, value);
    }
    let api = system.api().await;
    system.get(&api, "/v1/users").await;
    let log = api.output();
    assert!(!log.contains("is not protected"), "{log}");
    assert!(api.terminate().await.success());
    eventually("a span came over TLS", async || receiver.received().then_some(())).await;

    // The same servers, of whom the system's authorities know nothing.
    let known = system.environment.clone();
    database.set_query(Some("sslmode=verify-full"));
    broker.set_query(None);
    let rows = [
        ("AUTH_JWKS_CA_FILE", "", "token-keys"),
        ("AMQP_URL", broker.as_str(), "broker"),
        ("DATABASE_URL", database.as_str(), "database"),
    ];
    for (name, value, check) in rows {
        system.environment.clone_from(&known);
        system.set(name, value);
        let api = system.api_unready();
        api.unready(check).await;
        eventually(check, async || api.output().contains("certificate").then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_start_warns_of_what_is_not_protected() {
    let mut system = System::prepare().await;
    let elsewhere = |url: &str| url.replace("127.0.0.1", "0.0.0.0");
    let database = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    system.set("DATABASE_URL", &format!("{}?sslmode=disable", elsewhere(&database)));
    system.set("AMQP_URL", &elsewhere(&system.amqp_url.clone()));
    system.set("PLAINTEXT_HOSTS", "0.0.0.0");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
    for process in [api, worker] {
        let log = process.output();
        for setting in ["DATABASE_URL", "AMQP_URL"] {
            let warnings: Vec<_> = log.lines().filter(|line| line.contains("is not protected")).collect();
            let named = format!("\"setting\":\"{setting}\"");
            assert_eq!(warnings.iter().filter(|line| line.contains(&named)).count(), 1, "{log}");
        }
    }
    let status = rollcall(&["migrate", "status"], &system.environment).await;
    let notes = String::from_utf8(status.stderr).unwrap();
    assert!(
        status.status.success() && notes.starts_with("Warning: DATABASE_URL: the connection to 0.0.0.0"),
        "{notes}"
    );
    assert_eq!(notes.lines().count(), 1, "{notes}");
}

async fn rollcall(arguments: &[&str], environment: &[(String, String)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn client_commands_send_nothing_to_a_server_that_proves_nothing() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let file = ours.write(folder.path()).to_str().unwrap().to_owned();
    let key = folder.path().join("key");
    std::fs::write(&key, "rollcall_hunter2").unwrap();
    let key = key.to_str().unwrap();
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let encrypted = fronted(&ours, Opening::Tls, &api.url("/")).await;
    let encrypted = String::from(encrypted).replacen("http:", "https:", 1);
    let clear = format!("http://0.0.0.0:{}", api.port());
    let allowed = [("PLAINTEXT_HOSTS".to_owned(), "0.0.0.0".to_owned())];
    let rows: [(&[&str], &[_], Option<&str>, &str); 5] = [
        (&["--url", &encrypted, "--ca", &file], &[], None, ""),
        (&["--url", &encrypted], &[], Some("certificate"), ""),
        (&["--url", &clear, "--bearer-file", key], &[], Some("--url goes to another machine in the clear"), ""),
        (&["--url", &clear], &allowed, None, "Warning: --url: the connection to 0.0.0.0 is in the clear"),
        (&["--url", &encrypted, "--ca", key], &[], Some("--ca names a file that holds no CERTIFICATE"), ""),
    ];
    for (arguments, environment, fault, warning) in rows {
        let output =
            rollcall(&[&["load", "--creates", "2", "--connections", "1"], arguments].concat(), environment).await;
        let notes = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), fault.is_none(), "{arguments:?}: {notes}");
        assert!(notes.contains(fault.unwrap_or_default()) && notes.contains(warning), "{arguments:?}: {notes}");
    }
}
