//! The list of who may do what: a new table or function gets its line here, and a test fails until it has one.

use super::ServerRole::{self, Api, Control, Monitor, Worker};

/// What one role may do: verbs, of which UPDATE can name a column.
pub type Grant = (ServerRole, &'static [&'static str]);

/// What each role may do with each table. The migrator owns them all; the backup reads them all.
pub const TABLES: &[(&str, &[Grant])] = &[
    ("users", &[(Api, &["SELECT"]), (Worker, &["SELECT", "INSERT", "UPDATE", "DELETE"])]),
    ("deleted_users", &[(Worker, &["SELECT", "INSERT", "UPDATE"])]),
    ("commands", &[(Api, &["SELECT"]), (Worker, &["SELECT", "INSERT", "UPDATE"])]),
    ("command_days", &[]),
    ("idempotency_keys", &[(Worker, &["SELECT", "INSERT", "UPDATE", "DELETE"])]),
    // Who lets users go again is an operator, as the migrator.
    ("held_users", &[(Api, &["SELECT"]), (Worker, &["SELECT", "INSERT", "UPDATE"])]),
    ("dead_letters", &[(Worker, &["SELECT", "INSERT", "UPDATE", "DELETE"])]),
    ("events", &[(Worker, &["SELECT", "INSERT", "UPDATE", "DELETE"])]),
    // Who makes and revokes keys is an operator, as the migrator.
    ("api_keys", &[(Api, &["SELECT"])]),
    ("suspects", &[(Worker, &["SELECT", "INSERT", "UPDATE", "DELETE"])]),
    ("membership", &[(Control, &["SELECT"]), (Monitor, &["SELECT"])]),
    ("members", &[(Monitor, &["SELECT"])]),
    (
        "partitions",
        &[
            // For the status of a command that was lost.
            (Api, &["SELECT"]),
            // The fence locks a row, and for that the server demands UPDATE of a column.
            (Worker, &["SELECT", "UPDATE (decided_through)"]),
            (Control, &["SELECT"]),
            (Monitor, &["SELECT"]),
        ],
    ),
    ("deployment", &[(Control, &["SELECT"]), (Monitor, &["SELECT"])]),
    ("_sqlx_migrations", &[(Control, &["SELECT"]), (Monitor, &["SELECT"])]),
    // Whose migrations run.
    ("migration_lock", &[]),
];

/// Who may call each function; one that nobody may call is called by others of them.
pub const FUNCTIONS: &[(&str, &[ServerRole])] = &[
    ("ensure_command_day", &[Worker]),
    ("drop_command_days", &[Worker]),
    ("make_command_day", &[]),
    ("command_day_bound", &[]),
    ("has_command_day", &[]),
    ("next_command_position", &[Worker]),
    ("join_membership", &[Control]),
    ("beat_membership", &[Control]),
    ("release_partitions", &[Control]),
    ("set_consumes", &[Control]),
    ("leave_membership", &[Control]),
    ("mark_broker", &[Control]),
    ("compare_deployment", &[]),
    ("write_deployment", &[]),
    ("set_connection_budget", &[]),
    ("redistribute_partitions", &[]),
    ("stranded_workers", &[]),
    ("redistribute", &[]),
    ("reap_members", &[]),
    ("share_connections", &[]),
    ("grant_connections", &[]),
    ("call_members", &[]),
    ("kept_connections", &[]),
    ("gone_members", &[]),
    ("lost_members", &[]),
    ("note_lost_members", &[]),
    // `rollcall budget` shows them.
    ("pool_sessions", &[Monitor]),
    ("taken_connections", &[Monitor]),
    ("arrival_places", &[Monitor]),
    ("connection_limits", &[Monitor]),
];
