//! Fence of a transaction: holds the partitions that this instance still owns, and reads what is known of their commands.
//!
//! # Why one statement?
//! Its snapshot is taken once the instance owns the partitions under these epochs, and an epoch begins after every transaction
//! of an earlier one has ended: the rows that an earlier owner wrote are in it.

use std::collections::HashSet;

use common::command::{CommandId, UserId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Share;
use crate::blame::ApplyError;
use crate::incoming::IncomingMessage;

/// What a transaction holds, and what it knows.
#[derive(Debug)]
pub(super) struct Held {
    /// Of the transaction, by the database's clock.
    pub(super) now: OffsetDateTime,
    /// The partitions that are owned, locked until the end of the transaction: their next owners wait for it.
    pub(super) partitions: HashSet<u16>,
    /// Commands that were decided before.
    pub(super) known: HashSet<CommandId>,
    /// Users with an open dead letter, locked against operators until the end of the transaction.
    pub(super) blocked_users: HashSet<UserId>,
}

/// Holds the partitions of the shares; no lock of a row is waited for longer than the timeout.
///
/// # Errors
/// [`ApplyError::Fenced`] when none of them is owned any more, or as the statement gives them.
pub(super) async fn hold(
    conn: &mut PgConnection,
    shares: &[Share<'_>],
    lock_timeout: &str,
) -> Result<Held, ApplyError> {
    let (numbers, epochs): (Vec<i32>, Vec<i64>) =
        shares.iter().map(|Share { fence, .. }| (i32::from(fence.partition), fence.epoch)).unzip();
    let Some(instance) = shares.first().map(|share| share.fence.instance) else { return Err(ApplyError::Fenced) };
    let messages = || shares.iter().flat_map(|share| share.messages);
    let ids: Vec<Uuid> = messages().filter_map(IncomingMessage::id).map(Uuid::from).collect();
    let users: Vec<Uuid> = messages().filter_map(IncomingMessage::user_id).map(Uuid::from).collect();
    let (lowest, highest) =
        (ids.iter().min().copied().unwrap_or_default(), ids.iter().max().copied().unwrap_or_default());
    // The bounds let the planner leave out the other days' tables. The setting is for this transaction, and comes before the first
    // lock of a row.
    let row = sqlx::query!(
        r#"
        WITH owned AS MATERIALIZED (
            SELECT partitions.number
            FROM unnest($1::integer[], $2::bigint[]) AS fence (number, epoch)
            JOIN partitions ON partitions.number = fence.number AND partitions.epoch = fence.epoch
            WHERE partitions.owner = $3
            ORDER BY partitions.number
            FOR KEY SHARE OF partitions
        ),
        blocked AS MATERIALIZED (
            SELECT user_id
            FROM held_users
            WHERE user_id = ANY($4)
            ORDER BY user_id
            FOR SHARE
        )
        SELECT
            set_config('lock_timeout', $8, true) AS lock_timeout,
            now() AS "now!",
            ARRAY(SELECT number FROM owned) AS "partitions!: Vec<i32>",
            ARRAY(SELECT user_id FROM blocked) AS "blocked_users!: Vec<Uuid>",
            ARRAY(SELECT id FROM commands WHERE id = ANY($5) AND id BETWEEN $6 AND $7) AS "known!: Vec<Uuid>"
        "#,
        &numbers,
        &epochs,
        instance,
        &users,
        &ids,
        lowest,
        highest,
        lock_timeout,
    )
    .fetch_one(conn)
    .await?;
    let partitions: HashSet<u16> = row.partitions.into_iter().filter_map(|number| u16::try_from(number).ok()).collect();
    #[cfg(feature = "mutants")]
    let partitions = crate::mutants::fenced(partitions, shares.iter().map(|share| share.fence.partition));
    if partitions.is_empty() {
        return Err(ApplyError::Fenced);
    }
    Ok(Held {
        now: row.now,
        partitions,
        known: row.known.into_iter().filter_map(|id| CommandId::try_from(id).ok()).collect(),
        blocked_users: row.blocked_users.into_iter().filter_map(|id| UserId::try_from(id).ok()).collect(),
    })
}
