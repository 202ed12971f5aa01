//! What each session asks of a real server, what happens where that is refused, and TLS.

use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use local_stack::testing::{Lends, Pooler};
use local_stack::{Options, Postgres};
use rollcall_common::db::{self, DbError, Pool};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{connect, database, eventually, settings};

const PATIENCE: Duration = Duration::from_mins(2);

async fn shown(connection: &mut PgConnection, setting: &'static str) -> String {
    let show = format!("SHOW {setting}");
    sqlx::query_scalar(AssertSqlSafe(show)).fetch_one(connection).await.expect("a setting")
}

#[tokio::test]
async fn every_session_has_the_server_watch_its_client() {
    let database = database().await;
    let pool = Pool::new(&settings(database.url(), 1), "test", &[]).expect("a pool");
    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    let mut alone = connect(database.url()).await;
    for connection in [&mut *lease, &mut alone] {
        for (setting, value) in [
            ("tcp_keepalives_idle", "5"),
            ("tcp_keepalives_interval", "2"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "6000"),
            ("client_connection_check_interval", "100ms"),
        ] {
            assert_eq!(shown(connection, setting).await, value, "{setting}");
        }
    }
}

/// Gives the database defaults that the protocol cannot live with.
async fn with_bad_defaults() -> local_stack::testing::TestDatabase {
    let database = database().await;
    let mut conn = connect(database.url()).await;
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut conn).await.expect("a name");
    for default in
        ["synchronous_commit = off", "default_transaction_isolation = serializable", "idle_session_timeout = '1s'"]
    {
        conn.execute(AssertSqlSafe(format!("ALTER DATABASE {name} SET {default}"))).await.expect("a default");
    }
    database
}

#[tokio::test]
async fn defaults_that_would_break_a_promise_do_not_count() {
    let database = with_bad_defaults().await;
    let (whole, _one) = pooler(database.url(), Lends::Sessions).await;
    let (shared, _two) = pooler(database.url(), Lends::Transactions).await;
    for url in [database.url(), whole.url(), shared.url()] {
        let pool = Pool::new(&settings(url, 1), "rollcall/test", &[]).expect("a pool");
        let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
        assert_eq!(shown(&mut lease, "synchronous_commit").await, "on", "{url}");
        assert_eq!(shown(&mut lease, "transaction_isolation").await, "read committed", "{url}");
        if url != shared.url() {
            assert_eq!(shown(&mut lease, "idle_session_timeout").await, "0", "{url}");
        }
        lease.release().await.expect("released");
    }
    let mut alone = connect(database.url()).await;
    assert_eq!(shown(&mut alone, "synchronous_commit").await, "on", "an operator's command");
}

#[tokio::test]
async fn waiting_for_standbys_stays_the_operators_choice() {
    let database = database().await;
    for chosen in ["remote_apply", "remote_write", "local"] {
        let mut conn = connect(&format!("{}?options=-c%20synchronous_commit%3D{chosen}", database.url())).await;
        assert_eq!(shown(&mut conn, "synchronous_commit").await, chosen);
    }
}

#[tokio::test]
async fn a_statement_whose_client_is_gone_ends_soon() {
    let database = database().await;
    let mut witness = connect(database.url()).await;
    let mut leaving = db::connect(&settings(database.url(), 1), "leaving").await.expect("a connection");
    let sleep = leaving.execute("SELECT pg_sleep(600)");
    tokio::time::timeout(Duration::from_millis(100), sleep).await.expect_err("it sleeps");
    drop(leaving);
    eventually("its session is gone", async || {
        let sessions =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'leaving' AND datname = current_database()";
        sqlx::query_scalar::<_, i64>(sessions).fetch_one(&mut witness).await.expect("a count") == 0
    })
    .await;
}

