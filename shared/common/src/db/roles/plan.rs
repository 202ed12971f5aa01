//! From what the server has to what a deployment's roles need: statements, shown or executed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::state::{Known, Server};
use super::{SCHEMA, ServerRole, grants, quoted};
use crate::db::lock_holders;

/// How long one statement may wait for a table.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Errors go to the server's log without their details, in which the values of a row can be.
const TERSE: &str = "log_error_verbosity=terse";

/// What the roles shall be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// In front of each role's name, so that several deployments can share a server.
    pub prefix: String,
    /// The pooled connections of the whole deployment.
    pub budget: u32,
    /// New passwords, as SCRAM verifiers: a password itself would be in the server's log.
    pub verifiers: BTreeMap<ServerRole, String>,
}

/// What has to be done.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In order; none when the server is as it should be.
    pub statements: Vec<Statement>,
    /// The roles that are missing now.
    pub missing: BTreeSet<ServerRole>,
    /// Whether the role that asked may do it.
    pub permitted: bool,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    sql: String,
    /// The statement without secrets.
    pub shown: String,
    /// Whether the rest is of use without it, where the server does not allow it.
    pub optional: bool,
}

/// Why there is no plan, or it was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RolesError {
    /// Names with it would need care everywhere.
    #[error("the prefix {0:?} is no name; use at most 40 of a-z, 0-9 and _, a letter first")]
    Prefix(String),
    /// The server takes fewer connections.
    #[error(
        "a budget of {budget} does not fit: the server takes {most} connections, {reserved} of them for superusers"
    )]
    Budget {
        /// What was asked for.
        budget: u32,
        /// `max_connections`.
        most: i64,
        /// `superuser_reserved_connections`.
        reserved: i64,
    },
    /// The catalog could not be read.
    #[error("failed to ask the database")]
    Database(#[from] sqlx::Error),
    /// A statement failed, and all were undone.
    #[error("failed to execute {shown}; nothing was changed")]
    Statement {
        /// The statement.
        shown: String,
        /// Why.
        source: sqlx::Error,
    },
    /// A table is in use, and all was undone.
    #[error(
        "failed to execute {shown}; nothing was changed, because of locks that others hold ({holders}); end their transactions and \
         run this again"
    )]
    Locked {
        /// The statement.
        shown: String,
        /// Their sessions.
        holders: String,
    },
}

/// Compares, and changes nothing.
///
/// # Errors
/// Every kind but [`RolesError::Statement`].
pub async fn plan(conn: &mut PgConnection, wanted: &Wanted) -> Result<Plan, RolesError> {
    let Wanted { prefix, budget, verifiers } = wanted;
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if prefix.len() > 40 || !prefix.starts_with(|c: char| c.is_ascii_lowercase()) || !prefix.chars().all(named) {
        return Err(RolesError::Prefix(prefix.clone()));
    }
    let server = Server::read(&mut *conn).await?;
    if i64::from(*budget) > server.most - server.reserved {
        return Err(RolesError::Budget { budget: *budget, most: server.most, reserved: server.reserved });
    }
    let known = Known::read(&mut *conn, prefix).await?;
    let mut plan = Plan { permitted: server.permitted, ..Plan::default() };
    for role in ServerRole::ALL {
        let name = role.name(prefix);
        match known.get(&name) {
            None => {
                plan.missing.insert(role);
                plan.push(format!("CREATE ROLE {name} LOGIN CONNECTION LIMIT {}", role.connection_limit(*budget)));
            }
            Some(known) => plan.extend(known.corrections(&name, role.connection_limit(*budget))),
        }
        let settings = known.get(&name).map_or(&[][..], |known| &known.settings);
        for (setting, value) in role.settings().iter().filter(|(s, v)| !settings.contains(&format!("{s}={v}"))) {
            // A list must not become one quoted name.
            let value = if *setting == "search_path" { (*value).to_owned() } else { format!("'{value}'") };
            plan.push(format!("ALTER ROLE {name} SET {setting} = {value}"));
        }
        if !settings.iter().any(|setting| setting == TERSE) {
            plan.try_push(format!("ALTER ROLE {name} SET {TERSE}"));
        }
        if let Some(verifier) = verifiers.get(&role) {
            let sql = format!("ALTER ROLE {name} PASSWORD '{verifier}'");
            plan.statements
                .push(Statement { sql, shown: format!("ALTER ROLE {name} PASSWORD '…'"), optional: false });
        }
    }
    memberships(&mut *conn, prefix, &known, &server, &mut plan).await?;
    plan.extend(schema(&mut *conn, prefix, &server).await?);
    publics(&mut *conn, &server, &mut plan).await?;
    plan.extend(ownership(&mut *conn, prefix).await?);
    plan.extend(defaults(&mut *conn, prefix).await?);
    plan.extend(grants::differences(&mut *conn, prefix).await?);
    Ok(plan)
}

