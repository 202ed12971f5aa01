//! Costs of a batch at PostgreSQL (statements, rows, write-ahead log), compared with what is recorded in `.ci/bounds`.
//!
//! A server of its own counts, with no other work on it. Every statement is a round trip, BEGIN and COMMIT included. The batch is
//! applied once before it is counted, so that its connection and the statements are prepared.

use std::collections::BTreeMap;

use common::command::{Envelope, UserId};
use local_stack::testing::PrivatePostgres;
use rollcall_worker::apply::Applier;

use crate::support::{Fixture, create, delete, messages, reactivate, soon, suspend, update};

const BOUNDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.ci/bounds");
/// The share above what is recorded, for figures that depend on where rows land on pages: a tenth.
const SLACK: i64 = 10;

/// A fixture, an applier that stays, and their server.
struct Bench {
    fixture: Fixture,
    applier: Applier,
    // Last: dropped after what is connected to it.
    _server: PrivatePostgres,
}

async fn start() -> Bench {
    // A page that is written in whole for the first time after a checkpoint, or by autovacuum, is no cost of the batch.
    let settings = [
        ("shared_preload_libraries", "pg_stat_statements"),
        ("full_page_writes", "off"),
        ("autovacuum", "off"),
        ("fsync", "off"),
    ];
    let server = tokio::task::spawn_blocking(move || PrivatePostgres::start(&settings)).await.expect("no panic");
    let server = server.expect("PostgreSQL");
    let mut fixture = Fixture::start_at(server.url()).await;
    fixture.database.execute("CREATE EXTENSION pg_stat_statements").await;
    let applier = fixture.applier();
    Bench { fixture, applier, _server: server }
}

impl Bench {
    async fn apply(&mut self, batch: &[Envelope]) {
        soon("a commit", self.applier.apply(&messages(batch))).await.expect("outcomes");
    }

    /// Applies a batch and gives what it cost.
    async fn cost(&mut self, batch: &[Envelope]) -> BTreeMap<&'static str, i64> {
        self.fixture.database.execute("SELECT pg_stat_statements_reset()").await;
        self.apply(batch).await;
        let sums = "
            SELECT sum(calls)::bigint, sum(rows)::bigint, sum(wal_records)::bigint, sum(wal_bytes)::bigint
            FROM pg_stat_statements
            WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND query NOT LIKE '%pg_stat_statements_reset%'
        ";
        let sums: (i64, i64, i64, i64) =
            sqlx::query_as(sums).fetch_one(&mut self.fixture.database.conn).await.expect("the sums");
        assert_eq!(self.fixture.database.count("commands WHERE status <> 'succeeded'").await, 0);
        BTreeMap::from([("statements", sums.0), ("rows", sums.1), ("wal_records", sums.2), ("wal_bytes", sums.3)])
    }

    /// Users that [`mixed`] can be applied to: what is to be reactivated is suspended.
    async fn users(&mut self, kind: &str) -> Vec<UserId> {
        let created = creates(50, kind);
        let users: Vec<UserId> = created.iter().map(|envelope| envelope.command.user_id()).collect();
        self.apply(&created).await;
        let suspended: Vec<_> = users.iter().skip(3).step_by(5).map(|user| suspend(*user)).collect();
        self.apply(&suspended).await;
        users
    }
}

/// Prints what a batch cost as it would be recorded; gives the figures that are above their bounds.
#[expect(clippy::print_stdout, reason = "for the record")]
fn excess(batch: &str, costs: &BTreeMap<&'static str, i64>) -> Vec<String> {
    let bounds = std::fs::read_to_string(BOUNDS).expect("the bounds");
    let mut above = Vec::new();
    for (kind, cost) in costs {
        let name = format!("{batch}.{kind}");
        println!("{name} {cost}");
        let bound = bounds.lines().find_map(|line| line.strip_prefix(name.as_str())?.trim().parse::<i64>().ok());
        let bound = bound.unwrap_or_else(|| panic!(".ci/bounds has no {name}"));
        let slack = if matches!(*kind, "statements" | "rows") { 0 } else { bound / SLACK };
        if *cost > bound + slack {
            above.push(format!("{name} {cost}, recorded {bound}"));
        }
    }
    above
}

fn creates(count: usize, kind: &str) -> Vec<Envelope> {
    let address = |number| format!("{kind}-{number}@example.org");
    (0..count).map(|number| create(UserId::mint(), &address(number), "Ada Lovelace")).collect()
}

/// Ten of each kind, of as many users.
fn mixed(users: &[UserId], kind: &str) -> Vec<Envelope> {
    let kinds = users.iter().enumerate().map(|(number, user)| match number % 5 {
        0 => update(*user, None, Some("Ada King")),
        1 => update(*user, Some(&format!("{kind}-new-{number}@example.org")), None),
        2 => suspend(*user),
        3 => reactivate(*user),
        _ => delete(*user),
    });
    kinds.collect()
}

#[tokio::test]
async fn batches_cost_what_is_recorded() {
    let mut bench = start().await;
    let mut excesses = Vec::new();
    for (name, count) in [("one_create", 1), ("hundred_creates", 100)] {
        bench.apply(&creates(count, &format!("{name}-before"))).await;
        let costs = bench.cost(&creates(count, name)).await;
        excesses.extend(excess(name, &costs));
    }
    let (before, after) = (bench.users("before").await, bench.users("after").await);
    bench.apply(&mixed(&before, "before")).await;
    let costs = bench.cost(&mixed(&after, "after")).await;
    excesses.extend(excess("fifty_mixed", &costs));
    bench.fixture.stop().await;
    assert!(excesses.is_empty(), "above what .ci/bounds records:\n{}", excesses.join("\n"));
}
