//! Instructions of reading one user and of accepting one command, counted by callgrind. Run by `.ci/instructions`, never by
//! themselves.

use std::pin::{Pin, pin};

use common::broker::set_up;
use common::config::{BrokerSettings, amqp_url};
use common::transport::PlaintextHosts;
use local_stack::testing::{PrivatePostgres, broker_prefix};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use crate::reads::insert;
use crate::support::{App, Database, request, stack};

const REQUESTS: usize = 40;

/// callgrind collects inside of this function: what its thread does, tasks of the runtime included. The broker's client reads
/// and writes on a thread of its own.
#[inline(never)]
fn collected_by_callgrind(runtime: &Runtime, work: Pin<&mut dyn Future<Output = ()>>) {
    runtime.block_on(work);
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn database(server: &PrivatePostgres) -> Database {
    server.trust_every_client().await.expect("rules");
    Database::create_at(server.url()).await
}

async fn read(app: &App, path: &str, count: usize) {
    for _ in 0..count {
        assert_eq!(app.get(path).await.status.as_u16(), 200);
    }
}

async fn accept(app: &App, from: usize, count: usize) {
    for number in from..from + count {
        let body = format!(r#"{{"email":"u{number}@example.org","name":"Ada Lovelace"}}"#);
        let answer = app.send(request("POST", "/v1/users", &[("content-type", "application/json")], body)).await;
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    }
}

#[test]
#[ignore = "counted by .ci/instructions"]
fn reading() {
    let (runtime, server) = (runtime(), PrivatePostgres::start(&[("fsync", "off")]).unwrap());
    let id = Uuid::now_v7();
    let path = format!("/v1/users/{id}");
    let (database, app) = runtime.block_on(async {
        let mut database = database(&server).await;
        insert(&mut database.conn, id, "ada@example.org", false).await;
        let app = App::over(database.url());
        read(&app, &path, REQUESTS / 4).await;
        (database, app)
    });
    collected_by_callgrind(&runtime, pin!(read(&app, &path, REQUESTS)));
    println!("units {REQUESTS}");
    drop((app, database));
}

#[test]
#[ignore = "counted by .ci/instructions"]
fn accepting() {
    let (runtime, server) = (runtime(), PrivatePostgres::start(&[("fsync", "off")]).unwrap());
    let broker = BrokerSettings {
        url: amqp_url(stack().rabbitmq.url()).unwrap(),
        file: None,
        prefix: broker_prefix(),
        partitions: 1,
        plaintext_hosts: PlaintextHosts::default(),
    };
    let (database, app) = runtime.block_on(async {
        let database = database(&server).await;
        set_up(&broker).await.unwrap();
        let app = App::accepting(database.url(), &broker).await;
        accept(&app, 0, REQUESTS / 4).await;
        (database, app)
    });
    collected_by_callgrind(&runtime, pin!(accept(&app, REQUESTS, REQUESTS)));
    println!("units {REQUESTS}");
    drop((app, database));
}
