//! What a client does with users, over the real executables.

use std::collections::HashSet;

use client::types::{CommandStatus, NewUser, Problem, UserPatch, UserStatus};
use client::{Error, Written};
use reqwest::StatusCode;
use uuid::Uuid;

use crate::harness::{System, problem};

/// What every write here says, so that its outcome is its answer.
const WAIT: &str = "wait=20";

fn new(email: &str, name: &str) -> NewUser {
    NewUser { email: email.to_owned(), name: name.to_owned() }
}

/// The problem that a call ended with.
fn refused<T, E>(result: Result<T, E>) -> Problem
where
    Error: From<E>,
{
    match result.map_err(Error::from) {
        Err(Error::Problem(problem)) => *problem,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was not refused"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_created_read_changed_suspended_reactivated_and_deleted() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let client = api.client();

    let created = client.create_user().prefer(WAIT).body(new("Ada@Example.org", "Ada")).send().await.unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.headers()["etag"], "\"1\"");
    assert_eq!(created.headers()["preference-applied"], WAIT);
    let path = created.headers()["location"].to_str().unwrap().to_owned();
    let user = created.into_inner().applied().unwrap();
    assert_eq!(path, format!("/v1/users/{}", user.id));
    assert_eq!((user.status, user.version), (UserStatus::Active, 1));

    let read = client.get_user().user_id(user.id).send().await.unwrap();
    assert_eq!(read.headers()["etag"], "\"1\"");
    assert_eq!(read.into_inner(), user);
    let unchanged = system.client.get(api.url(&path)).header("if-none-match", "\"1\"").send().await.unwrap();
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(unchanged.bytes().await.unwrap().len(), 0);

    let rename = |name: &str| {
        let change = UserPatch { email: None, name: Some(name.to_owned()) };
        client.update_user().user_id(user.id).if_match("\"1\"").prefer(WAIT).body(change).send()
    };
    let renamed = rename("Ada Lovelace").await.unwrap();
    assert_eq!(renamed.status(), StatusCode::OK);
    assert_eq!(renamed.headers()["etag"], "\"2\"");
    assert_eq!(renamed.into_inner().applied().unwrap().name, "Ada Lovelace");
    let lost = refused(rename("Too late").await);
    assert_eq!((lost.status, lost.kind()), (412, "version-lost"));

    let suspend = || client.suspend_user().user_id(user.id).prefer(WAIT).send();
    let suspended = suspend().await.unwrap().into_inner().applied().unwrap();
    assert_eq!(suspended.status, UserStatus::Suspended);
    assert_eq!(refused(suspend().await).kind(), "already-suspended");
    let reactivate = || client.reactivate_user().user_id(user.id).prefer(WAIT).send();
    assert_eq!(reactivate().await.unwrap().into_inner().applied().unwrap().version, 4);
    assert_eq!(refused(reactivate().await).kind(), "not-suspended");

    let delete = || client.delete_user().user_id(user.id).prefer(WAIT);
    let deleted = delete().if_match("\"4\"").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(deleted.into_inner(), Written::Applied(()));
    assert_eq!(refused(client.get_user().user_id(user.id).send().await).kind(), "user-not-found");
    assert_eq!(refused(delete().send().await).kind(), "user-not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_without_a_wait_is_accepted_and_its_outcome_can_be_asked_for() {
    let system = System::prepare().await;
    let api = system.api().await;
    let client = api.client();

    // Nothing applies commands yet.
    let accepted = client.create_user().body(new("bob@example.org", "Bob")).send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    assert_eq!(accepted.headers()["retry-after"], "1");
    let location = accepted.headers()["location"].to_str().unwrap().to_owned();
    let command = accepted.into_inner().accepted().unwrap();
    assert_eq!((command.status, command.type_.as_deref()), (CommandStatus::Pending, Some("users.create")));
    assert_eq!(location, format!("/v1/commands/{}", command.id));
    let pending = client.get_command().command_id(command.id).send().await.unwrap();
    assert_eq!((pending.status, pending.id), (CommandStatus::Pending, command.id));
    let waited = client.create_user().prefer("wait=1").body(new("eve@example.org", "Eve")).send().await.unwrap();
    assert_eq!(waited.status(), StatusCode::ACCEPTED, "the wait ran out");
    let deletion = client.delete_user().user_id(command.user_id.unwrap()).send().await.unwrap().into_inner();

    let _worker = system.worker().await;
    let decided = client.outcome(command.id).await.unwrap();
    assert_eq!((decided.status, decided.user_version), (CommandStatus::Succeeded, Some(1)));
    assert_eq!(decided.user_id, command.user_id);
    assert_eq!(decided.links.user, command.user_id.map(|id| format!("/v1/users/{id}")));
    let deleted = client.outcome(deletion.accepted().unwrap().id).await.unwrap();
    assert_eq!(deleted.status, CommandStatus::Succeeded, "after the create, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_other_letter_case_is_taken() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let client = api.client();
    system.create(&api, "carol@example.org").await;

    let other = || client.create_user().body(new("CAROL@Example.ORG", "Other"));
    let taken = refused(other().prefer(WAIT).send().await);
    assert_eq!((taken.status, taken.kind()), (409, "email-taken"));
    assert!(taken.to_string().starts_with("The e-mail address is taken (email-taken)"), "{taken}");
    let accepted = other().send().await.unwrap().into_inner().accepted().unwrap();
    let decided = client.outcome(accepted.id).await.unwrap();
    assert_eq!((decided.status, decided.reason.as_deref()), (CommandStatus::Rejected, Some("email-taken")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_no_command_is_not_found() {
    let system = System::prepare().await;
    let api = system.api().await;
    for made_up in ["f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned(), Uuid::now_v7().to_string()] {
        problem(system.get(&api, &format!("/v1/commands/{made_up}")).await, 404, "command-not-found").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_over_several_pages_has_every_user_once() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let client = api.client();
    let mut created = HashSet::new();
    for number in 0..7 {
        let user = client.create_user().prefer(WAIT).body(new(&format!("page-{number}@example.org"), "Page"));
        created.insert(user.send().await.unwrap().into_inner().applied().unwrap().id);
    }
    let mut listed = Vec::new();
    let mut cursor = None;
    let mut pages = 0;
    while pages == 0 || cursor.is_some() {
        let mut list = client.list_users().limit(3);
        if let Some(cursor) = cursor {
            list = list.cursor(cursor);
        }
        let page = list.send().await.unwrap();
        pages += 1;
        let links = page.headers().get("link").map_or("", |links| links.to_str().unwrap()).to_owned();
        assert_eq!(links.contains("rel=\"next\""), page.next_cursor.is_some(), "{links}");
        let page = page.into_inner();
        cursor = page.next_cursor;
        listed.extend(page.items.into_iter().map(|user| user.id));
    }
    assert_eq!((pages, listed.len()), (3, 7));
    assert_eq!(listed.into_iter().collect::<HashSet<_>>(), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_an_old_schema_stays_unready_until_it_is_migrated() {
    let mut system = System::prepare().await;
    let mut connection = system.database().await;
    sqlx::query("DROP SCHEMA public CASCADE").execute(&mut connection).await.unwrap();
    sqlx::query("CREATE SCHEMA public").execute(&mut connection).await.unwrap();
    system.set("STOP_DEADLINE_MS", "5000");
    let (api, worker) = (system.api_unready(), system.worker_unready());
    for process in [&api, &worker] {
        let line = process.unready("schema").await;
        assert!(line.contains("version 0 is older than") && line.contains("rollcall migrate run"), "{line}");
    }

    let url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let migrated = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["migrate", "run"])
        .env("DATABASE_URL", url)
        .output()
        .await
        .unwrap();
    assert!(migrated.status.success());
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "late@example.org").await;
}