#[tokio::test]
async fn options_of_the_url_reach_the_session_beside_ours() {
    let database = database().await;
    let url = format!("{}?options=-c%20geqo%3Doff", database.url());
    let mut connection = connect(&url).await;
    assert_eq!(shown(&mut connection, "geqo").await, "off");
    assert_eq!(shown(&mut connection, "tcp_user_timeout").await, "6000");
}

/// A PgBouncer in front of the database.
async fn pooler(database: &str, lends: Lends) -> (Pooler, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options { install: true, progress: Arc::new(|_| {}), ..Options::new(folder.path()) };
    let url = database.to_owned();
    let pooler = tokio::task::spawn_blocking(move || Pooler::start(options, &url, lends)).await.expect("no panic");
    (pooler.expect("PgBouncer"), folder)
}

#[tokio::test]
async fn behind_a_pooler_a_lease_is_a_transaction_and_prepared_statements_are_no_error() {
    const BORROWERS: i32 = 8;
    const TIMES: i32 = 40;
    let database = database().await;
    let mut witness = connect(database.url()).await;
    witness.execute("CREATE TABLE done (borrower integer, number integer)").await.expect("a table");
    let (pooler, _folder) = pooler(database.url(), Lends::Transactions).await;
    let asking = PgConnectOptions::from_str(pooler.url()).expect("a URL").extra_float_digits(None);
    let refused = PgConnection::connect_with(&asking.options([("tcp_user_timeout", "1")])).await.expect_err("refused");
    assert_eq!(refused.as_database_error().and_then(DatabaseError::code).as_deref(), Some("08P01"), "{refused}");

    let pool = Pool::new(&settings(pooler.url(), 4), "rollcall/test", &[]).expect("a pool");
    let borrowing = (0..BORROWERS).map(async |borrower| {
        for number in 0..TIMES {
            let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
            let mut tx = lease.begin().await.expect("a savepoint");
            let insert = sqlx::query("INSERT INTO done VALUES ($1, $2)").bind(borrower).bind(number);
            insert.execute(&mut *tx).await.expect("an insertion");
            tx.commit().await.expect("a savepoint");
            if number % 4 == 3 {
                // Ended by a fault: nothing of it counts.
                sqlx::query("SELECT 1 / $1").bind(0).execute(&mut *lease).await.expect_err("a division by nothing");
            } else {
                lease.release().await.expect("released");
            }
        }
    });
    futures_util::future::join_all(borrowing).await;
    let done: i64 = sqlx::query_scalar("SELECT count(*) FROM done").fetch_one(&mut witness).await.expect("a count");
    assert_eq!(done, i64::from(BORROWERS * TIMES * 3 / 4));
    let counted = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rollcall/%' AND datname = current_database()";
    let counted: i64 = sqlx::query_scalar(counted).fetch_one(&mut witness).await.expect("a count");
    assert!(counted <= 1, "the budget would count {counted} sessions of the pooler");
}

#[tokio::test]
async fn where_startup_options_are_refused_each_setting_is_asked_for_by_itself() {
    let database = database().await;
    let (pooler, _folder) = pooler(database.url(), Lends::Sessions).await;
    let session = [("default_transaction_read_only", "on")];
    let pool = Pool::new(&settings(pooler.url(), 2), "rollcall/test", &session).expect("a pool");
    let mut leases = [pool.acquire(PATIENCE).await.expect("one"), pool.acquire(PATIENCE).await.expect("another")];
    let mut pids = Vec::new();
    for lease in &mut leases {
        assert_eq!(shown(lease, "tcp_user_timeout").await, "6000");
        assert_eq!(shown(lease, "client_connection_check_interval").await, "100ms");
        assert_eq!(shown(lease, "default_transaction_read_only").await, "on");
        assert_eq!(shown(lease, "application_name").await, "rollcall/test", "the budget counts it");
        pids.push(
            sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&mut **lease).await.expect("a pid"),
        );
    }
    assert_ne!(pids[0], pids[1]);
}

