//! What the server says of itself, and of the deployment's roles.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::ServerRole;

/// What the server says of itself and of whoever asks.
#[derive(sqlx::FromRow)]
pub(super) struct Server {
    pub(super) database: String,
    pub(super) superuser: bool,
    pub(super) permitted: bool,
    pub(super) most: i64,
    pub(super) reserved: i64,
}

impl Server {
    pub(super) async fn read(conn: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as(
            "
            SELECT
                current_database()::text AS database,
                rolsuper AS superuser,
                rolsuper OR rolcreaterole AS permitted,
                current_setting('max_connections')::bigint AS most,
                current_setting('superuser_reserved_connections')::bigint AS reserved
            FROM pg_roles
            WHERE rolname = current_user
            ",
        )
        .fetch_one(conn)
        .await
    }
}

/// A role as the server has it.
#[derive(sqlx::FromRow)]
pub(super) struct Known {
    name: String,
    login: bool,
    inherits: bool,
    /// Attributes that none of them may have.
    excess: Vec<String>,
    connection_limit: i32,
    pub(super) settings: Vec<String>,
    pub(super) member_of: Vec<String>,
    /// Whether whoever asks has its rights.
    pub(super) ours: bool,
}

impl Known {
    pub(super) async fn read(conn: &mut PgConnection, prefix: &str) -> Result<BTreeMap<String, Self>, sqlx::Error> {
        let roles: Vec<Self> = sqlx::query_as(
            "
            SELECT
                rolname::text AS name,
                rolcanlogin AS login,
                rolinherit AS inherits,
                array_remove(ARRAY[
                    CASE WHEN rolsuper THEN 'NOSUPERUSER' END,
                    CASE WHEN rolcreatedb THEN 'NOCREATEDB' END,
                    CASE WHEN rolcreaterole THEN 'NOCREATEROLE' END,
                    CASE WHEN rolreplication THEN 'NOREPLICATION' END,
                    CASE WHEN rolbypassrls THEN 'NOBYPASSRLS' END
                ], NULL) AS excess,
                rolconnlimit AS connection_limit,
                coalesce(
                    (SELECT setconfig FROM pg_db_role_setting WHERE setrole = pg_roles.oid AND setdatabase = 0), '{}'
                ) AS settings,
                ARRAY(
                    SELECT DISTINCT pg_get_userbyid(roleid)::text
                    FROM pg_auth_members
                    WHERE member = pg_roles.oid
                ) AS member_of,
                pg_has_role(oid, 'USAGE') AS ours
            FROM pg_roles
            WHERE rolname = ANY($1)
            ",
        )
        .bind(ServerRole::ALL.map(|role| role.name(prefix)))
        .fetch_all(conn)
        .await?;
        Ok(roles.into_iter().map(|role| (role.name.clone(), role)).collect())
    }

    /// The statement that mends its attributes.
    pub(super) fn corrections(&self, name: &str, limit: u32) -> Option<String> {
        let mut attributes = self.excess.clone();
        // Only what differs is named: naming an attribute needs the right to change it.
        if !self.login {
            attributes.push("LOGIN".to_owned());
        }
        if !self.inherits {
            attributes.push("INHERIT".to_owned());
        }
        if i64::from(self.connection_limit) != i64::from(limit) {
            attributes.push(format!("CONNECTION LIMIT {limit}"));
        }
        (!attributes.is_empty()).then(|| format!("ALTER ROLE {name} {}", attributes.join(" ")))
    }
}
