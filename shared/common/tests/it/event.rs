//! The JSON of an event, for ever.

use rollcall_common::command::{Command, DeleteUser, ReactivateUser, SuspendUser, UserId};
use rollcall_common::event::{CloudEvent, EventAttributes, TYPES, type_of};
use serde_json::json;
use time::macros::datetime;
use uuid::Uuid;

const GOLDEN: &str = include_str!("golden/event.json");

#[test]
fn an_event_looks_as_it_always_did() {
    let id: Uuid = "019a5c3e-7115-7abc-8def-012345670001".parse().expect("an id");
    let user: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id");
    let data = format!(r#"{{"id":"{user}","version":7}}"#);
    let event = EventAttributes {
        id,
        source: "/rollcall",
        kind: "users.deleted",
        subject: user,
        time: datetime!(2026-11-22 08:00 UTC),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        tracestate: None,
    };
    assert_eq!(String::from_utf8(event.encode(&data)).expect("text"), GOLDEN.trim_end());
    let read: CloudEvent = serde_json::from_str(GOLDEN).expect("an event");
    assert_eq!((read.specversion.as_str(), read.id, read.subject), ("1.0", id, user));
    assert_eq!((read.source.as_str(), read.r#type.as_str(), read.time), (event.source, event.kind, event.time));
    assert_eq!((read.traceparent.as_deref(), read.tracestate.as_deref()), (event.traceparent, event.tracestate));
    assert_eq!(read.data, json!({ "id": user, "version": 7 }));
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
