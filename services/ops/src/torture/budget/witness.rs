//! Counts the deployment's sessions on the server, all the time. The loop runs in the server, on a connection of its own: a
//! client that has to share two cores with everything else could not keep the pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use common::config::{DatabaseSettings, database_url};
use common::db;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ROLE;
use crate::torture::system::System;

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_millis(5);
/// Samples of one statement: what a restart of the server may take with it.
const ROUNDS: i32 = 20;
/// A server that is down comes back at any time.
const RETRY: Duration = Duration::from_millis(20);
/// What of the shares must be granted, in hundredths.
pub(super) const USED: i32 = 95;
/// How many excesses are shown.
const SHOWN: usize = 5;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) samples: u64,
    /// Samples that came more than twice the interval after the one before.
    pub(super) late: u64,
    pub(super) widest: Duration,
    /// How often the server went down meanwhile.
    pub(super) outages: u32,
    pub(super) most: i32,
    /// The most that all members together might have had, by their rows.
    pub(super) promised: i32,
    /// Samples with more sessions than the budget has, or more promised, and who had what.
    pub(super) over: u64,
    pub(super) excesses: Vec<String>,
    /// Samples while nothing had happened for a while, and those of them with enough granted.
    pub(super) calm: u64,
    pub(super) used: u64,
    /// What was granted or a control connection in calm samples, and what the budget was.
    pub(super) taken: u64,
    pub(super) budget: u64,
}

/// At work until it is asked what it saw.
pub(super) struct Witness {
    over: Arc<AtomicBool>,
    calm: Arc<AtomicBool>,
    watching: JoinSet<anyhow::Result<Seen>>,
}

/// What one statement saw.
#[derive(sqlx::FromRow)]
struct Batch {
    began_at: OffsetDateTime,
    ended_at: OffsetDateTime,
    widest_ms: f64,
    late: i32,
    most: i32,
    promised: i32,
    over: i32,
    excess: Option<String>,
    used: i32,
    taken: i64,
}

/// Everything of the services' role counts: pools, control connections, and what should not be.
const SAMPLE: &str = "
CREATE FUNCTION soak.sample(
    rounds integer, pause_ms double precision, budget integer, role oid, calm boolean, needed integer,
    OUT began_at timestamptz, OUT ended_at timestamptz, OUT widest_ms double precision, OUT late integer,
    OUT most integer, OUT promised integer, OUT over integer, OUT excess text, OUT used integer, OUT taken bigint
)
    LANGUAGE plpgsql
    AS $$
DECLARE
    due timestamptz := clock_timestamp();
    sessions integer;
    gap double precision;
    shared integer;
    rights integer;
    granted_now integer;
BEGIN
    began_at := due;
    ended_at := due;
    widest_ms := 0; late := 0; most := 0; promised := 0; over := 0; used := 0; taken := 0;
    FOR round IN 1..rounds LOOP
        PERFORM pg_stat_clear_snapshot();
        SELECT count(*) INTO sessions FROM pg_stat_get_activity(NULL) WHERE usesysid = role;
        gap := extract(epoch FROM clock_timestamp() - ended_at) * 1000;
        ended_at := clock_timestamp();
        widest_ms := greatest(widest_ms, gap);
        late := late + (gap > 2 * pause_ms)::integer;
        most := greatest(most, sessions);
        -- A control connection each, what it may have open, and what may be shared out.
        SELECT
            count(instance) + coalesce(sum(granted), 0),
            coalesce(sum(granted), 0),
            least(membership.budget - arrival_places(membership.budget) - count(instance), sum(members.most))
        INTO rights, granted_now, shared
        FROM membership
        LEFT JOIN members ON true
        GROUP BY membership.budget;
        promised := greatest(promised, rights);
        IF greatest(sessions, rights) > budget THEN
            over := over + 1;
            excess := coalesce(excess, (
                SELECT format('%s open, %s promised at %s: ', sessions, rights, ended_at) || string_agg(
                    format('%s %s of %s', right(name, 4), seen, coalesce(granted::text, 'none')), ', ' ORDER BY name
                )
                FROM (
                    SELECT
                        substring(application_name FROM '/(.*)') AS name,
                        count(*) FILTER (WHERE application_name LIKE '%-control/%') || '+'
                            || count(*) FILTER (WHERE application_name NOT LIKE '%-control/%') AS seen
                    FROM pg_stat_get_activity(NULL)
                    WHERE usesysid = role
                    GROUP BY name
                ) AS instances
                LEFT JOIN members ON name = instance::text
            ));
        END IF;
        IF calm THEN
            used := used + (granted_now * 100 >= shared * needed)::integer;
            taken := taken + rights;
        END IF;
        due := due + pause_ms * interval '1 millisecond';
        PERFORM pg_sleep(extract(epoch FROM due - clock_timestamp()));
    END LOOP;
