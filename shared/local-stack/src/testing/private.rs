//! Private PostgreSQL of one test: with settings that the shared one does not have, or counters that no other test moves.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::error::IoStep;
use crate::{Error, Options, Postgres};

/// A PostgreSQL in a temporary folder; both end with the value.
pub struct PrivatePostgres {
    // Before its folder: dropped in this order.
    postgres: Postgres,
    _folder: TempDir,
}

impl PrivatePostgres {
    /// Starts one with these settings. Blocks.
    ///
    /// # Errors
    /// As [`Postgres::start_alone`].
    pub fn start(settings: &[(&str, &str)]) -> Result<Self, Error> {
        // The server's account has to reach its data in it.
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir();
        let folder = folder.step(|| "make a temporary folder".to_owned())?;
        let postgres_settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = Options { install: true, postgres_settings, ..Options::new(folder.path()) };
        Ok(Self { postgres: Postgres::start_alone(options)?, _folder: folder })
    }

    /// The URL to connect with, as a superuser.
    pub fn url(&self) -> &str {
        self.postgres.url()
    }

    /// Asks no client on this machine for its password from now on. Deriving a key from it takes a process that runs under
    /// an instrumenting tool longer than a connection may.
    ///
    /// # Errors
    /// When the server cannot write its rules.
    pub async fn trust_every_client(&self) -> sqlx::Result<()> {
        let mut connection = PgConnection::connect(self.url()).await?;
        let rules = "
            DO $$
            BEGIN
                EXECUTE format($f$COPY (SELECT 'host all all 127.0.0.1/32 trust') TO %L$f$, current_setting('hba_file'));
            END
            $$;
            SELECT pg_reload_conf();
        ";
        connection.execute(rules).await?;
        connection.close().await
    }
}
