//! `rollcall roles plan` and `apply` on servers in different states.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use common::db::roles::ServerRole;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{Deployment, rollcall, sqlstate};
use crate::harness::stack;

const BUDGET: &[&str] = &["--budget", "3"];

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changes_nothing_and_what_is_applied_once_is_in_order() {
    let deployment = Deployment::plain().await;
    let roles = &deployment.roles;
    let plan = roles.planned(BUDGET).await;
    assert!(plan.contains(&format!("CREATE ROLE {}_api LOGIN CONNECTION LIMIT 3;", roles.prefix)), "{plan}");
    assert!(
        plan.contains(&format!("ALTER ROLE {}_worker PASSWORD '…';", roles.prefix)) && !plan.contains("SCRAM"),
        "{plan}"
    );
    assert_eq!(roles.urls.path().read_dir().unwrap().count(), 0);
    let without = roles.run(&roles.admin, "apply", BUDGET).await;
    assert!(!without.status.success() && String::from_utf8_lossy(&without.stderr).contains("--yes"));

    assert!(!roles.applied(BUDGET).await.contains("SCRAM"));
    // As an earlier version left it.
    std::fs::set_permissions(roles.file(ServerRole::Api), Permissions::from_mode(0o644)).unwrap();
    assert_eq!(roles.planned(BUDGET).await, "-- nothing to do\n");
    assert_eq!(roles.applied(BUDGET).await, "-- nothing to do\n");
    let json: Value = serde_json::from_str(&roles.planned(&["--budget", "4", "--json"]).await).unwrap();
    let expected = [("api", 4), ("worker", 4), ("control_api", 8), ("control_worker", 8)];
    let statements: Vec<String> =
        expected.map(|(role, limit)| format!("ALTER ROLE {}_{role} CONNECTION LIMIT {limit}", roles.prefix)).to_vec();
    let shown: Vec<&str> = json["statements"].as_array().unwrap().iter().map(|s| s["sql"].as_str().unwrap()).collect();
    assert_eq!(shown, statements);

    for role in ServerRole::ALL {
        let mode = roles.file(role).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut conn = roles.connect(role).await;
        for (setting, value) in role.settings() {
            let shown: String =
                sqlx::query_scalar(AssertSqlSafe(format!("SHOW {setting}"))).fetch_one(&mut conn).await.unwrap();
            let same = shown == *value || (*value == "60s" && shown == "1min");
            assert!(same, "{role:?} {setting}: {shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drifted_is_brought_back_by_the_next_apply_and_grants_by_the_next_migration() {
    let deployment = Deployment::plain().await;
    let roles = &deployment.roles;
    roles.applied(BUDGET).await;
    let mut admin = PgConnection::connect(&roles.admin).await.unwrap();
    let name = |role: ServerRole| role.name(&roles.prefix);
    let (api, worker, migrator) = (name(ServerRole::Api), name(ServerRole::Worker), name(ServerRole::Migrator));
    let drift = format!(
        "GRANT INSERT, UPDATE (name) ON users TO {api}; REVOKE SELECT ON users FROM {api}; GRANT TRUNCATE ON suspects TO PUBLIC;
         GRANT EXECUTE ON FUNCTION reap_members() TO {worker}"
    );
    admin.execute(AssertSqlSafe(drift)).await.unwrap();
    let migrated = rollcall(&deployment, &["migrate", "run"]).await;
    assert!(String::from_utf8_lossy(&migrated.stdout).contains("in line with 4 statement(s)"), "{migrated:?}");
    assert_eq!(roles.planned(BUDGET).await, "-- nothing to do\n");

    let drift = format!(
        "ALTER ROLE {api} CREATEDB CONNECTION LIMIT -1; ALTER ROLE {worker} SET search_path = 'elsewhere';
         GRANT pg_write_all_data TO {api}; REVOKE {worker} FROM {migrator}; ALTER TABLE users OWNER TO CURRENT_USER;
         ALTER FUNCTION reap_members() OWNER TO CURRENT_USER; GRANT CREATE ON SCHEMA public TO {api}"
    );
    admin.execute(AssertSqlSafe(drift)).await.unwrap();
    let applied = roles.applied(BUDGET).await;
    for part in [
        format!("ALTER ROLE {api} NOCREATEDB CONNECTION LIMIT 3;"),
        format!("REVOKE \"pg_write_all_data\" FROM {api};"),
        format!("GRANT {worker} TO {migrator};"),
        format!("ALTER TABLE public.users OWNER TO {migrator};"),
        format!("REVOKE CREATE ON SCHEMA public FROM {api};"),
    ] {
        assert!(applied.contains(&part), "{part}\n{applied}");
    }
    assert_eq!(roles.planned(BUDGET).await, "-- nothing to do\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wall_stands_where_the_budget_ends() {
    let deployment = Deployment::plain().await;
    deployment.roles.applied(BUDGET).await;
    for role in [ServerRole::Api, ServerRole::Worker] {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(deployment.roles.connect(role).await);
        }
        let refused = PgConnection::connect(&deployment.roles.url(role)).await;
        assert_eq!(sqlstate(refused).as_deref(), Some("53300"));
        // A heartbeat goes through all the same.
        deployment.roles.connect(ServerRole::ControlApi).await;
    }
    let refused = deployment.roles.run(&deployment.roles.admin, "plan", &["--budget", "5000"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not fit"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_replaced_by_deleting_its_file_and_kept_when_its_role_is_made_anew() {
    let deployment = Deployment::plain().await;
    let roles = &deployment.roles;
    roles.applied(BUDGET).await;
    let before = roles.url(ServerRole::Monitor);
    std::fs::remove_file(roles.file(ServerRole::Monitor)).unwrap();
    let applied = roles.applied(BUDGET).await;
    assert_eq!(applied, format!("ALTER ROLE {}_monitor PASSWORD '…';\n", roles.prefix));
    assert_ne!(roles.url(ServerRole::Monitor), before);
    let refused = PgConnection::connect(&before).await;
    assert_eq!(sqlstate(refused).as_deref(), Some("28P01"));
    roles.connect(ServerRole::Monitor).await;

    let mut admin = PgConnection::connect(&roles.admin).await.unwrap();
    let monitor = ServerRole::Monitor.name(&roles.prefix);
    admin.execute(AssertSqlSafe(format!("DROP OWNED BY {monitor}; DROP ROLE {monitor}"))).await.unwrap();
    roles.applied(BUDGET).await;
    roles.connect(ServerRole::Monitor).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_create_roles_needs_to_be_no_superuser_and_others_are_told_what_they_miss() {
    let deployment = Deployment::plain().await;
    let roles = &deployment.roles;
    let mut admin = PgConnection::connect(&roles.admin).await.unwrap();
    admin.execute("DROP SCHEMA public CASCADE").await.unwrap();
    let mut url = url::Url::parse(&roles.admin).unwrap();
    let database = url.path().trim_start_matches('/').to_owned();
    let owner = format!("{}_owner", roles.prefix);
    let make = format!(
        "CREATE ROLE {owner} LOGIN PASSWORD 'pw'; ALTER DATABASE {database} OWNER TO {owner};
         CREATE SCHEMA public AUTHORIZATION {owner}"
    );
    admin.execute(AssertSqlSafe(make)).await.unwrap();
    url.set_username(&owner).unwrap();
    url.set_password(Some("pw")).unwrap();

    let plan = roles.run(url.as_str(), "plan", BUDGET).await;
    assert!(
        plan.status.success() && String::from_utf8_lossy(&plan.stdout).contains("may not create roles"),
        "{plan:?}"
    );
    let applied = roles.run(url.as_str(), "apply", &[BUDGET, &["--yes"]].concat()).await;
    assert!(
        !applied.status.success() && String::from_utf8_lossy(&applied.stderr).contains("works, too"),
        "{applied:?}"
    );

    admin.execute(AssertSqlSafe(format!("ALTER ROLE {owner} CREATEROLE"))).await.unwrap();
    let applied = roles.run(url.as_str(), "apply", &[BUDGET, &["--yes"]].concat()).await;
    assert!(applied.status.success(), "{applied:?}");
    let said = String::from_utf8_lossy(&applied.stdout).into_owned();
    assert!(said.contains("does not allow REVOKE EXECUTE ON FUNCTION pg_catalog.lo_create(oid) FROM PUBLIC"), "{said}");
    let plan = roles.run(url.as_str(), "plan", &[BUDGET, &["--json"]].concat()).await;
    let left: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert!(left["statements"].as_array().unwrap().iter().all(|statement| statement["optional"] == true), "{left}");
    assert!(!left.to_string().contains("TEMPORARY"), "the owner of a database may revoke it: {left}");
    let migrated = rollcall(&deployment, &["migrate", "run"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    let back =
        format!("ALTER DATABASE {database} OWNER TO CURRENT_USER; DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}");
    admin.execute(AssertSqlSafe(back)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backup_role_can_dump_all_of_it_days_to_come_included() {
    let deployment = Deployment::new().await;
    let mut worker = deployment.roles.connect(ServerRole::Worker).await;
    worker.execute("SELECT ensure_command_day(current_date + 1)").await.unwrap();
    let Some(bin) = stack().postgres.bin_dir() else { return };
    let url = deployment.roles.url(ServerRole::Backup);
    let dump = tokio::process::Command::new(bin.join("pg_dump")).arg(url).output().await.unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8_lossy(&dump.stdout);
    for part in ["COPY public.users", "COPY public.commands_2", "COPY public.dead_letters", "dead_letters_id_seq"] {
        assert!(text.contains(part), "{part}");
    }
}
