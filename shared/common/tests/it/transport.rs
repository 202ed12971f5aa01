//! Connections to other machines: verified unless the operator writes something else out, and no password for a server that
//! proves nothing.
//!
//! 0.0.0.0 stands for another machine: by the rule it is one, and Linux connects it to this one.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::Mutex;

use local_stack::{Options, RabbitMq};
use rollcall_common::broker::{BrokerUser, LinkState, set_up, supervise};
use rollcall_common::config::{BrokerSettings, Reader, ServiceSettings, amqp_url};
use rollcall_common::db::{self, Pool};
use rollcall_common::health::{Health, ReadyWhen};
use rollcall_common::shutdown::Shutdown;
use rollcall_common::transport::PlaintextHosts;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{GRACES, PATIENCE, database, eventually, settings, soon};
use crate::tls::{Authority, Opening, accept_request};

const PASSWORD: &str = "TopSecretPassword";

/// The names of the settings that each start would warn of, or the faults.
fn read(variables: &[(&str, &str)]) -> Result<Vec<&'static str>, String> {
    let local = [("DATABASE_URL", "postgres://u:p@localhost/d"), ("AMQP_URL", "amqp://u:p@localhost")];
    let variables = local.iter().filter(|(name, _)| variables.iter().all(|(given, _)| given != name)).chain(variables);
    let mut reader = Reader::new(variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let settings = ServiceSettings::read(&mut reader);
    let exposures = reader.take_exposures();
    reader.finish(settings).map_err(|faults| faults.to_string())?;
    for exposure in &exposures {
        assert!(exposure.risk.contains("a machine on the way can"), "{exposure}");
        assert!(!exposure.risk.contains("hunter2"), "{exposure}");
    }
    Ok(exposures.iter().map(|exposure| exposure.setting).collect())
}

/// Variables, and the settings that are warned of, or a part of the faults.
type Row<'a> = (&'a [(&'a str, &'a str)], Result<&'a [&'a str], &'a str>);

#[test]
fn other_machines_are_verified_unless_less_is_written_out() {
    let file = |path| ("OTEL_EXPORTER_OTLP_CERTIFICATE", path);
    let hosts = |hosts| ("PLAINTEXT_HOSTS", hosts);
    let [database, direct, control] = ["DATABASE_URL", "DATABASE_URL_DIRECT", "DATABASE_CONTROL_URL"];
    let (broker, collector) = ("AMQP_URL", "OTEL_EXPORTER_OTLP_ENDPOINT");
    let rows: &[Row<'_>] = &[
        (&[], Ok(&[])),
        (&[(database, "postgres://u:hunter2@h/d")], Ok(&[])),
        (&[(database, "postgres://u:hunter2@127.1/d")], Ok(&[])),
        (&[(database, "postgres://u:hunter2@h/d?sslmode=require")], Ok(&[database])),
        (&[(database, "postgres://u:hunter2@h/d?sslmode=disable"), (control, "postgres://h/d")], Ok(&[database])),
        (
            &[(direct, "postgres://h/d?sslmode=require"), (control, "postgres://h/d?sslmode=disable")],
            Ok(&[direct, control]),
        ),
        (&[(database, "postgres://u:hunter2@h/d?sslmode=prefer")], Err("whether there is TLS")),
        (&[(database, "postgres://u:hunter2@h/d?sslmode=allow"), hosts("h")], Err("whether there is TLS")),
        (&[(broker, "amqp://u:hunter2@127.1,localhost:5673,127.0.0.2/v")], Ok(&[])),
        (&[(broker, "amqps://u:hunter2@a,b/v")], Ok(&[])),
        (&[(broker, "amqp://u:hunter2@a/v")], Err("AMQP_URL: goes to another machine in the clear; write amqps://")),
        (&[(broker, "amqp://u:hunter2@a,b/v"), hosts("a")], Err("AMQP_URL: goes to another machine")),
        (&[(broker, "amqp://u:hunter2@a,localhost,B/v"), hosts("b,a")], Ok(&[broker])),
        (&[(broker, "amqps://u@a/v?cacertfile=/hunter2/none")], Err("names a file that cannot be read")),
        (&[(broker, "amqp://u@localhost/v?cacertfile=/none")], Err("only counts with amqps://")),
        (&[(collector, "https://c:4317")], Ok(&[])),
        (&[(collector, "http://[::1]:4317")], Ok(&[])),
        (&[(collector, "http://c:4317")], Err("OTEL_EXPORTER_OTLP_ENDPOINT: goes to another machine in the clear")),
        (&[(collector, "http://localhost@c:4317")], Err("goes to another machine in the clear")),
        (&[(collector, "http://c:4317"), hosts("c")], Ok(&[collector])),
        (&[(collector, "https://c:4317"), file("/none")], Err("names a file that cannot be read")),
        (&[file("/none")], Err("OTEL_EXPORTER_OTLP_CERTIFICATE")),
        (&[hosts("http://c")], Err("PLAINTEXT_HOSTS: \"http://c\" is no host name")),
    ];
    for (variables, expected) in rows {
        match (read(variables), expected) {
            (Ok(exposed), Ok(expected)) => assert_eq!(exposed, *expected, "{variables:?}"),
            (Err(faults), Err(part)) => {
                assert!(faults.contains(part) && !faults.contains("hunter2"), "{variables:?}: {faults}");
            }
            (read, _) => panic!("{variables:?}: {read:?}"),
        }
    }
}

