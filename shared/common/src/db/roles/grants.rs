//! Privileges on tables and functions: the difference between the list and the server, as statements.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{FUNCTIONS, SCHEMA, SEARCH_PATH, ServerRole, TABLES};

/// A privilege on an object: `TABLE public.users`, the grantee, and what it may.
type Grants = BTreeMap<(String, String), BTreeSet<String>>;

/// The statements that bring the privileges of a deployment's roles in line. Nothing is said of objects that do not exist.
pub(super) async fn differences(conn: &mut PgConnection, prefix: &str) -> Result<Vec<String>, sqlx::Error> {
    let mut wanted = Grants::new();
    let mut statements = Vec::new();
    let backup = ServerRole::Backup.name(prefix);
    for Relation { name, object, parent, .. } in relations(conn).await? {
        wanted.entry((object.clone(), backup.clone())).or_default().insert("SELECT".to_owned());
        // A partition is reached through its table.
        let listed = TABLES.iter().find(|(table, _)| *table == name && parent.is_none());
        for (role, privileges) in listed.map_or(&[][..], |(_, grants)| grants) {
            let of_role = wanted.entry((object.clone(), role.name(prefix))).or_default();
            of_role.extend(privileges.iter().map(|privilege| (*privilege).to_owned()));
        }
    }
    for Function { name, signature, definer, settings, .. } in functions(conn).await? {
        let object = format!("FUNCTION {signature}");
        for role in FUNCTIONS.iter().find(|(function, _)| *function == name).map_or(&[][..], |(_, roles)| roles) {
            wanted.entry((object.clone(), role.name(prefix))).or_default().insert("EXECUTE".to_owned());
        }
        if definer && !settings.contains(&format!("search_path={SEARCH_PATH}")) {
            statements.push(format!("ALTER FUNCTION {signature} SET search_path = {SEARCH_PATH}"));
        }
    }
    let actual = granted(conn, prefix).await?;
    let nothing = BTreeSet::new();
    for (key, privileges) in &actual {
        let extra: Vec<&str> = privileges.difference(wanted.get(key).unwrap_or(&nothing)).map(String::as_str).collect();
        if !extra.is_empty() {
            statements.push(format!("REVOKE {} ON {} FROM {}", extra.join(", "), key.0, key.1));
        }
    }
    for (key, privileges) in &wanted {
        let (held, wanted) = (actual.get(key).unwrap_or(&nothing), privileges);
        // Revoked from a table, a verb is revoked from all its columns, too.
        let revoked = |privilege: &&str| {
            let verb = privilege.split_once(" (").map(|(verb, _)| verb);
            verb.is_some_and(|verb| held.contains(verb) && !wanted.contains(verb))
        };
        let missing: Vec<&str> =
            privileges.iter().map(String::as_str).filter(|p| !held.contains(*p) || revoked(p)).collect();
        if !missing.is_empty() {
            statements.push(format!("GRANT {} ON {} TO {}", missing.join(", "), key.0, key.1));
        }
    }
    Ok(statements)
}

/// Brings the privileges in line after a migration, when it was run by the migrator of a deployment that has all its roles;
/// gives how many statements that took.
///
/// # Errors
/// As the statements give them; then nothing was changed.
pub(in crate::db) async fn grant(conn: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let user: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *conn).await?;
    let Some(prefix) = user.strip_suffix("_migrator") else { return Ok(0) };
    let names: Vec<String> = ServerRole::ALL.iter().map(|role| role.name(prefix)).collect();
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)")
        .bind(&names)
        .fetch_one(&mut *conn)
        .await?;
    if usize::try_from(known) != Ok(names.len()) {
        return Ok(0);
    }
    let statements = differences(conn, prefix).await?;
    let mut tx = conn.begin().await?;
    for statement in &statements {
        // Names come from the list above and the catalog, quoted.
        tx.execute(AssertSqlSafe(statement.clone())).await?;
    }
    tx.commit().await?;
    Ok(statements.len())
}

/// A table, one of its partitions, or a sequence of one.
#[derive(sqlx::FromRow)]
pub(super) struct Relation {
    name: String,
    /// As SQL names it, with its kind.
    pub(super) object: String,
    parent: Option<String>,
    pub(super) owner: String,
    /// A sequence changes hands with its table.
    pub(super) sequence: bool,
}

