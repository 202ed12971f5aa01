//! The SQL functions beside the model: the same calls, the same rows.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use uuid::Uuid;

use super::model::{Claim, FLOOR, Fault, GRACE, Server};
use super::{instance_of, shared_settings};
use crate::support::{connect, database};

const INSTANCES: usize = 5;
const SCHEDULES: u64 = 40;
const CALLS: usize = 80;

/// What a row says, but for its instants.
type Row = (Uuid, i64, bool, i32, i32, i32);

/// The sessions that the server sees, and the control connections that ended, are tables here: what is compared must not
/// depend on when a session ends.
const STAGE: &str = "
    CREATE TABLE stage (pool text, sessions integer);
    CREATE OR REPLACE FUNCTION pool_sessions() RETURNS TABLE (pool text, sessions integer) LANGUAGE sql
    AS 'SELECT pool, sessions FROM stage';
    CREATE TABLE cut (instance uuid);
    CREATE OR REPLACE FUNCTION gone_members() RETURNS TABLE (instance uuid) LANGUAGE sql
    AS 'SELECT instance FROM members WHERE expires_at <= clock_timestamp() OR instance IN (SELECT instance FROM cut)';
    CREATE OR REPLACE FUNCTION lost_members() RETURNS TABLE (instance uuid) LANGUAGE sql
    AS 'SELECT instance FROM members WHERE false';
    UPDATE membership SET time_to_live = '1 day';
    ALTER TABLE members ALTER COLUMN joined_at SET DEFAULT 'infinity';
";

struct Stage {
    conn: PgConnection,
    server: Server,
    secrets: Vec<[u8; 32]>,
    names: Vec<Uuid>,
    sessions: Vec<i64>,
}

impl Stage {
    fn claim(i: usize) -> Claim {
        let (service, weight) = if i.is_multiple_of(2) { ("worker", 2) } else { ("api", 1) };
        Claim { service, weight, most: if i == 1 { 3 } else { 50 } }
    }

    async fn run(&mut self, statement: String) {
        self.conn.execute(AssertSqlSafe(statement)).await.expect("a change of the stage");
    }

    async fn join(&mut self, i: usize) {
        let claim = Self::claim(i);
        let expected = self.server.join(i, claim);
        self.run(format!("DELETE FROM cut WHERE instance = '{}'", self.names[i])).await;
        let joined: Option<i64> = sqlx::query_scalar(
            "SELECT joined FROM join_membership($1, $2, 'test', $3, NULL, $4::integer, $5::integer, $6::integer, NULL, true)",
        )
        .bind(self.secrets[i])
        .bind(claim.service)
        .bind(shared_settings(4, i32::try_from(self.server.budget).expect("a small number")))
        .bind(claim.weight)
        .bind(FLOOR)
        .bind(claim.most)
        .fetch_one(&mut self.conn)
        .await
        .expect("an answer");
        assert_eq!(joined.is_some(), expected, "instance {i} joins {:#?}", self.server);
    }

    async fn beat(&mut self, i: usize, held: i64, demand: i64) {
        let Some(epoch) = self.server.row(i).map(|row| row.epoch) else { return };
        let stored: i64 = sqlx::query_scalar("SELECT epoch FROM members WHERE instance = $1")
            .bind(self.names[i])
            .fetch_one(&mut self.conn)
            .await
            .expect("a row");
        let expected = self.server.beat(i, epoch, held, demand);
        let answer: Option<(i32, i32)> = sqlx::query_as(
            "SELECT granted, target
             FROM beat_membership($1, $2, $3::integer, 0, 0, 0, $4::integer, '0')
             WHERE alive AND granted IS NOT NULL",
        )
        .bind(self.secrets[i])
        .bind(stored)
        .bind(held)
        .bind(demand)
        .fetch_optional(&mut self.conn)
        .await
        .expect("an answer");
        assert_eq!(answer.map(|(granted, target)| (granted.into(), target.into())), expected, "instance {i} beats");
    }

