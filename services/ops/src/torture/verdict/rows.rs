//! What the database holds in the end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;

use super::queues::Queues;

/// Nothing was applied for so long, and nothing waits in a queue: what has no outcome by now gets none.
const QUIET: Duration = Duration::from_secs(12);

/// A command's row.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) user_id: Uuid,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: Option<String>,
    pub(super) version: Option<i64>,
    pub(super) accepted_at: OffsetDateTime,
    pub(super) applied_at: OffsetDateTime,
    /// Whether it was parked for a while.
    pub(super) letter: bool,
}

impl Row {
    pub(super) fn succeeded(&self) -> bool {
        self.status == "succeeded"
    }

    /// For people.
    pub(super) fn outcome(&self) -> String {
        match (&self.reason, self.version) {
            (Some(reason), _) => format!("{} ({reason})", self.status),
            (None, Some(version)) => format!("{} with version {version} at {}", self.status, self.applied_at),
            (None, None) => self.status.clone(),
        }
    }
}

/// A user's row.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct User {
    pub(super) id: Uuid,
    pub(super) version: i64,
    pub(super) status: String,
    pub(super) name: String,
}

/// Everything.
pub(super) struct Rows {
    pub(super) commands: HashMap<Uuid, Row>,
    pub(super) users: HashMap<Uuid, User>,
    by_user: HashMap<Uuid, Vec<Uuid>>,
}

impl Rows {
    pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Self> {
        let commands: Vec<Row> = sqlx::query_as(
            "SELECT id, user_id, type AS kind, status, reason, user_version AS version, accepted_at, applied_at,
                 EXISTS (SELECT FROM dead_letters WHERE command_id = commands.id) AS letter
             FROM commands
             WHERE user_id IS NOT NULL",
        )
        .fetch_all(&mut *connection)
        .await?;
        let users: Vec<User> =
            sqlx::query_as("SELECT id, version, status, name FROM users").fetch_all(connection).await?;
        let mut by_user: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
        for row in &commands {
            by_user.entry(row.user_id).or_default().push(row.id);
        }
        Ok(Self {
            by_user,
            commands: commands.into_iter().map(|row| (row.id, row)).collect(),
            users: users.into_iter().map(|user| (user.id, user)).collect(),
        })
    }

    /// Every user that commands were for.
    pub(super) fn concerned(&self) -> impl Iterator<Item = Uuid> {
        self.by_user.keys().copied()
    }

    /// The commands of a user, in no order.
    pub(super) fn of_user(&self, user: Uuid) -> impl Iterator<Item = &Row> {
        self.by_user.get(&user).into_iter().flatten().filter_map(|id| self.commands.get(id))
    }
}

/// Waits until each promise has an outcome, or until it is clear that some get none.
pub(super) async fn settle(
    connection: &mut PgConnection,
    queues: &Queues,
    ids: &[Uuid],
    patience: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let (mut rows, mut changed_at) = (0, Instant::now());
    while Instant::now() < deadline && changed_at.elapsed() < QUIET {
        let (decided, all): (i64, i64) =
            sqlx::query_as("SELECT count(*) FILTER (WHERE id = ANY($1)), count(*) FROM commands")
                .bind(ids)
                .fetch_one(&mut *connection)
                .await?;
        if usize::try_from(decided)? == ids.len() {
            break;
        }
        let waiting = queues.read().await?.iter().any(|queue| queue.waiting > 0);
        if all != rows || waiting {
            (rows, changed_at) = (all, Instant::now());
        }
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}
