//! What tests take from the shared stack: a database of their own, and a broker prefix of their own. Some need more than that:
//! a pooler, or a server of their own.

mod pooler;
mod private;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use common::config::{DatabaseSettings, database_url};
use common::db;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

pub use pooler::{Lends, Pooler};
pub use private::PrivatePostgres;

use crate::{Error, Options, Stack};

/// The stack that all tests of this repository share; it is installed and started if need be, and ends by itself some
/// time after the last process that used it. Blocks.
///
/// # Errors
/// As [`Stack::start_shared`].
#[expect(clippy::print_stderr, reason = "a test that waits for an installation should say so")]
pub fn shared_stack() -> Result<Stack, Error> {
    let progress = Arc::new(|line: &str| eprintln!("{line}"));
    // Test databases come and go by the dozen, and nothing in them has to survive a power cut. A test that fails can leave
    // a connection half authenticated, which its database's drop would wait for.
    let settings = [("fsync", "off"), ("authentication_timeout", "5s")];
    let postgres_settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    // The queues of tests that were killed would be brought up again each time, and take longer every time.
    let keep_messages = false;
    Stack::start_shared(Options {
        install: true,
        progress,
        postgres_settings,
        keep_messages,
        ..Options::new(STACK_FOLDER)
    })
}

/// Under the build folder, so that `cargo clean` removes it.
const STACK_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-stack");

/// Why a test has no database.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// The server's URL is none.
    #[error("the URL of the test database's server {0}")]
    Url(String),
    /// The server refused.
    #[error("failed to make a test database")]
    Database(#[from] sqlx::Error),
    /// The server could not be reached.
    #[error("failed to reach the test database's server")]
    Connect(#[from] db::DbError),
    /// The template could not be migrated.
    #[error("failed to migrate the template")]
    Migrate(#[from] db::MigrateError),
}

/// A migrated database for one test; it is dropped with the value.
#[derive(Debug)]
pub struct TestDatabase {
    admin: String,
    name: String,
    url: String,
}

impl TestDatabase {
    /// Makes one on the server behind `admin`, a URL of a role that may create databases. The first call of each schema
    /// migrates a template; the others copy it.
    ///
    /// # Errors
    /// See [`TestError`].
    pub async fn create(admin: &str) -> Result<Self, TestError> {
        let mut connection = connect(admin).await?;
        let template = template(&mut connection, admin).await?;
        let name = unique("t_");
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        connection.execute(AssertSqlSafe(create)).await?;
        connection.close().await?;
        Ok(Self { admin: admin.to_owned(), url: with_database(admin, &name)?, name })
    }

    /// Its URL, with the same role.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        // A thread with a runtime of its own, because the test's may be ending.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut connection = connect(&admin).await.ok()?;
                connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.ok()
            })
        });
        let _ = dropping.join();
    }
}

/// A broker prefix that no other test uses.
pub fn broker_prefix() -> String {
    unique("t-") + "."
}

fn unique(prefix: &str) -> String {
    // Randomly keyed for each value.
    format!("{prefix}{:016x}", RandomState::new().build_hasher().finish())
}

async fn template(connection: &mut PgConnection, admin: &str) -> Result<String, TestError> {
    let name = format!("template_{}", db::migrations_fingerprint());
    // Held until this connection ends: other processes wait for the template instead of making it too.
    sqlx::query("SELECT pg_advisory_lock(1)").execute(&mut *connection).await?;
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(&name)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        // Made under another name, so that one which was killed half-way is never taken for a template.
        let draft = unique("draft_");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {draft}"))).await?;
        let mut inside = connect(&with_database(admin, &draft)?).await?;
        db::migrate(&mut inside, Duration::from_secs(30)).await?;
        inside.close().await?;
        connection.execute(AssertSqlSafe(format!("ALTER DATABASE {draft} RENAME TO {name}"))).await?;
    }
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut *connection).await?;
    Ok(name)
}

async fn connect(url: &str) -> Result<PgConnection, TestError> {
    let url = database_url(url).map_err(TestError::Url)?;
    Ok(db::connect(&DatabaseSettings { url, connections: 1 }, "rollcall-test").await?)
}

fn with_database(url: &str, name: &str) -> Result<String, TestError> {
    let mut url = Url::parse(url).map_err(|fault| TestError::Url(fault.to_string()))?;
    url.set_path(name);
    Ok(url.into())
}
