//! `rollcall torture budget --mutant`: the checker's own test. The faults are in the protocol, which is in the database.

use sqlx::PgConnection;

/// What is done to the functions of `migrations/0003_create_membership.sql`.
const MUTANTS: [(&str, &str); 3] = [
    // Grants what others shall give up, while the server still shows their sessions.
    (
        "blind",
        "CREATE OR REPLACE FUNCTION grant_connections() RETURNS boolean
             LANGUAGE plpgsql
             AS $$ BEGIN UPDATE members SET granted = target WHERE granted < target; RETURN FOUND; END $$",
    ),
    // Keeps nothing for those that arrive.
    (
        "no-arrivals",
        "CREATE OR REPLACE FUNCTION arrival_places(budget integer) RETURNS integer
             LANGUAGE sql IMMUTABLE SECURITY DEFINER SET search_path FROM CURRENT
             AS $$ SELECT 0 $$",
    ),
    // Nobody is ever given more than what it has.
    (
        "stingy",
        "CREATE OR REPLACE FUNCTION grant_connections() RETURNS boolean
             LANGUAGE sql
             AS $$ SELECT false $$",
    ),
];

pub(super) fn parse(name: &str) -> Result<&'static str, String> {
    let found = MUTANTS.iter().find(|(known, _)| *known == name).map(|(_, statement)| *statement);
    found.ok_or_else(|| format!("one of {}", MUTANTS.map(|(known, _)| known).join(", ")))
}

/// Gives the database that fault.
pub(super) async fn infect(connection: &mut PgConnection, statement: &'static str) -> sqlx::Result<()> {
    sqlx::query(statement).execute(connection).await?;
    Ok(())
}
