//! What a member says to the database: the calls of `migrations/0003`.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Holding;
use super::secret::Secret;
use super::share::Service;
use crate::db::PoolStatus;

/// Why a heartbeat failed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The settings of this instance do not fit the deployment's: it must not take part.
    #[error("{0}")]
    Misfit(String),
    /// The database did not answer in time.
    #[error("the heartbeat was not answered within {0:?}")]
    Deadline(Duration),
    /// The database did not answer, or refused.
    #[error("failed to keep up the membership")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for MembershipError {
    fn from(error: sqlx::Error) -> Self {
        // Raised by `join_membership`.
        const MISFIT: &str = "RC001";
        match error.as_database_error() {
            Some(raised) if raised.code().as_deref() == Some(MISFIT) => Self::Misfit(raised.message().to_owned()),
            _ => Self::Database(error),
        }
    }
}

/// Who asks to take part.
#[derive(Debug)]
pub(super) struct Application<'a> {
    pub(super) secret: &'a Secret,
    pub(super) service: Service,
    /// What all processes must have in common.
    pub(super) settings: &'a Value,
    /// The deployment that this process has joined before.
    pub(super) joined_before: Option<Uuid>,
    pub(super) weight: i32,
    pub(super) floor: i32,
    pub(super) most: usize,
    pub(super) pool_role: Option<&'a str>,
    /// The session of the control connection ends with it.
    pub(super) own_session: bool,
}

/// What a join is answered.
#[derive(Debug)]
pub(super) enum Admission {
    Joined {
        epoch: i64,
        /// For how long a heartbeat holds.
        lives: Duration,
    },
    TurnedAway {
        reason: String,
        /// For how long to stay away.
        away: Duration,
    },
}

/// Either the first two, or the last two.
#[derive(sqlx::FromRow)]
struct JoinAnswer {
    joined: Option<i64>,
    lives: Option<PgInterval>,
    reason: Option<String>,
    away: Option<PgInterval>,
}

/// What a heartbeat is answered.
#[derive(sqlx::FromRow)]
pub(super) struct BeatAnswer {
    pub(super) granted: i32,
    pub(super) target: i32,
    pub(super) soon: bool,
    pub(super) budget: i32,
    pub(super) instances: i32,
    pub(super) turn: i64,
    /// What the server shows of the pool.
    pub(super) sessions: i32,
    /// The mark of the deployment's broker, as it was when the question came.
    pub(super) broker_mark: Option<Uuid>,
    /// The database's clock when it answered.
    pub(super) now: OffsetDateTime,
}

/// What a join says of the deployment.
#[derive(sqlx::FromRow)]
pub(super) struct DeploymentRow {
    pub(super) id: Uuid,
    /// None when no broker is marked yet.
    pub(super) broker_mark: Option<Uuid>,
    /// Whether the budget was computed.
    pub(super) computed: bool,
    pub(super) budget: i32,
    /// How the budget came about.
    pub(super) arithmetic: String,
}

/// A partition that this instance owns, or shall own once its owner has let go.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) partition: u16,
    pub(super) holding: Holding,
    pub(super) already: bool,
}

