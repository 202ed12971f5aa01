//! The relay's statements on the table of events: the read of partitions that are behind, and the marks.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use common::db::{DatabaseState, DbError, within};
use uuid::Uuid;

use super::Relay;
use super::feed::{PartitionRead, Snapshot};
use super::queue::PublishedEvent;
use crate::events::RecordedEvent;

/// For a connection, and again for the statement.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the relay asks of the database.
#[derive(Debug)]
pub(super) enum Statement {
    Read(ReadRequest),
    Mark(Vec<PublishedEvent>),
}

/// A read of partitions that are behind.
#[derive(Debug)]
pub(super) struct ReadRequest {
    /// Each with its falls.
    pub(super) partitions: Vec<(u16, u64)>,
    /// Events of each, at most.
    pub(super) most: u16,
    /// Events that are in memory.
    pub(super) known: Vec<Uuid>,
    /// Users whose events are left in the table.
    pub(super) waiting: Vec<Uuid>,
    /// How often unsent events had been dropped.
    pub(super) drops: u64,
}

/// What came of a statement.
#[derive(Debug)]
pub(super) enum StatementEnd {
    Read(ReadRequest, Result<TableRead, DbError>),
    /// How many were to be marked.
    Marked(usize, Result<(), DbError>),
}

#[derive(Debug)]
pub(super) struct TableRead {
    pub(super) snapshot: Option<Snapshot>,
    pub(super) owned: BTreeSet<u16>,
    /// In the order of their positions.
    pub(super) events: Vec<RecordedEvent>,
}

impl TableRead {
    /// What it says of each partition that was asked for, with the snapshot; of one that another worker owns, nothing.
    pub(super) fn by_partition(
        &self,
        request: &ReadRequest,
    ) -> impl Iterator<Item = (u16, u64, Option<(PartitionRead, Snapshot)>)> {
        request.partitions.iter().map(|&(partition, falls)| {
            let found = self.events.iter().filter(|event| event.partition == partition);
            let found: HashSet<Uuid> = found.map(|event| event.id).collect();
            let complete = found.len() < usize::from(request.most);
            let read = PartitionRead { partition, falls, found, complete };
            (
                partition,
                falls,
                self.snapshot.filter(|_| self.owned.contains(&partition)).map(|snapshot| (read, snapshot)),
            )
        })
    }
}

impl Relay {
    pub(super) async fn execute(&self, statement: Statement) -> StatementEnd {
        // The sender lives as long as the process: the wait cannot fail.
        let _ = self.database.clone().wait_for(|state| *state == DatabaseState::Up).await;
        match statement {
            Statement::Read(request) => {
                let read = self.read(&request).await;
                StatementEnd::Read(request, read)
            }
            Statement::Mark(events) => StatementEnd::Marked(events.len(), self.mark(&events).await),
        }
    }

    /// Reads the ownership with the events: a partition that this instance has lost is the next owner's. The events of
    /// one user are found without a gap: what is left out of a user's events is known, or its user waits.
    async fn read(&self, request: &ReadRequest) -> Result<TableRead, DbError> {
        let numbers: Vec<i32> = request.partitions.iter().map(|(number, _)| i32::from(*number)).collect();
        let mut lease = self.pool.acquire(PATIENCE).await?;
        // NOT IN a list without NULLs: the server hashes it once.
        let reading = sqlx::query!(
            r#"
            WITH snapshot AS MATERIALIZED (
                SELECT
                    pg_snapshot_xmin(current)::text::bigint AS oldest_running,
                    pg_snapshot_xmax(current)::text::bigint AS next
                FROM pg_current_snapshot() AS current
            )
            SELECT
                number AS "number!",
                oldest_running AS "oldest_running!",
                next AS "next!",
                pending.position AS "position?",
                pending.id AS "id?",
                pending.type AS "kind?",
                pending.user_id AS "user_id?",
                pending.data::text AS "data?",
                pending.occurred_at AS "occurred_at?",
                pending.traceparent AS "traceparent?",
                pending.tracestate AS "tracestate?"
            FROM snapshot
            CROSS JOIN partitions
            LEFT JOIN LATERAL (
                SELECT position, id, type, user_id, data, occurred_at, traceparent, tracestate
                FROM events
                WHERE events.partition = partitions.number
                    AND published_at IS NULL
                    AND id NOT IN (SELECT unnest($4::uuid[]))
                    AND user_id NOT IN (SELECT unnest($5::uuid[]))
                ORDER BY position
                LIMIT $3
            ) AS pending ON true
            WHERE partitions.owner = $1 AND partitions.number = ANY($2)
            ORDER BY pending.position
            "#,
            self.instance,
            &numbers,
            i64::from(request.most),
            &request.known,
            &request.waiting,
        );
        let rows = within(PATIENCE, reading.fetch_all(&mut *lease)).await?;
        lease.release().await?;
        let mut read = TableRead { snapshot: None, owned: BTreeSet::new(), events: Vec::with_capacity(rows.len()) };
        for row in rows {
            read.snapshot = Some(Snapshot { oldest_running: row.oldest_running, next: row.next });
            let Ok(partition) = u16::try_from(row.number) else { continue };
            read.owned.insert(partition);
            let (Some(position), Some(id), Some(kind)) = (row.position, row.id, row.kind) else { continue };
            let (Some(user_id), Some(data), Some(occurred_at)) = (row.user_id, row.data, row.occurred_at) else {
                continue;
            };
            read.events.push(RecordedEvent {
                position,
                id,
                partition,
                kind: kind.into(),
                user_id,
                data: data.into(),
                occurred_at,
                traceparent: row.traceparent,
                tracestate: row.tracestate,
            });
        }
        Ok(read)
    }

    /// Notes that the events are published. The commit does not wait for the disk or a standby: a mark that is lost costs a
    /// repetition.
    pub(super) async fn mark(&self, events: &[PublishedEvent]) -> Result<(), DbError> {
        // Sorted, so that two workers hardly deadlock; one that does marks again. By the id too: after a failover that lost commits
        // another event can have the position.
        let mut events = events.to_vec();
        events.sort_unstable();
        let (positions, ids): (Vec<i64>, Vec<Uuid>) = events.into_iter().unzip();
        let mut lease = self.pool.acquire(PATIENCE).await?;
        // Planned each time, for the table as it is now: a plan from when it was small would go on reading all of it.
        let marking = sqlx::query!(
            "
            UPDATE events
            SET published_at = now()
            FROM unnest($1::bigint[], $2::uuid[]) AS published (position, id),
                (SELECT set_config('synchronous_commit', 'off', true)) AS setting
            WHERE events.position = published.position AND events.id = published.id
            ",
            &positions,
            &ids,
        );
        within(PATIENCE, marking.persistent(false).execute(&mut *lease)).await?;
        lease.release().await?;
        Ok(())
    }
}