END
$$";

impl Witness {
    /// Begins to count.
    pub(super) async fn start(system: &System, budget: i32) -> anyhow::Result<Self> {
        let mut connection = system.database().await?;
        for statement in ["CREATE SCHEMA soak", SAMPLE] {
            sqlx::query(statement).execute(&mut connection).await?;
        }
        connection.close().await?;
        let (over, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let url = database_url(system.stack.postgres.url()).map_err(anyhow::Error::msg)?;
        let settings = DatabaseSettings { url, connections: 1 };
        let mut watching = JoinSet::new();
        watching.spawn(watch(settings, budget, Arc::clone(&over), Arc::clone(&calm)));
        Ok(Self { over, calm, watching })
    }

    /// Says whether nothing happens: then everything should be in use.
    pub(super) fn calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::SeqCst);
    }

    /// Ends it.
    pub(super) async fn finish(mut self) -> anyhow::Result<Seen> {
        self.over.store(true, Ordering::SeqCst);
        self.watching.join_next().await.context("nobody watched")??
    }
}

async fn watch(
    settings: DatabaseSettings,
    budget: i32,
    over: Arc<AtomicBool>,
    calm: Arc<AtomicBool>,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    while !over.load(Ordering::SeqCst) {
        let Ok(mut connection) = db::connect(&settings, "rollcall-torture").await else {
            sleep(RETRY).await;
            continue;
        };
        let mut last = None;
        while !over.load(Ordering::SeqCst) {
            let was_calm = calm.load(Ordering::SeqCst);
            let batch = match sample(&mut connection, budget, was_calm).await {
                Ok(batch) => batch,
                Err(error) if away(&error) => {
                    seen.outages += 1;
                    break;
                }
                // Whoever sees nothing has seen nothing wrong.
                Err(error) => return Err(error).context("failed to watch"),
            };
            seen.add(&batch, last.replace(batch.ended_at));
            if was_calm && calm.load(Ordering::SeqCst) {
                seen.add_calm(&batch, budget);
            }
        }
    }
    Ok(seen)
}

/// Whether the server stopped, with or without a word: administrator or crash shutdown, or it cannot be used now.
fn away(error: &sqlx::Error) -> bool {
    match error.as_database_error() {
        Some(said) => said.code().is_some_and(|code| matches!(&*code, "57P01" | "57P02" | "57P03")),
        None => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)),
    }
}

async fn sample(connection: &mut PgConnection, budget: i32, calm: bool) -> sqlx::Result<Batch> {
    let query = "
        SELECT began_at, ended_at, widest_ms, late, most, promised, over, excess, used, taken
        FROM soak.sample($1, $2, $3, $4::regrole, $5, $6)
    ";
    sqlx::query_as(query)
        .bind(ROUNDS)
        .bind(INTERVAL.as_secs_f64() * 1000.0)
        .bind(budget)
        .bind(ROLE)
        .bind(calm)
        .bind(USED)
        .fetch_one(connection)
        .await
}

impl Seen {
    fn add(&mut self, batch: &Batch, last: Option<OffsetDateTime>) {
        self.samples += u64::from(ROUNDS.unsigned_abs());
        self.late += u64::from(batch.late.unsigned_abs());
        self.most = self.most.max(batch.most);
        self.promised = self.promised.max(batch.promised);
        self.over += u64::from(batch.over.unsigned_abs());
        if self.excesses.len() < SHOWN {
            self.excesses.extend(batch.excess.clone());
        }
        let between = last.and_then(|last| Duration::try_from(batch.began_at - last).ok()).unwrap_or_default();
        self.late += u64::from(between > 2 * INTERVAL);
        self.widest = self.widest.max(between).max(Duration::from_secs_f64(batch.widest_ms / 1000.0));
    }

    fn add_calm(&mut self, batch: &Batch, budget: i32) {
        self.calm += u64::from(ROUNDS.unsigned_abs());
        self.used += u64::from(batch.used.unsigned_abs());
        self.taken += batch.taken.unsigned_abs();
        self.budget += u64::from(budget.unsigned_abs()) * u64::from(ROUNDS.unsigned_abs());
    }
}
