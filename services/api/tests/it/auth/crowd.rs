//! Many clients that wait for the database keep no news about keys away.

use std::sync::Arc;
use std::time::Duration;

use common::access::{ApiKey, Scope};
use rollcall_api::auth::settings::AuthSettings;
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::inserted;
use crate::support::{App, Database};

const CROWD: usize = 30;

async fn list(app: &App, key: &str) -> u16 {
    app.get_with("/v1/users", &[("authorization", &format!("Bearer {key}"))]).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_comes_through_a_crowd_that_waits_for_connections() {
    let mut database = Database::create().await;
    let app = Arc::new(App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None }));
    let kept = inserted(&mut database.conn, &[Scope::UsersRead], [None, None]).await;
    let revoked = inserted(&mut database.conn, &[Scope::UsersRead], [None, None]).await;
    assert_eq!((list(&app, &kept).await, list(&app, &revoked).await), (200, 200));

    let mut locking = PgConnection::connect(database.url()).await.expect("a connection");
    locking.execute("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (app, key) = (Arc::clone(&app), kept.clone());
        crowd.spawn(async move {
            loop {
                assert_eq!(list(&app, &key).await, 503);
            }
        });
    }
    let id = ApiKey::parse(&revoked).expect("a key").id().to_owned();
    let revoke = sqlx::query("UPDATE api_keys SET revoked_at = now() WHERE id = $1").bind(id);
    revoke.execute(&mut database.conn).await.expect("revoked");
    let refused = async { while list(&app, &revoked).await != 401 {} };
    timeout(Duration::from_secs(20), refused).await.expect("in time");
    assert!(crowd.try_join_next().is_none(), "the crowd still waits");
}