/// What a false server asks once it knows who comes.
const QUESTIONS: [(&str, &[u8]); 4] = [
    ("in clear text", &[b'R', 0, 0, 0, 8, 0, 0, 0, 3]),
    ("as MD5", &[b'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4]),
    ("in clear text", &[b'R', 0, 0, 0, 8, 0, 0, 0, 0, b'R', 0, 0, 0, 8, 0, 0, 0, 3]),
    ("in clear text", &[b'S', 0, 0, 0, 8, b'a', 0, b'b', 0, b'R', 0, 0, 0, 8, 0, 0, 0, 3]),
];

/// Answers in the server's place, with or without a certificate that proves nothing, asks this question, and keeps what the
/// client answers.
async fn false_server(tls: bool, question: &'static [u8]) -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    tokio::spawn(async move {
        let acceptor = Authority::new().acceptor("evil.example");
        while let Ok((mut client, _)) = listener.accept().await {
            if !tls {
                let _ = ask(client, question, &kept).await;
            } else if accept_request(&mut client).await.is_ok()
                && let Ok(client) = acceptor.accept(client).await
            {
                let _ = ask(client, question, &kept).await;
            }
        }
    });
    (port, heard)
}

async fn ask(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    question: &[u8],
    heard: &Mutex<Vec<Vec<u8>>>,
) -> std::io::Result<()> {
    let mut startup = vec![0; client.read_u32().await? as usize - 4];
    client.read_exact(&mut startup).await?;
    client.write_all(question).await?;
    let mut answer = Vec::new();
    // The client may hang up without the goodbye of TLS.
    let _ = client.read_to_end(&mut answer).await;
    heard.lock().expect("no panic").push(answer);
    Ok(())
}

async fn refused(url: &str) -> String {
    let settings = settings(url, 1);
    let fault = soon("an end", db::connect(&settings, "victim")).await.expect_err("a refusal");
    rollcall_common::shutdown::chain(&fault)
}

#[tokio::test]
async fn a_server_that_proves_nothing_learns_no_password() {
    for (form, question) in QUESTIONS {
        for (tls, host, mode) in
            [(true, "127.0.0.1", "require"), (true, "0.0.0.0", "require"), (false, "0.0.0.0", "disable")]
        {
            let (port, heard) = false_server(tls, question).await;
            let fault = refused(&format!("postgres://rollcall:{PASSWORD}@{host}:{port}/d?sslmode={mode}")).await;
            assert!(fault.contains(&format!("asks for the password {form}")), "{mode}: {fault}");
            let answers = || heard.lock().expect("no panic").clone();
            eventually("it heard everything", async || !answers().is_empty()).await;
            // At most a goodbye.
            let silent = answers().iter().all(|answer| answer.is_empty() || answer == b"X\0\0\0\x04");
            assert!(silent, "{mode}: {:?}", answers());
        }
    }
}

#[tokio::test]
async fn without_a_mode_a_false_server_learns_nothing() {
    let (_, question) = QUESTIONS[0];
    let (port, heard) = false_server(true, question).await;
    let fault = refused(&format!("postgres://rollcall:{PASSWORD}@0.0.0.0:{port}/d")).await;
    assert!(fault.contains("certificate"), "{fault}");
    assert!(heard.lock().expect("no panic").is_empty());
    let (port, _) = false_server(false, question).await;
    refused(&format!("postgres://rollcall:{PASSWORD}@0.0.0.0:{port}/d?sslrootcert=system")).await;
}

/// Where the shared PostgreSQL listens, and its URL with another address and other parameters.
fn elsewhere(url: &str, host: &str, port: Option<u16>, parameters: &str) -> (SocketAddr, String) {
    let mut url = url::Url::parse(url).expect("a URL");
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, url.port().expect("a port")));
    url.set_host(Some(host)).expect("a host");
    url.set_port(Some(port.unwrap_or(target.port()))).expect("a port");
    url.set_query(Some(parameters));
    (target, url.into())
}

