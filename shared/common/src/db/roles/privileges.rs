//! The list of who may do what: a new table or function gets its line here, and a test fails until it has one.

use super::ServerRole::{self, Api, ControlApi, ControlWorker, Monitor, Worker};

/// What one role may do: verbs, of which UPDATE can name a column. No service may change the columns by which a row is known,
/// nor who asked for a command and when.
pub type Grant = (ServerRole, &'static [&'static str]);

/// What each role may do with each table. The migrator owns them all; the backup reads them all.
pub const TABLES: &[(&str, &[Grant])] = &[
    (
        "users",
        &[
            (Api, &["SELECT"]),
            (
                Worker,
                &[
                    "SELECT",
                    "INSERT",
                    "DELETE",
                    "UPDATE (email)",
                    "UPDATE (name)",
                    "UPDATE (status)",
                    "UPDATE (suspended_at)",
                    "UPDATE (updated_at)",
                    "UPDATE (version)",
                ],
            ),
        ],
    ),
    ("deleted_users", &[(Worker, &["SELECT", "INSERT", "UPDATE (deleted_at)", "UPDATE (version)"])]),
    (
        "commands",
        &[
            (Api, &["SELECT"]),
            (
                Worker,
                &[
                    "SELECT",
                    "INSERT",
                    "UPDATE (position)",
                    "UPDATE (reason)",
                    "UPDATE (status)",
                    "UPDATE (user_version)",
                ],
            ),
        ],
    ),
    ("command_days", &[]),
    (
        "idempotency_keys",
        &[(
            Worker,
            &[
                "SELECT",
                "INSERT",
                "DELETE",
                "UPDATE (accepted_at)",
                "UPDATE (claimed_at)",
                "UPDATE (command_id)",
                "UPDATE (earlier_accepted_at)",
                "UPDATE (earlier_command_id)",
                "UPDATE (earlier_fingerprint)",
                "UPDATE (fingerprint)",
            ],
        )],
    ),
    // Who lets users go again is an operator, as the migrator.
    ("held_users", &[(Api, &["SELECT"]), (Worker, &["SELECT", "INSERT", "UPDATE (command_id)"])]),
    ("dead_letters", &[(Worker, &["SELECT", "INSERT", "DELETE", "UPDATE (attempts)", "UPDATE (last_seen_at)"])]),
    ("events", &[(Worker, &["SELECT", "INSERT", "DELETE", "UPDATE (published_at)"])]),
    // Replays are an operator's, as the migrator.
    ("partition_replays", &[(Worker, &["SELECT"])]),
    // Who makes and revokes keys is an operator, as the migrator.
    ("api_keys", &[(Api, &["SELECT"])]),
    ("suspects", &[(Worker, &["SELECT", "INSERT", "DELETE", "UPDATE (attempts)", "UPDATE (last_tried_at)"])]),
    ("membership", &[(ControlApi, &["SELECT"]), (ControlWorker, &["SELECT"]), (Monitor, &["SELECT"])]),
    ("members", &[(Monitor, &["SELECT"])]),
    (
        "partitions",
        &[
            // For the status of a command that was lost.
            (Api, &["SELECT"]),
            // The fence locks a row, and for that the server demands UPDATE of a column.
            (Worker, &["SELECT", "UPDATE (decided_through)"]),
            (ControlApi, &["SELECT"]),
            (ControlWorker, &["SELECT"]),
            (Monitor, &["SELECT"]),
        ],
    ),
    ("deployment", &[(ControlApi, &["SELECT"]), (ControlWorker, &["SELECT"]), (Monitor, &["SELECT"])]),
    ("_sqlx_migrations", &[(ControlApi, &["SELECT"]), (ControlWorker, &["SELECT"]), (Monitor, &["SELECT"])]),
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
    ("instance_of", &[]),
    ("pool_role_of", &[]),
    ("join_membership", &[]),
    ("join_as_api", &[ControlApi]),
    ("join_as_worker", &[ControlWorker]),
    ("beat_membership", &[ControlApi, ControlWorker]),
    ("release_partitions", &[ControlWorker]),
    ("set_consumes", &[ControlWorker]),
    ("leave_membership", &[ControlApi, ControlWorker]),
    ("mark_broker", &[ControlApi, ControlWorker]),
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
