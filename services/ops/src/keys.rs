//! `rollcall keys`: who may use the API with which key.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use common::access::{ApiKey, Client, Scope};
use common::config::{DatabaseSettings, Reader};
use common::db;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::audit;
use crate::output::{note, say, say_once};

/// Two, so that a client can go over to a new key before the old one is revoked; more would be keys that nobody counts.
const MOST_ACTIVE: usize = 2;
/// Limits of the session: another `rollcall keys` may hold the table for a moment.
const SESSION: &str = "SET lock_timeout = '5s'; SET statement_timeout = '10s'";

/// Reads `DATABASE_URL`; with roles, as the migrator.
///
/// An API with AUTH=keys serves whoever sends `Authorization: Bearer KEY`. A key is shown once, when it is made, and only its
/// hash is stored. A new key works at once; a revoked one is refused within 2 seconds, as long as the API can reach the
/// database, and within an hour when it cannot. To change a client's key: create the second, hand it over, revoke the first.
/// Each change leaves a line in the log of the database's server: which key of whom, and by which account.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key and print it: the key alone goes to the output, what to know of it beside that
    Create {
        /// The program that gets it; its commands are recorded as key:NAME
        #[arg(long, value_name = "NAME")]
        client: Client,
        /// What it allows: users:read, users:write, history:read; several with commas, or the option again
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',')]
        scopes: Vec<Scope>,
        /// When it ends by itself, from now: like 12h, 30d, 52w, at most ten years. The default is long enough to change keys
        /// four times a year, and short enough that a forgotten one does not stay
        #[arg(long, value_name = "AGE", default_value = "90d", value_parser = age, conflicts_with = "never")]
        expires_in: Duration,
        /// It never ends by itself
        #[arg(long)]
        never: bool,
        /// Write everything as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List keys by their ids, never the keys themselves
    List {
        /// Only this client's
        #[arg(long, value_name = "NAME")]
        client: Option<Client>,
        /// Those that were revoked or have expired, too
        #[arg(long)]
        all: bool,
        /// Write JSON, one key a line
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys for good
    Revoke {
        /// Their ids, as `rollcall keys list` shows them: the part between the underscores
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// What is known of a key.
struct Row {
    id: String,
    client: String,
    scopes: Vec<String>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    expired: bool,
}

impl Arguments {
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.command, Command::List { .. })
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(settings)?;
    let mut conn = db::connect(&settings, "rollcall-keys").await?;
    sqlx::raw_sql(SESSION).execute(&mut conn).await?;
    match arguments.command {
        Command::Create { client, scopes, expires_in, never, json } => {
            let age = (!never).then_some(expires_in);
            create(&mut conn, &client, &scopes.into_iter().collect(), age, json).await?;
        }
        Command::List { client, all, json } => {
            let rows = list(&mut conn, client.as_ref(), all).await?;
            if !json && !rows.is_empty() {
                say(HEADING);
            }
            for row in &rows {
                say(if json { row.object().to_string() } else { row.line() });
            }
            if !json && rows.is_empty() {
                say(if all { "no keys" } else { "no active keys" });
            }
        }
        Command::Revoke { ids } => revoke(&mut conn, &ids).await?,
    }
    conn.close().await?;
    Ok(())
}

async fn create(
    conn: &mut PgConnection,
    client: &Client,
    scopes: &BTreeSet<Scope>,
    age: Option<Duration>,
    json: bool,
) -> anyhow::Result<()> {
    let key = ApiKey::mint();
    let hash = key.hash();
    let scopes: Vec<String> = scopes.iter().map(Scope::to_string).collect();
    let mut tx = conn.begin().await?;
    // Against another one that counts at the same time; whoever only reads does not wait.
    sqlx::raw_sql("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
    let active = sqlx::query_scalar!(
        r#"
        SELECT id
        FROM api_keys
        WHERE client = $1 AND revoked_at IS NULL AND coalesce(expires_at, 'infinity') > now()
        ORDER BY created_at
        "#,
        client.as_str(),
    )
    .fetch_all(&mut *tx)
    .await?;
    ensure!(
        active.len() < MOST_ACTIVE,
        "{} has {MOST_ACTIVE} active keys already ({}); revoke one first: rollcall keys revoke {}",
        client.as_str(),
        active.join(", "),
        active.first().map_or("ID", String::as_str),
    );
    let row = sqlx::query_as!(
        Row,
        r#"
        INSERT INTO api_keys (id, client, hash, scopes, expires_at)
        VALUES ($1, $2, $3, $4, now() + $5::float8 * interval '1 second')
        RETURNING id, client, scopes, created_at, expires_at, revoked_at, false AS "expired!"
        "#,
        key.id(),
        client.as_str(),
        hash.as_slice(),
        &scopes,
        age.map(Duration::as_seconds_f64),
    )
    .fetch_one(&mut *tx)
    .await?;
    let details =
        json!({ "id": row.id, "client": row.client, "scopes": row.scopes, "expires_at": row.expires_at.map(at) });
    audit::record(&mut tx, "keys create", details).await?;
    // Before the commit: a key that was never shown would still be valid.
    show(&key, &row, json).context("no key was made")?;
    tx.commit().await.context("the key that was printed may not be valid; see `rollcall keys list`")?;
    note(format_args!(
        "The key of {} with {}, id {}, {}. It is shown this once.",
        row.client,
        row.scopes.join(" "),
        row.id,
        row.expires_at.map_or_else(|| "never expires".to_owned(), |end| format!("expires {}", at(end))),
    ));
    Ok(())
}

/// The one time that the key is shown.
fn show(key: &ApiKey, row: &Row, json: bool) -> anyhow::Result<()> {
    if json {
        let mut object = row.object();
        object["key"] = json!(key.expose());
        return say_once(object);
    }
    // Nothing else goes there, so that KEY=$(rollcall keys create …) is the key alone.
    say_once(key.expose())
}

async fn list(conn: &mut PgConnection, client: Option<&Client>, all: bool) -> Result<Vec<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        SELECT
            id, client, scopes, created_at, expires_at, revoked_at,
            coalesce(expires_at, 'infinity') <= now() AS "expired!"
        FROM api_keys
        WHERE ($1::text IS NULL OR client = $1)
            AND ($2 OR (revoked_at IS NULL AND coalesce(expires_at, 'infinity') > now()))
        ORDER BY client, created_at
        "#,
        client.map(Client::as_str),
        all,
    )
    .fetch_all(conn)
    .await
}

