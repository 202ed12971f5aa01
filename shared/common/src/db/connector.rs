//! Opens connections: what each session asks of the server, going on without where a host refuses that, and finding out
//! whether a pooler is in front of it.
//!
//! # Why startup options and not `SET`?
//! Behind a pooler a `SET` would stay on the server's session for whoever comes next, and it costs a round trip.
//!
//! # How does a pooler show?
//! None that lends sessions by the transaction heeds these options: it refuses or ignores them. That alone proves nothing,
//! but then two connections that are open at once are asked for their sessions on the server, which only a pooler mixes up.

use std::net::IpAddr;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use tracing::warn;

use super::session::Session;
use super::{CONNECT_DEADLINE, DbError, relay, within};
use crate::config::{DatabaseSettings, DatabaseUrl, Reached, Server, Tls};
use crate::net;

/// How every transaction must be isolated, whatever the database's default is: a statement that waited for another transaction
/// goes on with what that one did.
const ISOLATION: (&str, &str) = ("default_transaction_isolation", "read committed");

/// What the server does about a client that is gone without a word, and defaults of a database or role that must not count here.
/// Measured: a partition is noticed after 5 s instead of a minute, and a statement whose client was killed ends within the
/// interval instead of at its own end.
const SESSION: [(&str, &str); 7] = [
    ISOLATION,
    // A connection that waits in a pool is not forgotten.
    ("idle_session_timeout", "0"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "6000"),
    ("client_connection_check_interval", "100"),
];

/// The setting that says whether a session may write.
pub(super) const READ_ONLY: &str = "default_transaction_read_only";

/// What shows that the options were heeded; on a socket of the file system the others do not apply.
const HEEDED: (&str, &str) = ("client_connection_check_interval", "100ms");