/// Executes a plan in one transaction, but for optional statements that the server does not allow.
///
/// # Errors
/// [`RolesError::Statement`] and [`RolesError::Locked`]; then nothing was changed.
pub async fn apply(conn: &mut PgConnection, plan: &Plan) -> Result<(), RolesError> {
    let mut tx = conn.begin().await?;
    // Handing tables over takes each for an instant: rather not at all than with everybody waiting behind.
    let timeout = format!("SET LOCAL lock_timeout = '{}s'", LOCK_TIMEOUT.as_secs());
    tx.execute(AssertSqlSafe(timeout)).await?;
    for statement in &plan.statements {
        let failed = |source| RolesError::Statement { shown: statement.shown.clone(), source };
        let mut savepoint = tx.begin().await?;
        // Names are quoted or of a checked prefix; verifiers have no quote in them.
        match savepoint.execute(AssertSqlSafe(statement.sql.clone())).await {
            Ok(_) => savepoint.commit().await?,
            Err(refused) if statement.optional && refused.as_database_error().is_some() => {
                savepoint.rollback().await?;
            }
            Err(error) if error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("55P03")) => {
                drop(savepoint);
                tx.rollback().await?;
                let holders = lock_holders(conn, LOCK_TIMEOUT).await?;
                return Err(RolesError::Locked { shown: statement.shown.clone(), holders });
            }
            Err(error) => return Err(failed(error)),
        }
    }
    tx.commit().await?;
    Ok(())
}

impl Plan {
    fn push(&mut self, sql: String) {
        self.statements.push(Statement { shown: sql.clone(), sql, optional: false });
    }

    /// A statement that some hosts do not allow, and without which the rest is of use.
    fn try_push(&mut self, sql: String) {
        self.statements.push(Statement { shown: sql.clone(), sql, optional: true });
    }

    fn extend(&mut self, statements: impl IntoIterator<Item = String>) {
        statements.into_iter().for_each(|sql| self.push(sql));
    }
}

async fn memberships(
    conn: &mut PgConnection,
    prefix: &str,
    known: &BTreeMap<String, Known>,
    server: &Server,
    plan: &mut Plan,
) -> Result<(), sqlx::Error> {
    const STATISTICS: &str = "pg_monitor";
    let migrator = ServerRole::Migrator.name(prefix);
    let of = |role: ServerRole| -> Vec<String> {
        match role {
            // To end the sessions of instances that are gone.
            ServerRole::Migrator => {
                [ServerRole::Api, ServerRole::Worker, ServerRole::ControlApi, ServerRole::ControlWorker]
                    .map(|role| role.name(prefix))
                    .to_vec()
            }
            ServerRole::Monitor => vec![STATISTICS.to_owned()],
            _ => Vec::new(),
        }
    };
    for role in ServerRole::ALL {
        let (name, wanted) = (role.name(prefix), of(role));
        let actual = known.get(&name).map_or(&[][..], |known| &known.member_of);
        plan.extend(
            actual
                .iter()
                .filter(|other| !wanted.contains(other))
                .map(|other| format!("REVOKE {} FROM {name}", quoted(other))),
        );
        for other in wanted.iter().filter(|other| !actual.contains(other)) {
            let sql = format!("GRANT {other} TO {name}");
            // Some hosts keep it to themselves.
            if other == STATISTICS { plan.try_push(sql) } else { plan.push(sql) }
        }
    }
    // Who hands a table over needs the rights of its next owner, and keeps working as before.
    if !server.superuser && !known.get(&migrator).is_some_and(|known| known.ours) {
        let user: String = sqlx::query_scalar("SELECT quote_ident(current_user)").fetch_one(conn).await?;
        plan.push(format!("GRANT {migrator} TO {user}"));
    }
    Ok(())
}