/// All or none: a typing error in one id revokes nothing.
async fn revoke(conn: &mut PgConnection, ids: &[String]) -> anyhow::Result<()> {
    let mut tx = conn.begin().await?;
    let mut lines = Vec::with_capacity(ids.len());
    for (number, id) in ids.iter().enumerate() {
        let revoked = sqlx::query!(
            r#"
            UPDATE api_keys
            SET revoked_at = coalesce(revoked_at, now())
            WHERE id = $1
            RETURNING client, revoked_at AS "revoked_at!"
            "#,
            id,
        )
        .fetch_optional(&mut *tx)
        .await?;
        // What was typed may be a whole key: it is not repeated.
        let Some(row) = revoked else {
            bail!(
                "nothing was revoked: there is no key with the id number {}; see rollcall keys list --all",
                number + 1
            )
        };
        lines.push(format!("revoked {id} of {}, {}", row.client, at(row.revoked_at)));
    }
    audit::record(&mut tx, "keys revoke", json!({ "ids": ids })).await?;
    tx.commit().await.context("whether anything was revoked is unknown; see rollcall keys list --all")?;
    lines.iter().for_each(say);
    Ok(())
}

const HEADING: &str = "id          client                scopes                               created               ends                  state";

impl Row {
    fn state(&self) -> &'static str {
        match (self.revoked_at, self.expired) {
            (Some(_), _) => "revoked",
            (None, true) => "expired",
            (None, false) => "active",
        }
    }

    fn line(&self) -> String {
        format!(
            "{:<10}  {:<20}  {:<35}  {:<20}  {:<20}  {}",
            self.id,
            self.client,
            self.scopes.join(" "),
            at(self.created_at),
            self.revoked_at.or(self.expires_at).map_or_else(|| "never".to_owned(), at),
            self.state(),
        )
    }

    fn object(&self) -> serde_json::Value {
        json!({
            "id": self.id,
            "client": self.client,
            "scopes": self.scopes,
            "created_at": at(self.created_at),
            "expires_at": self.expires_at.map(at),
            "revoked_at": self.revoked_at.map(at),
            "state": self.state(),
        })
    }
}

fn at(time: OffsetDateTime) -> String {
    // To the second; a time of this millennium can be written.
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

fn age(text: &str) -> Result<Duration, &'static str> {
    const FAULT: &str = "no age like 90s, 15m, 12h, 90d, 52w, from one second to ten years; say --never for no end";
    let unit = match text.chars().last() {
        Some('s') => Duration::SECOND,
        Some('m') => Duration::MINUTE,
        Some('h') => Duration::HOUR,
        Some('d') => Duration::DAY,
        Some('w') => Duration::WEEK,
        _ => return Err(FAULT),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| FAULT)?;
    let age = i32::try_from(number).ok().and_then(|number| unit.checked_mul(number)).ok_or(FAULT)?;
    if age > Duration::ZERO && age <= Duration::DAY * 3650 { Ok(age) } else { Err(FAULT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_number_and_a_unit() {
        for (text, expected) in [
            ("1s", Duration::SECOND),
            ("15m", Duration::minutes(15)),
            ("12h", Duration::hours(12)),
            ("90d", Duration::days(90)),
            ("52w", Duration::weeks(52)),
            ("3650d", Duration::days(3650)),
        ] {
            assert_eq!(age(text), Ok(expected), "{text}");
        }
        for text in
            ["", "d", "90", "0d", "-1d", "1.5d", "90 d", "90D", "3651d", "99999999999w", "4294967295w", "1y", "1ä"]
        {
            assert!(age(text).is_err_and(|fault| fault.contains("--never")), "{text}");
        }
    }
}
