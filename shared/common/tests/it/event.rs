//! The JSON of an event, for ever.

use rollcall_common::command::{Command, DeleteUser, ReactivateUser, SuspendUser, UserId};
use rollcall_common::event::{CloudEvent, TYPES, type_of};
use serde_json::json;
use time::macros::datetime;

const GOLDEN: &str = include_str!("golden/event.json");

#[test]
fn an_event_looks_as_it_always_did() {
    let id = "019a5c3e-7115-7abc-8def-012345670001".parse().expect("an id");
    let user = "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id");
    let data = json!({ "id": user, "version": 7 });
    let event = CloudEvent {
        time: datetime!(2026-11-22 08:00 UTC),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ..CloudEvent::new(id, "/rollcall".to_owned(), "users.deleted".to_owned(), user, data)
    };
    assert_eq!(String::from_utf8(event.encode()).expect("text"), GOLDEN.trim_end());
    assert_eq!(serde_json::from_str::<CloudEvent>(GOLDEN).expect("an event"), event);
}

#[test]
fn the_types_are_those_that_were_released() {
    assert_eq!(TYPES, ["users.created", "users.updated", "users.deleted", "users.suspended", "users.reactivated"]);
    let user_id = UserId::mint();
    let table = [
        (Command::DeleteUser(DeleteUser { user_id }), "users.deleted"),
        (Command::SuspendUser(SuspendUser { user_id }), "users.suspended"),
        (Command::ReactivateUser(ReactivateUser { user_id }), "users.reactivated"),
    ];
    for (command, kind) in table {
        assert_eq!(type_of(&command), kind);
    }
}
