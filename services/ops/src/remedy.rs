//! What to do about the faults of a database that every command can meet.

const SCHEMA: &str = "the schema is missing, or of another version; run `rollcall migrate run`";
const PRIVILEGE: &str = "the role of DATABASE_URL may not do this; use the URL of the role that owns the schema, the migrator's \
    (see `rollcall roles --help`)";

/// Adds the remedy to an error of the database, where there is one.
pub(crate) fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    let database = error.chain().find_map(|cause| cause.downcast_ref::<sqlx::Error>()?.as_database_error()?.code());
    let remedy = match database.as_deref() {
        // Undefined table, column or function, and no such schema.
        Some("42P01" | "42703" | "42883" | "3F000") => Some(SCHEMA),
        // Insufficient privilege.
        Some("42501") => Some(PRIVILEGE),
        _ => None,
    };
    match remedy {
        Some(remedy) => error.context(remedy),
        None => error,
    }
}