    async fn act(&mut self, random: &mut StdRng) -> String {
        let i = random.random_range(0..INSTANCES);
        let name = self.names[i];
        let known = self.server.row(i).is_some();
        match random.random_range(0..40) {
            0..6 => {
                // Whoever comes back has a control connection again.
                let cut = self.server.row(i).is_some_and(|row| !row.connected);
                if cut {
                    return "nothing".to_owned();
                }
                self.join(i).await;
                format!("{i} joins")
            }
            6..26 => {
                let granted = self.server.row(i).map_or(0, |row| row.granted);
                let (held, demand) = (random.random_range(0..=granted), random.random_range(0..16));
                self.beat(i, held, demand).await;
                format!("{i} beats with {held}, {demand}")
            }
            26 => {
                if let Some(row) = self.server.row_mut(i) {
                    row.expired = true;
                }
                self.run(format!("UPDATE members SET expires_at = '-infinity' WHERE instance = '{name}'")).await;
                format!("{i} expires")
            }
            27 if known => {
                if let Some(row) = self.server.row_mut(i) {
                    // Long ago.
                    (row.connected, row.lost_at) = (false, Some(-GRACE));
                }
                self.run(format!("INSERT INTO cut VALUES ('{name}')")).await;
                format!("{i} is cut")
            }
            28 if known => {
                self.server.leave(i);
                sqlx::query("SELECT leave_membership($1)")
                    .bind(self.secrets[i])
                    .execute(&mut self.conn)
                    .await
                    .expect("an end");
                format!("{i} leaves")
            }
            29..35 => {
                if let Some(row) = self.server.row_mut(i) {
                    row.aged = true;
                }
                self.run(format!("UPDATE members SET joined_at = '-infinity' WHERE instance = '{name}'")).await;
                format!("{i} comes of age")
            }
            _ => {
                let sessions = random.random_range(0..=self.server.row(i).map_or(1, |row| row.granted + 1));
                self.sessions[i] = sessions;
                self.server.sessions.clone_from(&self.sessions);
                self.run(format!(
                    "DELETE FROM stage WHERE pool = 'rollcall/{name}';
                     INSERT INTO stage SELECT 'rollcall/{name}', {sessions} WHERE {sessions} > 0"
                ))
                .await;
                format!("{i} has {sessions} sessions")
            }
        }
    }

    async fn compare(&mut self, history: &[String]) {
        // An epoch counts here by its rank: in SQL, also a join that changed nothing takes one.
        let stored: Vec<Row> = sqlx::query_as(
            "SELECT instance, row_number() OVER (ORDER BY epoch), settled, target, granted, demand
             FROM members
             ORDER BY epoch",
        )
        .fetch_all(&mut self.conn)
        .await
        .expect("the rows");
        let small = |number: i64| i32::try_from(number).expect("a small number");
        let expected: Vec<Row> = (1..)
            .zip(&self.server.rows)
            .map(|(rank, row)| {
                (self.names[row.instance], rank, row.settled, small(row.target), small(row.granted), small(row.demand))
            })
            .collect();
        assert_eq!(stored, expected, "after {history:#?}");
    }
}

#[tokio::test]
async fn the_functions_of_the_database_do_what_the_model_does() {
    let database = database().await;
    let mut conn = connect(database.url()).await;
    conn.execute(AssertSqlSafe(STAGE.to_owned())).await.expect("a stage");
    let secrets: Vec<[u8; 32]> = (0..INSTANCES).map(|_| rand::random()).collect();
    let names: Vec<Uuid> = secrets.iter().map(|secret| instance_of(secret)).collect();
    for seed in 0..SCHEDULES {
        let mut random = StdRng::seed_from_u64(seed);
        conn.execute("DELETE FROM members; DELETE FROM cut; DELETE FROM stage; DELETE FROM deployment")
            .await
            .expect("an empty stage");
        let mut server = Server::new(random.random_range(6..30), Fault::None);
        server.sessions = vec![0; INSTANCES];
        let mut stage =
            Stage { conn, server, secrets: secrets.clone(), names: names.clone(), sessions: vec![0; INSTANCES] };
        let mut history = vec![format!("a budget of {}, seed {seed}", stage.server.budget)];
        for _ in 0..CALLS {
            history.push(stage.act(&mut random).await);
            stage.compare(&history).await;
        }
        conn = stage.conn;
    }
}
