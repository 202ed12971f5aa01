//! Changes of the deployment's settings: how they are written, and what each must leave intact.

use std::fmt;

use anyhow::{Context, ensure};
use sqlx::{Connection, PgConnection};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// None computes it.
    Budget(Option<i32>),
    RetentionDays(i32),
    WindowHours(i32),
    EventSource(String),
    Partitions(i32),
    Prefix(String),
    Broker,
}

impl fmt::Display for Change {
    /// As it is typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget(None) => f.write_str("budget=computed"),
            Self::Budget(Some(budget)) => write!(f, "budget={budget}"),
            Self::RetentionDays(days) => write!(f, "retention={days}"),
            Self::WindowHours(hours) => write!(f, "window={hours}"),
            Self::EventSource(source) => write!(f, "event-source={source}"),
            Self::Partitions(partitions) => write!(f, "partitions={partitions}"),
            Self::Prefix(prefix) => write!(f, "prefix={prefix}"),
            Self::Broker => f.write_str("broker"),
        }
    }
}

/// Reads one as it is typed.
pub(super) fn parse(text: &str) -> Result<Change, String> {
    const KNOWN: &str = "expected budget=N, budget=computed, retention=DAYS, window=HOURS, event-source=URI, partitions=N, \
                         prefix=PREFIX or broker";
    if text == "broker" {
        return Ok(Change::Broker);
    }
    let (name, value) = text.split_once('=').ok_or(KNOWN)?;
    let number = |range: std::ops::RangeInclusive<i32>| match value.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("{name}: {value:?} is no number from {} to {}", range.start(), range.end())),
    };
    match name {
        "budget" if value == "computed" => Ok(Change::Budget(None)),
        "budget" => number(6..=10_000).map(|budget| Change::Budget(Some(budget))),
        "retention" => number(1..=3650).map(Change::RetentionDays),
        "window" => number(1..=720).map(Change::WindowHours),
        "event-source" if !value.is_empty() => Ok(Change::EventSource(value.to_owned())),
        "partitions" => number(1..=1024).map(Change::Partitions),
        "prefix" => {
            let fits = value.len() <= 100 && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            let limit = r#"prefix: use at most 100 of a-z, A-Z, 0-9, ".", "_", "-""#;
            fits.then(|| Change::Prefix(value.to_owned())).ok_or_else(|| limit.to_owned())
        }
        _ => Err(KNOWN.to_owned()),
    }
}

/// Makes all changes, or none; gives what to say of each.
pub(super) async fn apply(conn: &mut PgConnection, changes: &[Change]) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::with_capacity(changes.len());
    let mut tx = conn.begin().await?;
    // Joins and heartbeats come before or after all of it.
    sqlx::query!("SELECT FROM membership FOR UPDATE").fetch_all(&mut *tx).await?;
    let known = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM deployment"#).fetch_one(&mut *tx).await?;
    ensure!(known == 1, "no process has joined yet; the first one writes its settings down");
    for change in changes {
        lines.push(make(&mut tx, change).await?);
    }
    let fits = sqlx::query_scalar!(
        r#"SELECT idempotency_window_hours <= 24 * command_retention_days AS "fits!" FROM deployment"#
    )
    .fetch_one(&mut *tx)
    .await?;
    ensure!(
        fits,
        "the window exceeds the retention; a retry is answered with the first outcome, so that must still be there"
    );
    tx.commit().await.context("whether anything was changed is unknown; see `rollcall deployment show`")?;
    Ok(lines)
}

async fn make(conn: &mut PgConnection, change: &Change) -> anyhow::Result<String> {
    Ok(match change {
        Change::Budget(wished) => {
            let set = sqlx::query!(
                r#"SELECT budget AS "budget!", arithmetic AS "arithmetic!" FROM set_connection_budget($1)"#,
                *wished
            )
            .fetch_one(conn)
            .await?;
            let next = wished.map_or("unset DATABASE_CONNECTION_BUDGET".to_owned(), |budget| {
                format!("set DATABASE_CONNECTION_BUDGET={budget}")
            });
            format!(
                "the budget is {} ({}) from now on; {next} for every process before its next start",
                set.budget, set.arithmetic
            )
        }
        Change::RetentionDays(days) => {
            sqlx::query!("UPDATE deployment SET command_retention_days = $1", days).execute(conn).await?;
            restart("COMMAND_RETENTION_DAYS", days)
        }
        Change::WindowHours(hours) => {
            sqlx::query!("UPDATE deployment SET idempotency_window_hours = $1", hours).execute(conn).await?;
            restart("IDEMPOTENCY_WINDOW_HOURS", hours)
        }
        Change::EventSource(source) => {
            sqlx::query!("UPDATE deployment SET event_source = $1", source).execute(conn).await?;
            restart("EVENT_SOURCE", source)
        }
        Change::Partitions(partitions) => {
            unused(conn).await?;
            sqlx::query!("DELETE FROM partitions").execute(&mut *conn).await?;
            sqlx::query!("INSERT INTO partitions (number) SELECT generate_series(0, $1 - 1)", partitions)
                .execute(&mut *conn)
                .await?;
            sqlx::query!("UPDATE deployment SET partitions = $1", partitions).execute(conn).await?;
            restart("PARTITIONS", partitions)
        }
        Change::Prefix(prefix) => {
            unused(conn).await?;
            // The exchange that marks the broker has the prefix in its name.
            sqlx::query!("UPDATE deployment SET broker_prefix = $1, broker_mark = NULL", prefix).execute(conn).await?;
            restart("BROKER_PREFIX", prefix)
        }
        Change::Broker => {
            sqlx::query!("UPDATE deployment SET broker_mark = NULL").execute(conn).await?;
            "the next worker to reach a broker marks it as this deployment's; commands that waited at another one are not applied"
                .to_owned()
        }
    })
}

fn restart(variable: &str, value: impl std::fmt::Display) -> String {
    format!("set {variable}={value} for every process and start it again; those that run keep the old value until then")
}

/// What decides where commands go can change only as long as there are none.
async fn unused(conn: &mut PgConnection) -> anyhow::Result<()> {
    let used = sqlx::query!(
        r#"
        SELECT
            EXISTS (SELECT FROM members WHERE expires_at > clock_timestamp()) AS "members!",
            -- The table of a day is made before it has rows.
            EXISTS (SELECT FROM commands) OR EXISTS (SELECT FROM command_days WHERE dropped_at IS NOT NULL) AS "commands!"
        "#
    )
    .fetch_one(conn)
    .await?;
    ensure!(!used.members, "processes run; stop them first, because they publish under the old value");
    ensure!(
        !used.commands,
        "commands were applied under the old value, and the order of each user's commands depends on it; make a deployment with \
         a database and a prefix of its own instead"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_known_name_and_a_value_within_the_settings_limits() {
        for (text, expected) in [
            ("budget=20", Change::Budget(Some(20))),
            ("budget=computed", Change::Budget(None)),
            ("retention=60", Change::RetentionDays(60)),
            ("window=1", Change::WindowHours(1)),
            ("event-source=/here", Change::EventSource("/here".to_owned())),
            ("partitions=8", Change::Partitions(8)),
            ("prefix=", Change::Prefix(String::new())),
            ("broker", Change::Broker),
        ] {
            assert_eq!(expected.to_string(), text);
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for text in
            ["", "budget", "budget=5", "budget=many", "retention=0", "window=721", "broker=x", "prefix=a b", "x=1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("retention=0"), Err("retention: \"0\" is no number from 1 to 3650".to_owned()));
    }
}