/// Those of the list that exist, with their partitions and sequences.
pub(super) async fn relations(conn: &mut PgConnection) -> Result<Vec<Relation>, sqlx::Error> {
    sqlx::query_as(
        "
        SELECT
            relation.relname::text AS name,
            format('%s %I.%I', CASE relation.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, $1::text, relation.relname)
                AS object,
            parent.relname::text AS parent,
            pg_get_userbyid(relation.relowner)::text AS owner,
            relation.relkind = 'S' AS sequence
        FROM pg_class AS relation
        LEFT JOIN pg_inherits ON inhrelid = relation.oid
        LEFT JOIN pg_depend ON classid = 'pg_class'::regclass AND objid = relation.oid AND deptype IN ('a', 'i')
            AND refclassid = 'pg_class'::regclass AND relation.relkind = 'S'
        LEFT JOIN pg_class AS parent ON parent.oid = coalesce(inhparent, refobjid)
        WHERE relation.relnamespace = to_regnamespace($1)
            AND relation.relkind IN ('r', 'p', 'S')
            AND coalesce(parent.relname, relation.relname) = ANY($2)
        ORDER BY 1
        ",
    )
    .bind(SCHEMA)
    .bind(names(TABLES))
    .fetch_all(conn)
    .await
}

#[derive(sqlx::FromRow)]
pub(super) struct Function {
    name: String,
    pub(super) signature: String,
    pub(super) owner: String,
    definer: bool,
    settings: Vec<String>,
}

/// Those of the list that exist.
pub(super) async fn functions(conn: &mut PgConnection) -> Result<Vec<Function>, sqlx::Error> {
    sqlx::query_as(
        "
        SELECT
            proname::text AS name,
            format('%I.%I(%s)', $1::text, proname, pg_get_function_identity_arguments(oid)) AS signature,
            pg_get_userbyid(proowner)::text AS owner,
            prosecdef AS definer,
            coalesce(proconfig, '{}') AS settings
        FROM pg_proc
        WHERE pronamespace = to_regnamespace($1) AND proname = ANY($2)
        ORDER BY 1
        ",
    )
    .bind(SCHEMA)
    .bind(names(FUNCTIONS))
    .fetch_all(conn)
    .await
}

/// What the roles of the deployment and everybody (`PUBLIC`) may do now; owners are left out.
async fn granted(conn: &mut PgConnection, prefix: &str) -> Result<Grants, sqlx::Error> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "
        WITH granted AS (
            SELECT
                format('%s %I.%I', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, $1::text, relname) AS object,
                relowner AS owner, grantee, privilege_type AS privilege
            FROM pg_class
            CROSS JOIN aclexplode(relacl)
            WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'p', 'S')
            UNION ALL
            SELECT
                format('TABLE %I.%I', $1::text, relname), relowner, grantee, format('%s (%s)', privilege_type, attname)
            FROM pg_class
            JOIN pg_attribute ON attrelid = pg_class.oid
            CROSS JOIN aclexplode(attacl)
            WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'p')
            UNION ALL
            SELECT
                format('FUNCTION %I.%I(%s)', $1::text, proname, pg_get_function_identity_arguments(pg_proc.oid)),
                proowner, grantee, privilege_type
            FROM pg_proc
            CROSS JOIN aclexplode(coalesce(proacl, acldefault('f', proowner)))
            WHERE pronamespace = to_regnamespace($1) AND proname = ANY($3)
        )
        SELECT object, coalesce(rolname::text, 'PUBLIC'), privilege
        FROM granted
        LEFT JOIN pg_roles ON pg_roles.oid = grantee
        WHERE grantee <> owner AND (grantee = 0 OR rolname = ANY($2))
        ",
    )
    .bind(SCHEMA)
    .bind(ServerRole::ALL.map(|role| role.name(prefix)))
    .bind(names(FUNCTIONS))
    .fetch_all(conn)
    .await?;
    let mut grants = Grants::new();
    for (object, grantee, privilege) in rows {
        grants.entry((object, grantee)).or_default().insert(privilege);
    }
    Ok(grants)
}

fn names<T>(list: &[(&'static str, T)]) -> Vec<&'static str> {
    list.iter().map(|(name, _)| *name).collect()
}
