//! A deployment whose parts have roles of their own on the server: they can do all that they must, and nothing else.

mod matrix;
mod plans;
mod walls;

use std::process::Output;

use common::db::roles::ServerRole;
use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::harness::{Process, System, Writers, eventually};

/// A system, and the roles that were made for it.
struct Deployment {
    // Dropped before its roles: they own what is in its database.
    system: System,
    roles: Roles,
}

/// Their names, and a folder with their URLs; dropped with the value.
struct Roles {
    admin: String,
    prefix: String,
    urls: tempfile::TempDir,
}

impl Deployment {
    /// A migrated database, and no roles yet.
    async fn plain() -> Self {
        let system = System::prepare().await;
        let admin = variable(&system, "DATABASE_URL");
        // No other test's: roles belong to the whole server.
        let database = url::Url::parse(&admin).unwrap().path().trim_start_matches('/').to_owned();
        let roles = Roles { admin, prefix: format!("r{database}"), urls: tempfile::tempdir().unwrap() };
        Self { system, roles }
    }

    /// The same with roles.
    async fn new() -> Self {
        let deployment = Self::plain().await;
        deployment.roles.applied(&["--budget", "20"]).await;
        deployment
    }

    /// Every process runs as its own role from now on; `role` is that of the next one to start.
    fn run_as(&mut self, role: ServerRole) {
        self.system.environment.retain(|(name, _)| !name.starts_with("DATABASE"));
        let control = if role == ServerRole::Api { ServerRole::ControlApi } else { ServerRole::ControlWorker };
        let files = [("DATABASE_URL_FILE", role), ("DATABASE_CONTROL_URL_FILE", control)];
        for (name, role) in files {
            self.system.set(name, self.roles.file(role).to_str().unwrap());
        }
    }

    async fn api(&mut self) -> Process {
        self.run_as(ServerRole::Api);
        self.system.api().await
    }

    async fn worker(&mut self) -> Process {
        self.run_as(ServerRole::Worker);
        self.system.worker().await
    }

    fn worker_unready(&mut self) -> Process {
        self.run_as(ServerRole::Worker);
        self.system.worker_unready()
    }
}

impl Roles {
    fn file(&self, role: ServerRole) -> std::path::PathBuf {
        self.urls.path().join(role.name(&self.prefix))
    }

    fn url(&self, role: ServerRole) -> String {
        std::fs::read_to_string(self.file(role)).unwrap().trim().to_owned()
    }

    async fn connect(&self, role: ServerRole) -> PgConnection {
        PgConnection::connect(&self.url(role)).await.unwrap()
    }

    /// Runs `rollcall roles COMMAND` with these arguments, as whoever the URL names.
    async fn run(&self, url: &str, command: &str, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["roles", command, "--prefix", &self.prefix, "--urls"])
            .arg(self.urls.path())
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", url)
            .output()
            .await
            .unwrap()
    }

    async fn applied(&self, arguments: &[&str]) -> String {
        let output = self.run(&self.admin, "apply", &[arguments, &["--yes"]].concat()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn planned(&self, arguments: &[&str]) -> String {
        let output = self.run(&self.admin, "plan", arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Roles {
    fn drop(&mut self) {
        // Any database will do, and the test's is gone.
        let mut server = url::Url::parse(&self.admin).unwrap();
        server.set_path("postgres");
        let names = ServerRole::ALL.map(|role| role.name(&self.prefix)).join(", ");
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut admin = PgConnection::connect(server.as_str()).await.ok()?;
                admin.execute(AssertSqlSafe(format!("DROP ROLE IF EXISTS {names}"))).await.ok()
            })
        });
        let _ = dropping.join();
    }
}

fn variable(system: &System, name: &str) -> String {
    system.environment.iter().find(|(known, _)| known == name).unwrap().1.clone()
}

fn sqlstate<T>(result: Result<T, sqlx::Error>) -> Option<String> {
    let error = result.err()?;
    Some(error.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned())
}

