//! Probe: the whole of a transaction with a command of its own, which is undone.

use std::collections::HashSet;

use common::command::{
    Command, CommandId, CreateUser, Digest, Email, Envelope, Idempotency, Message, Name, Principal, UserId,
};
use common::db::DbError;
use common::telemetry::TraceHeaders;
use sqlx::Connection;
use time::OffsetDateTime;

use super::Applier;
use super::batch::Mode;
use super::transaction::Limits;
use crate::blame::ApplyError;
use crate::incoming::IncomingMessage;

impl Applier {
    /// Tries the whole of a transaction with a command of its own and undoes it: says whether a batch would go through,
    /// without taking one out of its queue.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn probe(&mut self) -> Result<(), ApplyError> {
        let mut lease = self.transactions.pool.acquire(Limits::ALONE.deadline).await?;
        let work = async {
            let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *lease).await?;
            let Some(message) = self.probing_message(now) else { return Ok(()) };
            self.transactions.days.forget();
            let days = self.transactions.days.ensure(&mut lease, HashSet::from([now.date()])).await?;
            let mut tx = lease.begin().await?;
            let messages = [message];
            let share = self.share(&messages).ok_or(ApplyError::Fenced)?;
            self.transactions.work(&mut tx, &[share], days, Mode::Together, Limits::ALONE).await?;
            tx.rollback().await?;
            Ok::<_, ApplyError>(())
        };
        let deadline = Limits::ALONE.deadline;
        tokio::time::timeout(deadline, work).await.map_err(|_| DbError::Deadline(deadline))??;
        lease.release().await?;
        Ok(())
    }

    /// A command of this time that creates a user of the partition.
    fn probing_message(&self, now: OffsetDateTime) -> Option<IncomingMessage> {
        let (Ok(email), Ok(name)) = (Email::parse("probe@rollcall.invalid"), Name::parse("Probe")) else { return None };
        let (id, user_id) = (CommandId::mint_at(now), self.user_of_the_partition()?);
        let digest = Digest::of_key(&Principal::anonymous(), &id.to_string());
        let envelope = Envelope {
            id,
            accepted_at: now,
            principal: Principal::anonymous(),
            if_match: None,
            idempotency: Some(Idempotency { key: digest, fingerprint: digest }),
            command: Command::CreateUser(CreateUser { user_id, email, name }),
        };
        let content = Message::Command(Box::new(envelope));
        let trace = TraceHeaders::default();
        Some(IncomingMessage { body: Vec::new(), trace, content, defect: None, reply_to: None })
    }

    fn user_of_the_partition(&self) -> Option<UserId> {
        let (partition, partitions) = (self.fence?.partition, self.transactions.partitions);
        // One in `partitions` fits.
        (0..100_000).map(|_| UserId::mint()).find(|user| user.partition(partitions) == partition)
    }
}