/// Asks to take part.
pub(super) async fn join(
    connection: &mut PgConnection,
    asking: &Application<'_>,
) -> Result<Admission, MembershipError> {
    // A role of one service may not call the function of the other.
    let join = match asking.service {
        Service::Api => "SELECT joined, lives, reason, away FROM join_as_api($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        Service::Worker => "SELECT joined, lives, reason, away FROM join_as_worker($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    };
    let answer: JoinAnswer = sqlx::query_as(join)
        .bind(asking.secret.expose())
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(asking.settings)
        .bind(asking.joined_before)
        .bind(asking.weight)
        .bind(asking.floor)
        .bind(count(asking.most))
        .bind(asking.pool_role)
        .bind(asking.own_session)
        .fetch_one(connection)
        .await?;
    Ok(match (answer.joined, answer.lives) {
        (Some(epoch), Some(lives)) => Admission::Joined { epoch, lives: duration(lives) },
        _ => Admission::TurnedAway {
            reason: answer.reason.unwrap_or_default(),
            away: answer.away.map_or(Duration::from_secs(1), duration),
        },
    })
}

/// Beats; no answer for one that was reaped. `held` is the most that the pool may open by itself or has open, `demand` the
/// most that it had use for lately, `grace` the time after the end of its control session for which it may open connections.
pub(super) async fn beat(
    connection: &mut PgConnection,
    (secret, epoch): (&Secret, i64),
    held: usize,
    status: PoolStatus,
    demand: usize,
    grace: Duration,
) -> Result<Option<BeatAnswer>, MembershipError> {
    let beat = sqlx::query_as(
        "SELECT
             granted, target, soon, budget, instances, turn, sessions,
             (SELECT broker_mark FROM deployment) AS broker_mark, clock_timestamp() AS now
         FROM beat_membership($1, $2, $3, $4, $5, $6, $7, $8)
         WHERE alive",
    )
    .bind(secret.expose())
    .bind(epoch)
    .bind(count(held))
    .bind(count(status.open))
    .bind(count(status.in_use))
    .bind(count(status.waiting))
    .bind(count(demand))
    .bind(interval(grace));
    Ok(beat.fetch_optional(connection).await?)
}

/// The redistribution that came last.
pub(super) async fn turn(connection: &mut PgConnection) -> Result<i64, MembershipError> {
    Ok(sqlx::query_scalar("SELECT turn FROM membership").fetch_one(connection).await?)
}

/// Lets partitions go.
pub(super) async fn release(
    connection: &mut PgConnection,
    secret: &Secret,
    partitions: impl Iterator<Item = u16>,
) -> Result<(), MembershipError> {
    let numbers: Vec<i32> = partitions.map(i32::from).collect();
    sqlx::query("SELECT release_partitions($1, $2)").bind(secret.expose()).bind(numbers).execute(connection).await?;
    Ok(())
}

/// Says whether this instance reaches the broker.
pub(super) async fn set_consumes(
    connection: &mut PgConnection,
    secret: &Secret,
    consumes: bool,
) -> Result<(), MembershipError> {
    sqlx::query("SELECT set_consumes($1, $2)").bind(secret.expose()).bind(consumes).execute(connection).await?;
    Ok(())
}

/// What this instance owns and shall own.
pub(super) async fn partitions(connection: &mut PgConnection, instance: Uuid) -> Result<Vec<Owned>, MembershipError> {
    let rows: Vec<(i32, i64, bool, bool)> = sqlx::query_as(
        "SELECT number, epoch, heir IS NOT NULL, owner IS NOT DISTINCT FROM $1
         FROM partitions
         WHERE $1 IN (owner, heir)",
    )
    .bind(instance)
    .fetch_all(connection)
    .await?;
    // Numbers come from a u16.
    let owned = |(number, epoch, wanted, already)| {
        Some(Owned { partition: u16::try_from(number).ok()?, holding: Holding { epoch, wanted }, already })
    };
    Ok(rows.into_iter().filter_map(owned).collect())
}

/// Leaves for good.
pub(super) async fn leave(connection: &mut PgConnection, secret: &Secret) -> Result<(), MembershipError> {
    sqlx::query("SELECT leave_membership($1)").bind(secret.expose()).execute(connection).await?;
    Ok(())
}

/// The deployment that was joined.
pub(super) async fn deployment(connection: &mut PgConnection) -> Result<DeploymentRow, MembershipError> {
    let row = sqlx::query_as(
        "SELECT deployment.id, broker_mark, database_connection_budget IS NULL AS computed, budget, arithmetic
         FROM deployment, membership",
    );
    Ok(row.fetch_one(connection).await?)
}

/// Claims the deployment's broker; gives the mark that counts.
pub(super) async fn mark_broker(
    connection: &mut PgConnection,
    candidate: Uuid,
) -> Result<Option<Uuid>, MembershipError> {
    Ok(sqlx::query_scalar("SELECT mark_broker($1)").bind(candidate).fetch_one(connection).await?)
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// An interval that PostgreSQL computed from two instants, or that is given in seconds: it has no months and no days.
fn duration(interval: PgInterval) -> Duration {
    Duration::from_micros(u64::try_from(interval.microseconds).unwrap_or_default())
}
