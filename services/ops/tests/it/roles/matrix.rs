//! Every role, every table, every verb: allowed, or refused with 42501.

use std::collections::BTreeSet;

use common::db::roles::{FUNCTIONS, ServerRole, TABLES};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{Deployment, sqlstate};

const FORBIDDEN: &str = "42501";

/// Whether the server lets this role do it; whatever else comes of the statement does not count, and is undone.
async fn permitted(conn: &mut PgConnection, statement: &str) -> bool {
    let mut tx = conn.begin().await.unwrap();
    let end = tx.execute(AssertSqlSafe(statement.to_owned())).await;
    let permitted = sqlstate(end).as_deref() != Some(FORBIDDEN);
    tx.rollback().await.unwrap();
    permitted
}

async fn columns(conn: &mut PgConnection, table: &str) -> Vec<String> {
    let query = "SELECT attname::text FROM pg_attribute
        WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity = ''";
    sqlx::query_scalar(query).bind(table).fetch_all(conn).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_forbidden_verb_is_refused_and_every_other_is_not() {
    let deployment = Deployment::new().await;
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    // The table of a day, which appears while the system runs.
    admin.execute("SELECT ensure_command_day(current_date)").await.unwrap();
    let day: String = sqlx::query_scalar("SELECT 'commands_' || to_char(current_date, 'YYYYMMDD')")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for role in ServerRole::ALL {
        let mut conn = deployment.roles.connect(role).await;
        // Read-only sessions are a habit that anybody can drop; the privileges are the wall.
        conn.execute("SET default_transaction_read_only = off").await.unwrap();
        let mut check = async |what: String, statement: String, expected: bool| {
            checked += 1;
            if permitted(&mut conn, &statement).await != expected {
                wrong.push(format!("{role:?}: {what} is {}", if expected { "refused" } else { "permitted" }));
            }
        };
        let tables = TABLES.iter().map(|(table, grants)| (*table, *grants)).chain([(day.as_str(), &[][..])]);
        for (table, grants) in tables {
            let granted = grants.iter().find(|(of, _)| *of == role).map_or(&[][..], |(_, privileges)| privileges);
            let may = |privilege: &str| {
                role == ServerRole::Migrator
                    || (role == ServerRole::Backup && privilege == "SELECT")
                    || granted.contains(&privilege)
            };
            let verb = |verb: &str| format!("{verb} on {table}");
            check(verb("SELECT"), format!("SELECT FROM {table} LIMIT 0"), may("SELECT")).await;
            check(verb("INSERT"), format!("INSERT INTO {table} DEFAULT VALUES"), may("INSERT")).await;
            check(verb("DELETE"), format!("DELETE FROM {table}"), may("DELETE")).await;
            check(verb("TRUNCATE"), format!("TRUNCATE {table}"), may("TRUNCATE")).await;
            check(verb("DROP"), format!("DROP TABLE {table}"), role == ServerRole::Migrator).await;
            for column in columns(&mut admin, table).await {
                let expected = may("UPDATE") || may(&format!("UPDATE ({column})"));
                let statement = format!("UPDATE {table} SET {column} = DEFAULT WHERE false");
                check(format!("UPDATE ({column}) on {table}"), statement, expected).await;
            }
        }
        for (function, roles) in FUNCTIONS {
            let arguments: i16 = sqlx::query_scalar("SELECT pronargs FROM pg_proc WHERE proname = $1")
                .bind(function)
                .fetch_one(&mut admin)
                .await
                .unwrap();
            let nulls = vec!["NULL"; usize::try_from(arguments).unwrap()].join(", ");
            let expected = role == ServerRole::Migrator || roles.contains(&role);
            check(format!("EXECUTE {function}"), format!("SELECT {function}({nulls})"), expected).await;
        }
        let owner = role == ServerRole::Migrator;
        check("CREATE TABLE".into(), "CREATE TABLE public.mine ()".into(), owner).await;
        check(
            "CREATE FUNCTION".into(),
            "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'".into(),
            owner,
        )
        .await;
        check("CREATE TEMPORARY TABLE".into(), "CREATE TEMPORARY TABLE mine ()".into(), false).await;
        for statement in [
            "SELECT lo_create(0)",
            "SELECT lo_creat(-1)",
            "SELECT lo_from_bytea(0, 'mine')",
            "SELECT lo_import('/etc/hostname')",
        ] {
            check("a large object".into(), statement.into(), false).await;
        }
        // Every role may take one: nothing here waits for it.
        check("an advisory lock".into(), "SELECT pg_advisory_xact_lock(1)".into(), true).await;
        check(
            "LOCK users".into(),
            "LOCK TABLE users IN ACCESS EXCLUSIVE MODE".into(),
            owner || role == ServerRole::Worker,
        )
        .await;
        check("LOCK commands".into(), "LOCK TABLE commands IN ACCESS EXCLUSIVE MODE".into(), owner).await;
        check("LOCK migration_lock".into(), "LOCK TABLE migration_lock IN ROW EXCLUSIVE MODE".into(), owner).await;
        check("CREATE SCHEMA".into(), "CREATE SCHEMA mine".into(), false).await;
        check("CREATE ROLE".into(), "CREATE ROLE mine".into(), false).await;
        check("COPY TO PROGRAM".into(), "COPY (SELECT 1) TO PROGRAM 'true'".into(), false).await;
    }
    assert!(wrong.is_empty(), "{} of {checked}: {wrong:#?}", wrong.len());
    assert!(checked > 500, "{checked}");
}

#[test]
fn nobody_but_the_worker_and_the_owner_writes_anything() {
    for (table, grants) in TABLES {
        for (role, privileges) in *grants {
            let reads = privileges.iter().all(|privilege| *privilege == "SELECT");
            assert!(reads || *role == ServerRole::Worker, "{role:?} writes {table}");
            assert!(!privileges.contains(&"TRUNCATE"), "{role:?} truncates {table}");
        }
    }
    let of_users = TABLES.iter().filter(|(table, _)| ["users", "commands", "dead_letters", "events"].contains(table));
    let readers: BTreeSet<ServerRole> = of_users.flat_map(|(_, grants)| *grants).map(|(role, _)| *role).collect();
    assert_eq!(readers, BTreeSet::from([ServerRole::Api, ServerRole::Worker]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_and_function_of_the_schema_is_listed() {
    let deployment = Deployment::plain().await;
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let tables = "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT relispartition";
    let tables: BTreeSet<String> =
        sqlx::query_scalar(tables).fetch_all(&mut admin).await.unwrap().into_iter().collect();
    assert_eq!(tables, TABLES.iter().map(|(name, _)| (*name).to_owned()).collect(), "add it to the list of privileges");
    let functions = "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace";
    let functions: BTreeSet<String> =
        sqlx::query_scalar(functions).fetch_all(&mut admin).await.unwrap().into_iter().collect();
    assert_eq!(
        functions,
        FUNCTIONS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "add it to the list of privileges"
    );
    let callable: Vec<&str> = FUNCTIONS.iter().filter(|(_, roles)| !roles.is_empty()).map(|(name, _)| *name).collect();
    let loose = "SELECT proname::text FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
            AND (prosecdef OR proname = ANY($1))
            AND NOT (
                prosecdef
                AND array_to_string(proconfig, ' ') LIKE '%search_path=%'
                AND NOT EXISTS (SELECT FROM aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE grantee = 0)
            )";
    let loose: Vec<String> = sqlx::query_scalar(loose).bind(callable).fetch_all(&mut admin).await.unwrap();
    let mend = "what a role calls is SECURITY DEFINER SET search_path FROM CURRENT, and nobody else's";
    assert!(loose.is_empty(), "{loose:?}: {mend}");
}
