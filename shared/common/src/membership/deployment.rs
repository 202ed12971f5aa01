//! Deployment: what this process must have in common with all others, and what its joins learn of that.
//!
//! # When does a difference end the process?
//! At its first join only. One that runs keeps what it was started with, and hears of a changed budget by its heartbeats; at
//! a later join it is refused only when its partitions, its prefix or the whole database are another deployment's, and then it is
//! not ready and asks again.

use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::broker::{Identity, IdentityKeeper, identity};
use crate::command::CommandIdKey;
use crate::config::ServiceSettings;

/// The settings and the identity of the deployment, on the membership's side.
#[derive(Debug)]
pub(super) struct Deployment {
    /// Under the names of the columns of `deployment`, which are those of the variables.
    settings: Value,
    /// The deployment that this process has joined.
    id: Option<Uuid>,
    command_ids: watch::Sender<Option<CommandIdKey>>,
    keeper: IdentityKeeper,
    identity: Identity,
}

impl Deployment {
    /// Of a process that has not joined yet; a service without events has no source of them.
    pub(super) fn new(settings: &ServiceSettings, event_source: Option<&str>) -> Self {
        let (identity, keeper) = identity();
        let mut shared = json!({
            "partitions": settings.broker.partitions,
            "broker_prefix": settings.broker.prefix,
            "command_retention_days": settings.retention.0.as_secs() / (24 * 3600),
            "idempotency_window_hours": settings.idempotency_window.0.as_secs() / 3600,
            "database_connection_budget": settings.budget,
        });
        if let Some(source) = event_source {
            shared["event_source"] = json!(source);
        }
        Self { settings: shared, id: None, command_ids: watch::Sender::new(None), keeper, identity }
    }

    pub(super) fn settings(&self) -> &Value {
        &self.settings
    }

    /// The deployment that this process joined before.
    pub(super) fn joined_before(&self) -> Option<Uuid> {
        self.id
    }

    /// What the connections to the broker wait for and compare.
    pub(super) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// The key of the ids of commands, from the first join on.
    pub(super) fn command_ids(&self) -> watch::Receiver<Option<CommandIdKey>> {
        self.command_ids.subscribe()
    }

    /// Notes a join.
    pub(super) fn joined(&mut self, id: Uuid) {
        self.id = Some(id);
        self.command_ids.send_replace(Some(CommandIdKey::of_deployment(id)));
    }

    /// Notes the broker's mark.
    pub(super) fn marked(&self, mark: Option<Uuid>) {
        self.keeper.set(mark);
    }

    /// Waits for a candidate for the broker's mark.
    pub(super) async fn claimed(&mut self) -> Uuid {
        self.keeper.claimed().await
    }

    /// The same without waiting.
    pub(super) fn claim(&mut self) -> Option<Uuid> {
        self.keeper.claim()
    }
}
