//! Instructions of applying one command, counted by callgrind. Run by `.ci/instructions`, never by itself.

use std::pin::{Pin, pin};

use common::command::UserId;
use local_stack::testing::PrivatePostgres;
use tokio::runtime::{Builder, Runtime};

use crate::support::{Fixture, create};

const COMMANDS: usize = 40;

/// callgrind collects inside of this function: what its thread does, tasks of the runtime included.
#[inline(never)]
fn collected_by_callgrind(runtime: &Runtime, work: Pin<&mut dyn Future<Output = ()>>) {
    runtime.block_on(work);
}

async fn apply(fixture: &Fixture, from: usize, count: usize) {
    for number in from..from + count {
        let outcomes = fixture.apply(&[create(UserId::mint(), &format!("u{number}@example.org"), "Ada")]).await;
        assert!(outcomes[0].is_some(), "decided before");
    }
}

#[test]
#[ignore = "counted by .ci/instructions"]
fn applying() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let server = PrivatePostgres::start(&[("fsync", "off")]).unwrap();
    let fixture = runtime.block_on(async {
        server.trust_every_client().await.unwrap();
        let fixture = Fixture::start_at(server.url()).await;
        apply(&fixture, 0, COMMANDS / 4).await;
        fixture
    });
    collected_by_callgrind(&runtime, pin!(apply(&fixture, COMMANDS, COMMANDS)));
    println!("units {COMMANDS}");
    runtime.block_on(fixture.stop());
}