#[tokio::test]
async fn behind_a_pooler_a_pool_that_only_reads_cannot_write() {
    let database = database().await;
    connect(database.url()).await.execute("CREATE TABLE things (id integer)").await.expect("a table");
    let (pooler, _folder) = pooler(database.url(), Lends::Transactions).await;
    let session = [("default_transaction_read_only", "on")];
    let pool = Pool::new(&settings(pooler.url(), 1), "rollcall/test", &session).expect("a pool");
    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    let refused = lease.execute("INSERT INTO things VALUES (1)").await.expect_err("refused");
    assert_eq!(refused.as_database_error().and_then(DatabaseError::code).as_deref(), Some("25006"), "{refused}");
}

#[tokio::test]
async fn what_needs_a_session_of_its_own_names_the_pooler_and_the_mend() {
    let database = database().await;
    let (pooler, _folder) = pooler(database.url(), Lends::Transactions).await;
    let refused = db::connect(&settings(pooler.url(), 1), "test").await.expect_err("refused");
    assert!(matches!(refused, DbError::Pooler(_)), "{refused:?}");
    assert!(refused.to_string().contains("set DATABASE_URL_DIRECT"), "{refused}");
}

#[tokio::test]
async fn a_server_is_taken_for_itself_only_with_a_certificate_of_the_given_authority_for_its_name() {
    let (folder, tls) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let options = Options { install: true, ..Options::new(folder.path()) };
    let postgres = tokio::task::spawn_blocking(|| Postgres::start_alone(options)).await.expect("no panic");
    let postgres = postgres.expect("PostgreSQL");
    let mut admin = connect(postgres.url()).await;
    let with = |rest: &str| format!("{}?{rest}", postgres.url());
    let refused = db::connect(&settings(&with("sslmode=require"), 1), "test").await.expect_err("no TLS yet");
    assert!(matches!(refused, DbError::Connect { source: sqlx::Error::Tls(_), .. }), "{refused:?}");

    let script = "set -e; cd \"$1\"
        for name in ca other; do openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=$name -keyout $name.key -out $name.pem; done
        openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1' > names
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt";
    let made = Command::new("sh").args(["-c", script, "sh"]).arg(tls.path()).output().expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // Written by the server itself: its key must belong to its account.
    for name in ["server.crt", "server.key"] {
        let text = std::fs::read_to_string(tls.path().join(name)).expect("a file");
        let copy =
            format!("COPY (SELECT unnest(string_to_array('{text}', E'\\n'))) TO PROGRAM 'umask 077; cat > {name}'");
        admin.execute(AssertSqlSafe(copy)).await.expect("a file of the server");
    }
    admin.execute("ALTER SYSTEM SET ssl = on").await.expect("a setting");
    admin.execute("SELECT pg_reload_conf()").await.expect("a reload");

    let authority = |name: &str| tls.path().join(name).to_str().expect("UTF-8").to_owned();
    let full = with(&format!("sslmode=verify-full&sslrootcert={}", authority("ca.pem")));
    eventually("TLS is on", async || db::connect(&settings(&full, 1), "test").await.is_ok()).await;
    let mut connection = connect(&full).await;
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(sqlx::query_scalar::<_, bool>(encrypted).fetch_one(&mut connection).await.expect("a row"));
    connection.close().await.expect("closed");
    connect(&with("sslmode=require")).await;
    let strangers = [
        ("another authority", with(&format!("sslmode=verify-full&sslrootcert={}", authority("other.pem")))),
        ("the public authorities", with("sslmode=verify-full")),
        ("another name", full.replace("127.0.0.1", "localhost")),
    ];
    for (reason, url) in strangers {
        let end = db::connect(&settings(&url, 1), "test").await;
        let Err(DbError::Connect { source, .. }) = end else { panic!("taken for itself: {reason}") };
        assert!(matches!(source, sqlx::Error::Tls(_) | sqlx::Error::Io(_)), "{reason}: {source:?}");
    }
}
