//! `rollcall budget`: who has how many of the database's connections.

use std::fmt::Write;
use std::time::Duration;

use common::config::{DatabaseSettings, Reader};
use common::db;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::output::{closed, say};

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`.
///
/// One line per instance: what it was granted, what it has open and in use, who waits for a connection there, and how old
/// its last heartbeat is. Each instance has one control connection besides.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// Look again and again, each so many seconds
    #[arg(
        long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    watch: Option<u64>,
}

struct Member {
    instance: Uuid,
    service: String,
    version: String,
    /// Unknown where a pooler is in front of the server.
    granted: Option<i32>,
    target: Option<i32>,
    sessions: i32,
    in_use: i32,
    waiting: i32,
    heartbeat_age: f64,
}

struct Total {
    budget: i32,
    arithmetic: String,
    arrivals: i32,
    taken: i64,
    sessions: i64,
    usable: i32,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(settings)?;
    let mut conn = db::connect(&settings, "rollcall-budget").await?;
    loop {
        let (total, members) = (total(&mut conn).await?, members(&mut conn).await?);
        say(if arguments.json { object(&total, &members).to_string() } else { table(&total, &members) });
        let Some(seconds) = arguments.watch.filter(|_| !closed()) else { break };
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        if !arguments.json {
            say("");
        }
    }
    conn.close().await?;
    Ok(())
}

async fn total(conn: &mut PgConnection) -> Result<Total, sqlx::Error> {
    sqlx::query_as!(
        Total,
        r#"
        SELECT
            budget,
            arithmetic,
            arrival_places(budget) AS "arrivals!",
            taken_connections() AS "taken!",
            (
                SELECT count(*)
                FROM pg_stat_activity
                WHERE datname = current_database() AND application_name ~ '^rollcall(-control)?/'
            ) AS "sessions!",
            (
                SELECT usable
                FROM connection_limits(coalesce(
                    -- The role of the services may be given less than the server has, and the operator's less than that.
                    (
                        SELECT usename
                        FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name LIKE 'rollcall/%'
                        LIMIT 1
                    ),
                    session_user
                )::text)
            ) AS "usable!"
        FROM membership
        "#
    )
    .fetch_one(conn)
    .await
}

async fn members(conn: &mut PgConnection) -> Result<Vec<Member>, sqlx::Error> {
    sqlx::query_as!(
        Member,
        r#"
        SELECT
            instance, service, version, in_use, waiting,
            CASE WHEN most > 0 THEN granted END AS granted,
            CASE WHEN most > 0 THEN target END AS target,
            CASE WHEN most > 0 THEN coalesce(sessions, 0) ELSE open END AS "sessions!",
            extract(epoch FROM clock_timestamp() - beat_at)::double precision AS "heartbeat_age!"
        FROM members
        LEFT JOIN pool_sessions() ON pool = 'rollcall/' || instance
        ORDER BY service, epoch
        "#
    )
    .fetch_all(conn)
    .await
}

fn table(total: &Total, members: &[Member]) -> String {
    let mut text = format!(
        "{:<36}  {:<7}  {:>7}  {:>6}  {:>4}  {:>6}  {:>7}  {:>9}  {}",
        "instance", "service", "granted", "target", "open", "in use", "waiting", "heartbeat", "version",
    );
    for m in members {
        // Writing to a text cannot fail.
        let _ = write!(
            text,
            "\n{:<36}  {:<7}  {:>7}  {:>6}  {:>4}  {:>6}  {:>7}  {:>7.1} s  {}",
            m.instance,
            m.service,
            m.granted.map_or_else(|| "pooler".to_owned(), |granted| granted.to_string()),
            m.target.map_or_else(|| "-".to_owned(), |target| target.to_string()),
            m.sessions,
            m.in_use,
            m.waiting,
            m.heartbeat_age,
            m.version,
        );
    }
    let _ = write!(
        text,
        "\ntotal: {} open now, {} taken of {} ({} instances with a control connection each, {} kept for arrivals); the server gives {}\nbudget: {}",
        total.sessions,
        total.taken,
        total.budget,
        members.len(),
        total.arrivals,
        total.usable,
        if total.arithmetic.is_empty() { "no process has joined yet" } else { &total.arithmetic },
    );
    text
}

fn object(total: &Total, members: &[Member]) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|m| {
            json!({
                "instance": m.instance,
                "service": m.service,
                "version": m.version,
                "granted": m.granted,
                "target": m.target,
                "open": m.sessions,
                "in_use": m.in_use,
                "waiting": m.waiting,
                "heartbeat_age_seconds": m.heartbeat_age,
            })
        })
        .collect();
    json!({
        "budget": total.budget,
        "arithmetic": total.arithmetic,
        "kept_for_arrivals": total.arrivals,
        "taken": total.taken,
        "open": total.sessions,
        "usable": total.usable,
        "instances": members,
    })
}
