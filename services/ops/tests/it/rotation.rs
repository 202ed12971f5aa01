//! Secrets in files that change while the services run.

use std::fs;
use std::sync::Arc;

use local_stack::RabbitMq;
use sqlx::{AssertSqlSafe, PgConnection};
use url::Url;

use crate::harness::{System, eventually, stack};
use crate::outages::own;

/// The same URL for another user.
fn as_user(url: &str, user: &str, password: &str) -> String {
    let mut url = Url::parse(url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.into()
}

async fn execute(database: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(database).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_secrets_count_without_a_restart() {
    let (rabbitmq, _folder) = own(RabbitMq::start_alone).await;
    let rabbitmq = Arc::new(rabbitmq);
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let mut system = System::on(shared.postgres.url(), rabbitmq.url()).await;
    let mut database = system.database().await;
    let user = format!("rotating_{}", std::process::id());
    let files = tempfile::tempdir().unwrap();
    let [database_file, broker_file] = ["database-url", "amqp-url"].map(|name| files.path().join(name));
    let url_of = |name: &str| system.environment.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let (database_url, broker_url) = (url_of("DATABASE_URL"), url_of("AMQP_URL"));
    let write = |password: &str| {
        fs::write(&database_file, as_user(&database_url, &user, password) + "\n").unwrap();
        fs::write(&broker_file, as_user(&broker_url, &user, password)).unwrap();
    };
    let ctl = async |arguments: &[&str]| {
        let (rabbitmq, arguments) =
            (Arc::clone(&rabbitmq), arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
        let run = move || rabbitmq.ctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    };
    let end_sessions = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'");

    execute(&mut database, format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD 'first'")).await;
    ctl(&["add_user", &user, "first"]).await;
    ctl(&["set_permissions", &user, ".*", ".*", ".*"]).await;
    write("first");
    system.environment.retain(|(name, _)| name != "DATABASE_URL" && name != "AMQP_URL");
    system.set("DATABASE_URL_FILE", database_file.to_str().unwrap());
    system.set("AMQP_URL_FILE", broker_file.to_str().unwrap());
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "before@example.org").await;

    execute(&mut database, format!("ALTER ROLE {user} PASSWORD 'second'")).await;
    ctl(&["change_password", &user, "second"]).await;
    execute(&mut database, end_sessions.clone()).await;
    ctl(&["close_all_user_connections", &user, "rotated"]).await;
    eventually("the old password is refused", async || {
        let (line, _) = tokio::join!(api.unready("database"), worker.unready("broker, consuming"));
        line.contains("28P01").then_some(())
    })
    .await;
    write("second");
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "after@example.org").await;

    // A file that is away or of no use at that moment leaves the last value.
    fs::remove_file(&database_file).unwrap();
    fs::write(&broker_file, "").unwrap();
    execute(&mut database, end_sessions.clone()).await;
    ctl(&["close_all_user_connections", &user, "again"]).await;
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "last@example.org").await;
    for process in [&api, &worker] {
        let log = process.output();
        for variable in ["DATABASE_URL_FILE", "AMQP_URL_FILE"] {
            assert!(log.lines().any(|line| line.contains(variable) && line.contains("has another content")), "{log}");
            assert!(log.lines().any(|line| line.contains(variable) && line.contains("its last content")), "{log}");
        }
        assert!(!log.contains("second"), "{log}");
    }
    drop((api, worker));
    execute(&mut database, format!("{end_sessions}; DROP ROLE {user}")).await;
}
