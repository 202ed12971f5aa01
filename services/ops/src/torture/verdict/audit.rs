//! Who applied each command, and what it owned at that moment: the promise of the fence.
//!
//! # Why is this seen from inside the database?
//! The queue's single active consumer and the deduplication hide a worker that applies what is no longer its own: the next
//! owner is given the same messages from the first on. So the order alone would not show a fence that fails.
//!
//! # What needs no owner?
//! What the broker dead-letters is recorded as parked, by the worker that is given it.

use common::command::{DEFAULT_PARTITIONS, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Broken, Verdict};

/// Makes the database note with each command the worker's session and the partitions that are its own.
pub(crate) async fn observe(connection: &mut PgConnection) -> sqlx::Result<()> {
    let statements = [
        "CREATE SCHEMA torture",
        "CREATE TABLE torture.applied (command_id uuid, user_id uuid, worker text, owned integer[])",
        "CREATE FUNCTION torture.note() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO torture.applied (command_id, user_id, worker, owned)
             SELECT id, user_id, current_setting('application_name'), ARRAY(
                 SELECT number FROM partitions WHERE 'rollcall/' || owner = current_setting('application_name')
             )
             FROM fresh
             WHERE status <> 'parked';
             RETURN NULL;
         END
         $$",
        "CREATE TRIGGER note AFTER INSERT ON commands REFERENCING NEW TABLE AS fresh
         FOR EACH STATEMENT EXECUTE FUNCTION torture.note()",
    ];
    for statement in statements {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Nothing was applied but by the owner.
pub(super) async fn judge(verdict: &mut Verdict, connection: &mut PgConnection) -> anyhow::Result<()> {
    let notes: Vec<(Uuid, Uuid, String, Vec<i32>)> =
        sqlx::query_as("SELECT command_id, user_id, worker, owned FROM torture.applied").fetch_all(connection).await?;
    for (command, user, worker, owned) in notes {
        let partition = UserId::try_from(user)?.partition(DEFAULT_PARTITIONS);
        if !owned.contains(&i32::from(partition)) {
            let what = format!("command {command} was applied by {worker}, which did not own partition {partition}");
            verdict.found(Broken::Unfenced, what);
        }
    }
    Ok(())
}