/// Who may enter the database and the schema, and who may create in it.
async fn schema(conn: &mut PgConnection, prefix: &str, server: &Server) -> Result<Vec<String>, sqlx::Error> {
    let held: BTreeSet<(String, String, String)> = sqlx::query_as::<_, (String, String, String)>(
        "
        SELECT coalesce(rolname::text, 'PUBLIC'), privilege_type, kind
        FROM (
            SELECT 'schema' AS kind, coalesce(nspacl, acldefault('n', nspowner)) AS acl
            FROM pg_namespace
            WHERE nspname = $1
            UNION ALL
            SELECT 'database', coalesce(datacl, acldefault('d', datdba))
            FROM pg_database
            WHERE datname = current_database()
        ) AS acls
        CROSS JOIN aclexplode(acl)
        LEFT JOIN pg_roles ON pg_roles.oid = grantee
        ",
    )
    .bind(SCHEMA)
    .fetch_all(conn)
    .await?
    .into_iter()
    .collect();
    let holds = |role: &str, privilege: &str, kind: &str| held.contains(&(role.into(), privilege.into(), kind.into()));
    let mut statements = Vec::new();
    if holds("PUBLIC", "CREATE", "schema") {
        statements.push(format!("REVOKE CREATE ON SCHEMA {SCHEMA} FROM PUBLIC"));
    }
    for role in ServerRole::ALL {
        let name = role.name(prefix);
        if !holds("PUBLIC", "CONNECT", "database") && !holds(&name, "CONNECT", "database") {
            statements.push(format!("GRANT CONNECT ON DATABASE {} TO {name}", quoted(&server.database)));
        }
        if !holds(&name, "USAGE", "schema") {
            statements.push(format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {name}"));
        }
        match (role, holds(&name, "CREATE", "schema")) {
            (ServerRole::Migrator, false) => statements.push(format!("GRANT CREATE ON SCHEMA {SCHEMA} TO {name}")),
            (ServerRole::Migrator, true) | (_, false) => {}
            (_, true) => statements.push(format!("REVOKE CREATE ON SCHEMA {SCHEMA} FROM {name}")),
        }
    }
    Ok(statements)
}

/// Takes from everybody what nothing here needs: temporary tables and large objects fill the disk, read-only sessions included.
/// The server's own functions belong to a superuser.
async fn publics(conn: &mut PgConnection, server: &Server, plan: &mut Plan) -> Result<(), sqlx::Error> {
    let open: Vec<String> = sqlx::query_scalar(
        "
        SELECT format('TEMPORARY ON DATABASE %I', datname)
        FROM pg_database
        CROSS JOIN aclexplode(coalesce(datacl, acldefault('d', datdba)))
        WHERE datname = $1 AND grantee = 0 AND privilege_type = 'TEMPORARY'
        UNION ALL
        SELECT format('EXECUTE ON FUNCTION pg_catalog.%I(%s)', proname, pg_get_function_identity_arguments(pg_proc.oid))
        FROM pg_proc
        CROSS JOIN aclexplode(coalesce(proacl, acldefault('f', proowner)))
        WHERE pronamespace = 'pg_catalog'::regnamespace
            AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import')
            AND grantee = 0
        ORDER BY 1
        ",
    )
    .bind(&server.database)
    .fetch_all(conn)
    .await?;
    for privilege in open {
        plan.try_push(format!("REVOKE {privilege} FROM PUBLIC"));
    }
    Ok(())
}

/// Hands over to the migrator what earlier migrations made as somebody else.
async fn ownership(conn: &mut PgConnection, prefix: &str) -> Result<Vec<String>, sqlx::Error> {
    let migrator = ServerRole::Migrator.name(prefix);
    let mut statements = Vec::new();
    for relation in grants::relations(&mut *conn).await? {
        if !relation.sequence && relation.owner != migrator {
            statements.push(format!("ALTER {} OWNER TO {migrator}", relation.object));
        }
    }
    for function in grants::functions(&mut *conn).await? {
        if function.owner != migrator {
            statements.push(format!("ALTER FUNCTION {} OWNER TO {migrator}", function.signature));
        }
    }
    Ok(statements)
}

/// What holds for the tables of days to come, which the worker has made for it.
async fn defaults(conn: &mut PgConnection, prefix: &str) -> Result<Vec<String>, sqlx::Error> {
    let (migrator, backup) = (ServerRole::Migrator.name(prefix), ServerRole::Backup.name(prefix));
    let known: Vec<(String, bool, String)> = sqlx::query_as(
        "
        SELECT defaclobjtype::text, defaclnamespace <> 0, coalesce(rolname::text, 'PUBLIC')
        FROM pg_default_acl
        CROSS JOIN aclexplode(defaclacl)
        LEFT JOIN pg_roles ON pg_roles.oid = grantee
        WHERE pg_get_userbyid(defaclrole) = $1
        ",
    )
    .bind(&migrator)
    .fetch_all(conn)
    .await?;
    let has = |kind: &str, grantee: &str| known.iter().any(|(k, _, g)| k == kind && g == grantee);
    let mut statements = Vec::new();
    for (kind, objects) in [("r", "TABLES"), ("S", "SEQUENCES")] {
        if !has(kind, &backup) {
            statements.push(format!(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {migrator} IN SCHEMA {SCHEMA} GRANT SELECT ON {objects} TO {backup}"
            ));
        }
    }
    // There is a row for it only once everybody's right was taken; and only without a schema can it be taken.
    let taken = known.iter().any(|(kind, of_schema, _)| kind == "f" && !of_schema) && !has("f", "PUBLIC");
    if !taken {
        statements
            .push(format!("ALTER DEFAULT PRIVILEGES FOR ROLE {migrator} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"));
    }
    Ok(statements)
}
