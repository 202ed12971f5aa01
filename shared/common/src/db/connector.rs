//! Opens connections: what each session asks of the server, and going on without where a host refuses that.
//!
//! # Why startup options and not `SET`?
//! Behind a pooler a `SET` would stay on the server's session for whoever comes next, and it costs a round trip.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tracing::warn;

use super::{CONNECT_DEADLINE, DbError};
use crate::config::{DatabaseSettings, DatabaseUrl, Server, Tls};

/// What the server shall do about a client that is gone without a word. Measured: a partition is noticed after 5 s
/// instead of a minute, and a statement whose client was killed ends within the interval instead of at its own end.
const SESSION: [(&str, &str); 5] = [
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "6000"),
    ("client_connection_check_interval", "100"),
];

/// Opens connections of one kind.
#[derive(Debug)]
pub(super) struct Connector {
    asking: PgConnectOptions,
    plain: PgConnectOptions,
    address: String,
    refused: Arc<AtomicBool>,
}

impl Connector {
    /// For sessions with this name and these settings.
    pub(super) fn new(
        settings: &DatabaseSettings,
        application_name: &str,
        session: &[(&str, &str)],
    ) -> Result<Self, DbError> {
        let plain = options(&settings.url)?
            // Always ours: the members of a deployment know each other's sessions by it.
            .application_name(application_name)
            // sqlx logs every statement with its duration; ours are traced where they mean something.
            .disable_statement_logging();
        Ok(Self {
            asking: plain.clone().options(SESSION.iter().chain(session).copied()),
            plain,
            address: settings.url.address(),
            refused: Arc::clone(&settings.url.refuses_options),
        })
    }

    /// Opens one.
    pub(super) async fn connect(&self) -> Result<PgConnection, DbError> {
        if self.refused.load(Ordering::Relaxed) {
            return self.open(&self.plain).await;
        }
        let reason = match self.open(&self.asking).await {
            Err(DbError::Connect { source, .. }) if refuses_options(&source) => source,
            end => return end,
        };
        let connection = self.open(&self.plain).await?;
        if !self.refused.swap(true, Ordering::Relaxed) {
            warn!(
                %reason,
                "the server, or a pooler in front of it, refuses startup options: going on without the session's own \
                 settings; a client that vanishes is noticed later"
            );
        }
        Ok(connection)
    }

    async fn open(&self, options: &PgConnectOptions) -> Result<PgConnection, DbError> {
        match tokio::time::timeout(CONNECT_DEADLINE, PgConnection::connect_with(options)).await {
            Ok(connected) => connected.map_err(|source| DbError::Connect { address: self.address.clone(), source }),
            Err(_) => Err(DbError::Deadline(CONNECT_DEADLINE)),
        }
    }
}

/// Protocol violation (poolers), unknown parameter (older servers), value, privilege, feature not supported.
fn refuses_options(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(&*code, "08P01" | "42704" | "22023" | "42501" | "0A000"))
}

/// Everything is set, so that nothing comes from the library's own look at the environment but the user's name.
fn options(url: &DatabaseUrl) -> Result<PgConnectOptions, DbError> {
    let mut options = match &url.options {
        None => PgConnectOptions::new_without_pgpass(),
        // The library has no other way to take them whole. The password keeps it from looking for one in a file.
        Some(asked) => {
            let asked = utf8_percent_encode(asked.expose_secret(), NON_ALPHANUMERIC);
            format!("postgres://nobody:none@localhost/none?options={asked}").parse()?
        }
    };
    options = match &url.server {
        Server::Tcp { host, port } => options.host(host).port(*port),
        Server::Socket { folder, port } => options.host("localhost").socket(folder).port(*port),
    };
    if let Some(user) = &url.user {
        options = options.username(user);
    }
    options = options.database(&url.database).password(url.password.as_ref().map_or("", ExposeSecret::expose_secret));
    options = match &url.tls {
        Tls::Off => options.ssl_mode(PgSslMode::Disable),
        Tls::IfOffered => options.ssl_mode(PgSslMode::Prefer),
        Tls::Unverified => options.ssl_mode(PgSslMode::Require),
        Tls::Verified(None) => options.ssl_mode(PgSslMode::VerifyFull),
        Tls::Verified(Some(authority)) => options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(authority),
    };
    if let Some(client) = &url.certificate {
        options = options.ssl_client_cert(&client.certificate).ssl_client_key(&client.key);
    }
    // Results are binary; poolers refuse the setting.
    Ok(options.extra_float_digits(None))
}