#[tokio::test]
async fn a_server_that_asks_for_scram_is_used_without_proof() {
    let database = database().await;
    let (target, clear) = elsewhere(database.url(), "0.0.0.0", None, "sslmode=disable");
    let port = Authority::new().front("evil.example", Opening::Postgres, target).await;
    let (_, encrypted) = elsewhere(database.url(), "localhost", Some(port), "sslmode=require");
    let mut witness = PgConnection::connect(database.url()).await.expect("a connection");
    for url in [clear, encrypted] {
        let pool = Pool::new(&settings(&url, 1), "unproven", &[]).expect("a pool");
        let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
        let long: String =
            sqlx::query_scalar("SELECT repeat($1, 1000000)").bind("ab").fetch_one(&mut *lease).await.expect("a text");
        assert_eq!(long.len(), 2_000_000);
        lease.release().await.expect("released");
        pool.close().await;
        eventually("the session is gone", async || {
            let sessions = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = 'unproven' AND datname = current_database()";
            sqlx::query_scalar::<_, i64>(sessions).fetch_one(&mut witness).await.expect("a count") == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_private_authority_vouches_for_postgresql() {
    let database = database().await;
    let (ours, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let file = ours.write(folder.path());
    let file = file.to_str().expect("UTF-8");
    let (target, _) = elsewhere(database.url(), "localhost", None, "");
    let port = ours.front("localhost", Opening::Postgres, target).await;
    let url = |host: &str, parameters: &str| elsewhere(database.url(), host, Some(port), parameters).1;

    let known = format!("sslrootcert={file}");
    let mut connection = db::connect(&settings(&url("localhost", &known), 1), "t").await.expect("a connection");
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut connection).await.expect("a row");
    assert_eq!(one, 1);
    for (host, parameters) in [
        ("127.0.0.1", &*known),
        ("localhost", "sslmode=verify-full"),
        ("localhost", "sslmode=verify-full&sslrootcert=system"),
    ] {
        let fault = refused(&url(host, parameters)).await;
        assert!(fault.contains("certificate"), "{host} {parameters}: {fault}");
    }
}

#[tokio::test]
async fn a_private_authority_vouches_for_rabbitmq() {
    let (ours, folder) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let (certificate, key) = ours.identity("localhost");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("a port").port();
    let file = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    // The node runs as another account.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("for all");
    std::fs::write(file("cert.pem"), certificate).expect("a file");
    std::fs::write(file("key.pem"), key).expect("a file");
    let authority = ours.write(folder.path());
    let settings = [
        ("listeners.ssl.1", format!("127.0.0.1:{port}")),
        ("ssl_options.cacertfile", authority.to_str().expect("UTF-8").to_owned()),
        ("ssl_options.certfile", file("cert.pem")),
        ("ssl_options.keyfile", file("key.pem")),
    ];
    let home = tempfile::tempdir().expect("a folder");
    let options = Options {
        rabbitmq_settings: settings.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..Options::new(home.path())
    };
    let broker =
        tokio::task::spawn_blocking(|| RabbitMq::start_alone(options)).await.expect("no panic").expect("RabbitMQ");
    let user = broker.url().split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).expect("a user").0;

    let rows = [
        ("localhost", format!("?cacertfile={}", file("authority.pem")), None),
        ("localhost", String::new(), Some("UnknownIssuer")),
        ("127.0.0.1", format!("?cacertfile={}", file("authority.pem")), Some("not valid for name")),
    ];
    for (host, parameters, fault) in rows {
        let url = amqp_url(&format!("amqps://{user}@{host}:{port}/%2f{parameters}")).expect("a URL");
        let (prefix, partitions) = ("tls.".to_owned(), 1);
        let settings =
            BrokerSettings { url, file: None, prefix, partitions, plaintext_hosts: PlaintextHosts::default() };
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::All, shutdown.clone());
        if fault.is_none() {
            set_up(&settings).await.expect("exchanges and queues");
        }
        let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
        let expected = |state: &LinkState| match (fault, state) {
            (None, LinkState::Up { .. }) => true,
            (Some(fault), LinkState::Down(reason)) => reason.contains(fault),
            _ => false,
        };
        drop(soon(fault.unwrap_or("a connection"), link.wait_for(expected)).await.expect("a link"));
        shutdown.stop(GRACES).await.expect("a good end");
    }
}

#[tokio::test]
async fn a_broker_in_the_clear_is_not_even_dialled() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    // As if the file with the URL had another content by now.
    let url = amqp_url(&format!("amqp://u:{PASSWORD}@0.0.0.0:{port}")).expect("a URL");
    let (prefix, partitions) = ("t.".to_owned(), 1);
    let settings = BrokerSettings { url, file: None, prefix, partitions, plaintext_hosts: PlaintextHosts::default() };
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
    let refused = |state: &LinkState| matches!(state, LinkState::Down(reason) if reason.contains("PLAINTEXT_HOSTS"));
    drop(soon("it says why", link.wait_for(refused)).await.expect("a link"));
    shutdown.stop(GRACES).await.expect("a good end");
    listener.into_std().expect("a socket").accept().expect_err("nobody came");
}