/// What a use behind a pooler asks of the server for itself: when its client vanishes the pooler closes the connection, and
/// the server shall notice, and not hold its locks. Longer than any deadline of ours, unless the use asks for something else.
const LIMITS: [(&str, &str); 3] = [
    ("client_connection_check_interval", "100ms"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("statement_timeout", "15s"),
];

/// Corrects defaults that only some servers have. `off` would acknowledge messages whose changes a crash undoes; every other
/// value is the operator's to choose. Since PostgreSQL 17 a transaction can be ended for its length, which a migration, an export
/// or a batch that waits for a lock cannot bear. `%` says whether it counts for the transaction or for the session.
const CORRECTIONS: &str = "SELECT
    CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', %) END,
    CASE WHEN current_setting('transaction_timeout', true) <> '0' THEN set_config('transaction_timeout', '0', %) END";

/// How often two connections are asked for their sessions before they are taken for direct ones.
const COMPARISONS: usize = 5;

/// Opens connections of one kind.
#[derive(Debug)]
pub(super) struct Connector {
    asking: PgConnectOptions,
    plain: PgConnectOptions,
    pooled: PgConnectOptions,
    begin: String,
    /// What is asked of a session that refused it as options.
    settings: Vec<String>,
    url: DatabaseUrl,
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
        let access = match session.iter().find(|(name, _)| *name == READ_ONLY) {
            Some((_, "on")) => " READ ONLY",
            Some(_) => " READ WRITE",
            None => "",
        };
        let set = |local: &str, (name, value): (&str, &str)| format!("SET {local}{name} = '{value}'");
        // A later one counts.
        let limits = LIMITS.iter().chain(session).filter(|(name, _)| *name != READ_ONLY);
        let begin = limits.map(|setting| set("LOCAL ", *setting)).collect::<Vec<_>>().join("; ");
        Ok(Self {
            asking: plain.clone().options(SESSION.iter().chain(session).copied()),
            // Under a name that no budget counts: the sessions are the pooler's.
            pooled: plain.clone().application_name(&application_name.replacen("rollcall", "rollcall-pooled", 1)),
            plain,
            begin: format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED{access}; {begin}; {}",
                CORRECTIONS.replace('%', "true")
            ),
            settings: SESSION.iter().chain(session).map(|setting| set("", *setting)).collect(),
            url: settings.url.clone(),
        })
    }

    /// Opens one.
    pub(super) async fn connect(&self) -> Result<Session, DbError> {
        let mut first = None;
        // Whoever comes meanwhile waits for the answer: it takes two connections to find out.
        let reached = self.url.reached.get_or_try_init(async || {
            let (reached, connection) = self.find_out().await?;
            first = connection;
            Ok::<_, DbError>(reached)
        });
        let reached = *reached.await?;
        let (options, begin) = match reached {
            Reached::Directly => (&self.asking, None),
            Reached::WithoutOptions => (&self.plain, None),
            Reached::ThroughPooler => (&self.pooled, Some(self.begin.clone())),
        };
        let mut connection = match first {
            Some(connection) => connection,
            None => self.open(options).await?,
        };
        if reached == Reached::WithoutOptions {
            self.set(&mut connection).await?;
        }
        if reached != Reached::ThroughPooler {
            let correcting = sqlx::raw_sql(AssertSqlSafe(CORRECTIONS.replace('%', "false")));
            within(CONNECT_DEADLINE, correcting.execute(&mut connection)).await?;
        }
        Ok(Session::new(connection, begin))
    }

    /// Asks for each setting by itself: what a host refuses, and older servers do not know, is gone without.
    async fn set(&self, connection: &mut PgConnection) -> Result<(), DbError> {
        for setting in &self.settings {
            let set = sqlx::raw_sql(AssertSqlSafe(setting.clone())).execute(&mut *connection);
            match within(CONNECT_DEADLINE, set).await {
                Err(DbError::Statement(error)) if error.as_database_error().is_none() => return Err(error.into()),
                Err(late @ DbError::Deadline(_)) => return Err(late),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the server was found behind a pooler.
    pub(super) fn through_pooler(&self) -> bool {
        self.url.reached.get() == Some(&Reached::ThroughPooler)
    }

    /// How the server is reached, and the connection that told it, if it can be used.
    async fn find_out(&self) -> Result<(Reached, Option<PgConnection>), DbError> {
        let (mut connection, reason) = match self.open(&self.asking).await {
            Err(DbError::Connect { source, .. }) if refuses_options(&source) => {
                (self.open(&self.plain).await?, source.to_string())
            }
            opened => {
                let mut connection = opened?;
                let (name, value) = HEEDED;
                let heeded: Option<String> =
                    self.ask(&mut connection, format!("SELECT current_setting('{name}', true)")).await?;
                if heeded.as_deref() == Some(value) {
                    return Ok((Reached::Directly, Some(connection)));
                }
                (connection, "they had no effect".to_owned())
            }
        };
        if self.shares_sessions(&mut connection).await? {
            warn!(
                address = %self.url.address(),
                "a pooler that lends the server's sessions by the transaction is in front of the database: the connection \
                 budget cannot count them, so this process uses up to DATABASE_POOL_MAX of the pooler's connections, whatever \
                 others need; every use is a transaction of its own, which costs round trips; set DATABASE_URL_DIRECT to \
                 the server itself for what needs a session, or do without the pooler"
            );
            return Ok((Reached::ThroughPooler, None));
        }
        warn!(
            %reason,
            "the server, or a pooler in front of it, refuses startup options: each setting is asked for by itself, and those \
             that are refused are gone without; a client that vanishes may be noticed later"
        );
        Ok((Reached::WithoutOptions, Some(connection)))
    }

    /// Whether two connections that are open at once have, at one time or another, the same session on the server, or one
    /// has two.
    async fn shares_sessions(&self, first: &mut PgConnection) -> Result<bool, DbError> {
        let mut second = self.open(&self.plain).await?;
        let mut sessions: [Vec<i32>; 2] = Default::default();
        for _ in 0..COMPARISONS {
            for (connection, sessions) in [&mut *first, &mut second].into_iter().zip(&mut sessions) {
                sessions.push(self.ask(connection, "SELECT pg_backend_pid()".to_owned()).await?);
            }
        }
        let [first, second] = sessions;
        let same = |sessions: &[i32]| sessions.iter().all(|session| Some(session) == sessions.first());
        Ok(!same(&first) || !same(&second) || first.first() == second.first())
    }

    /// Asks without preparing anything.
    async fn ask<T>(&self, connection: &mut PgConnection, question: String) -> Result<T, DbError>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let row = sqlx::raw_sql(AssertSqlSafe(question)).fetch_one(connection);
        Ok(within(CONNECT_DEADLINE, row).await?.try_get(0)?)
    }

    async fn open(&self, options: &PgConnectOptions) -> Result<PgConnection, DbError> {
        let mut options = authenticated(options.clone(), self.url.credentials());
        if let Some(address) = self.answering_address().await {
            options = options.host(&address.to_string());
        }
        let connecting = async {
            if self.url.unproven() {
                let socket = relay::open(&self.url).await?;
                options = options.host("localhost").socket(socket).port(relay::PORT).ssl_mode(PgSslMode::Disable);
            }
            PgConnection::connect_with(&options).await
        };
        match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(connected) => connected.map_err(|source| DbError::Connect { address: self.url.address(), source }),
            Err(_) => Err(DbError::Deadline(CONNECT_DEADLINE)),
        }
    }

    /// An address that accepts, where the host has several. The client library tries one after the other, each for as long
    /// as the kernel does, so one that never answers would use up the deadline every time.
    ///
    /// Not with `sslmode=verify-full`: the library compares the certificate with the host that it is given. The relay looks for
    /// one itself.
    async fn answering_address(&self) -> Option<IpAddr> {
        let Server::Tcp { host, port } = &self.url.server else { return None };
        if matches!(self.url.tls, Tls::Verified(_)) || self.url.unproven() {
            return None;
        }
        let addresses = net::resolve(host, *port).await.ok().filter(|addresses| addresses.len() > 1)?;
        net::first_to_accept(&addresses).await.map(|address| address.ip())
    }
}

/// Protocol violation (poolers), unknown parameter (older servers), value, privilege, feature not supported.
fn refuses_options(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(&*code, "08P01" | "42704" | "22023" | "42501" | "0A000"))
}

/// With the user and the password that count now.
fn authenticated(
    options: PgConnectOptions,
    (user, password): (Option<String>, Option<SecretString>),
) -> PgConnectOptions {
    let options = options.password(password.as_ref().map_or("", ExposeSecret::expose_secret));
    match user {
        Some(user) => options.username(&user),
        None => options,
    }
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
    options = authenticated(options.database(&url.database), url.credentials());
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