async fn rollcall(deployment: &Deployment, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL_FILE", deployment.roles.file(ServerRole::Migrator))
        .output()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_is_migrated_and_served_by_roles_of_their_own() {
    let mut deployment = Deployment::plain().await;
    let mut admin = deployment.system.database().await;
    admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.unwrap();
    deployment.roles.applied(&["--budget", "20"]).await;
    let migrated = rollcall(&deployment, &["migrate", "run"]).await;
    let said = String::from_utf8_lossy(&migrated.stdout);
    assert!(migrated.status.success() && said.contains("privileges in line"), "{migrated:?}");
    assert!(deployment.roles.planned(&["--budget", "20"]).await.contains("nothing to do"));

    let (api, worker) = (deployment.api().await, deployment.worker().await);
    let system = &deployment.system;
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let request =
        system.client.patch(api.url(&path)).header("prefer", "wait=20").json(&json!({"name": "Ada Lovelace"}));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let read: Value = system.get(&api, &path).await.json().await.unwrap();
    assert_eq!(read["name"], "Ada Lovelace");
    let keyed = system.client.post(api.url("/v1/users")).header("idempotency-key", "k").header("prefer", "wait=20");
    let keyed = keyed.json(&json!({"email": "key@example.org", "name": "Key"})).send().await.unwrap();
    assert_eq!(keyed.status(), StatusCode::CREATED);
    let request = system.client.delete(api.url(&path)).header("prefer", "wait=20");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT);

    // A dead letter, replayed by the operator as the migrator.
    let refusing = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF new.name = 'Poison' THEN RAISE EXCEPTION 'poison' USING ERRCODE = '22023'; END IF; RETURN new; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION refuse()";
    admin.execute(refusing).await.unwrap();
    let body = json!({"email": "poison@example.org", "name": "Poison"});
    let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    let command: Value = accepted.json().await.unwrap();
    let id = command["id"].as_str().unwrap().to_owned();
    assert_eq!(system.outcome(&api, &id).await["status"], "parked");
    admin.execute("DROP TRIGGER refuse ON users").await.unwrap();
    let replayed = rollcall(&deployment, &["dead-letters", "replay", &id]).await;
    assert!(replayed.status.success(), "{replayed:?}");
    assert_eq!(deployment.system.outcome(&api, &id).await["status"], "succeeded");
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_as_the_migrator_and_read_by_the_api_alone() {
    let mut deployment = Deployment::new().await;
    deployment.system.set("AUTH", "keys");
    let (api, _worker) = (deployment.api().await, deployment.worker().await);
    let create = ["keys", "create", "--client", "billing", "--scope", "users:write", "--scope", "users:read"];
    let made = rollcall(&deployment, &create).await;
    assert!(made.status.success(), "{made:?}");
    let key = String::from_utf8(made.stdout).unwrap();
    let request =
        deployment.system.client.post(api.url("/v1/users")).bearer_auth(key.trim()).header("prefer", "wait=20");
    let created = request.json(&json!({"email": "ada@example.org", "name": "Ada"})).send().await.unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    for (role, may_read) in [(ServerRole::Api, true), (ServerRole::Worker, false), (ServerRole::ControlApi, false)] {
        let mut conn = deployment.roles.connect(role).await;
        let hashes = sqlx::query("SELECT hash FROM api_keys").execute(&mut conn).await;
        assert_eq!(sqlstate(hashes).is_none(), may_read, "{role:?}");
        let revoked = sqlx::query("UPDATE api_keys SET revoked_at = now()").execute(&mut conn).await;
        assert!(sqlstate(revoked).is_some(), "{role:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_gone_is_reaped_by_roles_that_may_signal_nobody() {
    let mut deployment = Deployment::new().await;
    let api = deployment.api().await;
    let writers = Writers::start(4, &[api.url("")]);
    let (killed, frozen) = (deployment.worker().await, deployment.worker().await);
    writers.progress(50).await;
    killed.kill();
    writers.progress(50).await;
    frozen.signal(Signal::STOP);
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%/' || $1";
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let members: Vec<String> = sqlx::query_scalar("SELECT instance::text FROM members WHERE service = 'worker'")
        .fetch_all(&mut admin)
        .await
        .unwrap();
    let heir = deployment.worker_unready();
    eventually("the frozen one's sessions are ended", async || {
        let mut left = 0;
        for member in &members {
            left += sqlx::query(sessions).bind(member).fetch_all(&mut admin).await.unwrap().len();
        }
        (left == 0).then_some(())
    })
    .await;
    heir.ready().await;
    writers.progress(50).await;
    frozen.signal(Signal::CONT);
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&deployment.system).await;
    // Nothing of it came from a right to end anybody's session.
    let mut control = deployment.roles.connect(ServerRole::ControlWorker).await;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut admin).await.unwrap();
    let ended = sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&mut control).await;
    assert_eq!(sqlstate(ended).as_deref(), Some("42501"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_only_calls_itself_a_members_keeps_nobody_from_being_reaped() {
    let mut deployment = Deployment::new().await;
    let worker = deployment.worker().await;
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let instance: String =
        sqlx::query_scalar("SELECT instance::text FROM members").fetch_one(&mut admin).await.unwrap();
    let name = format!("SET application_name = 'rollcall/{instance}'");
    admin.execute(AssertSqlSafe(name)).await.unwrap();
    worker.kill();
    let heir = deployment.worker().await;
    eventually("one is reaped", async || {
        let count = sqlx::query_scalar("SELECT count(*) FROM members").fetch_one(&mut admin).await;
        (count.unwrap_or(0_i64) == 1).then_some(())
    })
    .await;
    heir.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_plain_url_serves_everything_and_it_is_said_once_that_no_wall_stands() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
    for output in [api.output(), worker.output()] {
        assert_eq!(output.matches("no connection limit").count(), 1, "{output}");
    }
    let mut deployment = Deployment::new().await;
    let worker = deployment.worker().await;
    assert_eq!(worker.output().matches("no connection limit").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_is_told_which_one_may() {
    let deployment = Deployment::new().await;
    for (role, arguments) in [
        (ServerRole::Api, &["dead-letters", "list"][..]),
        (ServerRole::Monitor, &["keys", "list"]),
        (ServerRole::Worker, &["keys", "create", "--client", "a", "--scope", "users:read"]),
    ] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL_FILE", deployment.roles.file(role))
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("permission denied") && said.contains("the migrator's"), "{arguments:?}: {said}");
        assert!(!said.contains("at line") && said.matches("permission denied").count() == 1, "{arguments:?}: {said}");
    }
}
