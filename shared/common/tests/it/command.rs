//! The JSON of each command, for ever.

use proptest::prelude::*;
use rollcall_common::command::{
    Command, CommandHeader, CreateUser, DeleteUser, Digest, Email, Envelope, Idempotency, Message, MessageProperties,
    Name, Principal, ReactivateUser, Rejection, SuspendUser, UnreadCommand, UpdateUser, UserId,
};
use serde_json::{Value, json};
use time::macros::datetime;

/// A command without its file does not compile. The files are never edited: old messages look like this.
fn golden(command: &Command) -> &'static str {
    match command {
        Command::CreateUser(_) => include_str!("golden/users.create.json"),
        Command::UpdateUser(_) => include_str!("golden/users.update.json"),
        Command::DeleteUser(_) => include_str!("golden/users.delete.json"),
        Command::SuspendUser(_) => include_str!("golden/users.suspend.json"),
        Command::ReactivateUser(_) => include_str!("golden/users.reactivate.json"),
    }
}

/// What the files say.
fn samples() -> Vec<Envelope> {
    let user_id: UserId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("a user id");
    let email = |text| Email::parse(text).expect("an address");
    let name = |text| Name::parse(text).expect("a name");
    let commands = [
        Command::CreateUser(CreateUser { user_id, email: email("ada@example.org"), name: name("Ada Lovelace") }),
        Command::UpdateUser(UpdateUser {
            user_id,
            email: Some(email("ada@example.net")),
            name: Some(name("Ada King")),
        }),
        Command::DeleteUser(DeleteUser { user_id }),
        Command::SuspendUser(SuspendUser { user_id }),
        Command::ReactivateUser(ReactivateUser { user_id }),
    ];
    let numbered = (1..).zip(commands);
    numbered
        .map(|(number, command)| Envelope {
            id: format!("019a5c3e-7115-7abc-8def-01234567{number:04}").parse().expect("a command id"),
            accepted_at: datetime!(2026-11-05 12:34:56.789 UTC),
            principal: Principal::anonymous(),
            if_match: (number > 1).then_some(number + 1),
            idempotency: None,
            command,
        })
        .collect()
}

#[test]
fn every_command_is_written_as_its_golden_file() {
    for envelope in samples() {
        let written = String::from_utf8(envelope.encode()).expect("text");
        assert_eq!(written, golden(&envelope.command).trim_end(), "{}", envelope.command.wire_name());
    }
}

#[test]
fn every_golden_file_is_read_and_written_again_byte_for_byte() {
    for envelope in samples() {
        let text = golden(&envelope.command).trim_end();
        let read = Envelope::decode(text.as_bytes()).expect("a command");
        assert_eq!(read, envelope);
        assert_eq!(String::from_utf8(read.encode()).expect("text"), text);
    }
}

#[test]
fn the_wire_name_is_the_type_in_the_json() {
    for envelope in samples() {
        let json: serde_json::Value = serde_json::from_slice(&envelope.encode()).expect("JSON");
        assert_eq!(json["command"]["type"], envelope.command.wire_name());
        assert_eq!(json["command"]["data"]["user_id"], envelope.command.user_id().to_string());
    }
}

#[test]
fn an_old_message_without_optional_members_is_read() {
    let old = r#"{
        "id": "019a5c3e-7115-7abc-8def-012345670002", "accepted_at": "2026-11-05T12:34:56Z", "principal": "anonymous",
        "command": {"type": "users.update", "data": {"user_id": "01890a5d-ac96-774b-bcce-b302099a8057"}}
    }"#;
    let read = Envelope::decode(old.as_bytes()).expect("a command");
    assert_eq!((read.if_match, read.idempotency), (None, None));
    let Command::UpdateUser(update) = read.command else { panic!("another command: {read:?}") };
    assert_eq!((update.email, update.name), (None, None));
}

/// A command under a key.
fn keyed() -> Envelope {
    let update = samples().remove(1);
    let key = Digest::of_key(&update.principal, "7f3c");
    let fingerprint = Digest::of_request(&update.command, update.if_match);
    let id = "019a5c3e-7115-7abc-8def-012345670006".parse().expect("a command id");
    Envelope { id, idempotency: Some(Idempotency { key, fingerprint }), ..update }
}

#[test]
fn a_command_under_a_key_is_written_as_its_golden_file_and_read_again() {
    // The hashes in it were computed apart from the code: a retry may come to an instance of another release.
    let file = include_str!("golden/idempotency.json").trim_end();
    assert_eq!(String::from_utf8(keyed().encode()).expect("text"), file);
    assert_eq!(Envelope::decode(file.as_bytes()).expect("a command"), keyed());
}

#[test]
fn a_digest_that_is_none_is_refused() {
    let good = keyed().idempotency.expect("a key").key.to_string();
    let table = [
        ("cut short", good[1..].to_owned()),
        ("a digit too many", format!("{good}0")),
        ("two digits too many", format!("{good}00")),
        ("in capitals", good.to_uppercase()),
        ("no hexadecimal", good.replacen(&good[..1], "g", 1)),
        ("outside ASCII", format!("é{}", &good[2..])),
        ("nothing", String::new()),
    ];
    for (reason, text) in table {
        assert!(Digest::try_from(text).is_err(), "accepted: {reason}");
    }
}

proptest! {
    #[test]
    fn digests_survive_their_text(text in "[0-9a-f]{64}") {
        let digest = Digest::try_from(text.clone()).expect("a digest");
        prop_assert_eq!(digest.to_string(), text.as_str());
        prop_assert_eq!(String::from(digest), text);
    }
}

#[test]
fn the_fingerprint_tells_requests_apart_and_knows_the_same_one_again() {
    let print = |envelope: &Envelope| Digest::of_request(&envelope.command, envelope.if_match);
    let Command::CreateUser(create) = &samples()[0].command else { panic!("the first creates") };
    let another = CreateUser { user_id: UserId::mint(), ..create.clone() };
    let creates = [Command::CreateUser(create.clone()), Command::CreateUser(another)];
    let [one, two] = creates.map(|command| Digest::of_request(&command, None));
    assert_eq!(one, two, "the client did not send the id of a user to create");
    assert_eq!(one.to_string(), "74b6479b58bb5ff2710513fc7554647164cf45726c7c346f71e9e7aec2f45e95");

    let mut different = samples();
    for envelope in samples() {
        different.push(Envelope { if_match: Some(99), ..envelope });
    }
    let user_id = UserId::mint();
    let update = UpdateUser { user_id, email: None, name: Some(create.name.clone()) };
    for command in [
        Command::DeleteUser(DeleteUser { user_id }),
        Command::UpdateUser(update.clone()),
        Command::UpdateUser(UpdateUser { email: Some(create.email.clone()), ..update }),
        Command::CreateUser(CreateUser { name: Name::parse("Eve").expect("a name"), ..create.clone() }),
    ] {
        different.push(Envelope { command, ..samples().remove(0) });
    }
    let prints: std::collections::HashSet<_> = different.iter().map(print).collect();
    assert_eq!(prints.len(), different.len());
}

/// A change to a message, its name, and whether the message can still be read.
type Change = (&'static str, fn(&mut Value), bool);

#[test]
fn notes_of_a_later_release_are_ignored_and_what_must_be_understood_is_not() {
    let table: [Change; 8] = [
        ("a note", |json| json["later"] = json!({"deep": [1, 2]}), true),
        ("known members that must be understood", |json| json["must_understand"] = json!(["if_match", "id"]), true),
        ("an unknown member that must be understood", |json| json["must_understand"] = json!(["later"]), false),
        ("an unknown condition", |json| json["if_absent"] = true.into(), false),
        ("a list of another type", |json| json["must_understand"] = "later".into(), false),
        ("an unknown member of the command", |json| json["command"]["later"] = 1.into(), false),
        ("an unknown member of its data", |json| json["command"]["data"]["later"] = 1.into(), false),
        ("an unknown type", |json| json["command"]["type"] = "users.merge".into(), false),
    ];
    for sample in samples() {
        let envelope = Envelope { accepted_at: sample.id.minted_at(), ..sample };
        for (reason, change, read) in table {
            let mut json = serde_json::from_slice(&envelope.encode()).expect("JSON");
            change(&mut json);
            let body = json.to_string().into_bytes();
            assert_eq!(Envelope::decode(&body).is_ok(), read, "{reason}");
            match Message::read(&body, MessageProperties::default()) {
                Message::Command(found) => assert!(read && *found == envelope, "{reason}"),
                Message::Unread(UnreadCommand { header, .. }) => {
                    let expected = CommandHeader { kind: header.kind.clone(), ..CommandHeader::from(&envelope) };
                    assert!(!read && header == expected, "{reason}: {header:?}");
                }
                Message::Raw(fault) => panic!("{reason}: {fault}"),
            }
        }
    }
}

#[test]
fn what_can_be_read_of_a_broken_message_is_read() {
    let envelope = samples().remove(0);
    let (bytes, id) = (envelope.encode(), envelope.id.to_string());
    let properties = MessageProperties { message_id: Some(&id), kind: Some("users.create") };
    let cut = &bytes[..bytes.len() - 1];
    let Message::Unread(unread) = Message::read(cut, properties) else { panic!("the property has the id") };
    let header = unread.header;
    assert_eq!((header.id, header.user_id, header.kind.as_str()), (envelope.id, None, "users.create"));
    assert_eq!((header.principal.as_str(), header.accepted_at), ("unknown", envelope.id.minted_at()));
    for (reason, body, message_id) in [
        ("no property", cut, None),
        ("a property that is no id", cut, Some("7")),
        ("no JSON", b"\xff".as_slice(), None),
        ("no object", b"[]".as_slice(), None),
        ("nothing", b"".as_slice(), None),
    ] {
        let read = Message::read(body, MessageProperties { message_id, kind: None });
        assert!(matches!(read, Message::Raw(_)), "{reason}");
    }
    // Of two that differ the body's counts, as in a message that is understood.
    let other = samples().remove(1).id.to_string();
    let unknown = String::from_utf8(bytes).expect("text").replace("users.create", "users.invite");
    let properties = MessageProperties { message_id: Some(&other), kind: None };
    let Message::Unread(unread) = Message::read(unknown.as_bytes(), properties) else { panic!("an id") };
    assert_eq!((unread.header.id, unread.header.kind.as_str()), (envelope.id, "users.invite"));
}

#[test]
fn a_message_that_is_no_command_is_refused() {
    let good = golden(&samples()[0].command).trim_end();
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1).into_bytes()
    };
    let table = [
        ("nothing", Vec::new()),
        ("not UTF-8", vec![0xff, 0xfe]),
        ("no JSON", b"users.create".to_vec()),
        ("cut short", good.as_bytes()[..good.len() - 1].to_vec()),
        ("text behind it", format!("{good}x").into_bytes()),
        ("an unknown command", replaced("users.create", "users.promote")),
        ("no principal", replaced(r#""principal":"anonymous","#, "")),
        ("a version 4 command id", replaced("7115-7abc", "7115-4abc")),
        ("a version 4 user id", replaced("ac96-774b", "ac96-474b")),
        ("an e-mail address without @", replaced("ada@", "ada.")),
        ("a line break in a name", replaced("Ada ", "Ada\\n")),
        ("a name of the wrong type", replaced(r#""Ada Lovelace""#, "7")),
        ("a date without its zone", replaced("789Z", "789")),
        ("an escaped half of a surrogate pair", replaced("Ada ", "\\ud83d")),
    ];
    for (reason, body) in table {
        assert!(Envelope::decode(&body).is_err(), "accepted: {reason}");
    }
}

#[test]
fn a_decoding_error_does_not_repeat_personal_data() {
    let text = golden(&samples()[0].command).replace("ada@example.org", "ada at secret-place");
    let fault = Envelope::decode(text.as_bytes()).expect_err("no address").to_string();
    assert!(!fault.contains("secret-place"), "{fault}");
}

#[test]
fn debug_output_of_a_command_hides_personal_data() {
    for envelope in samples() {
        let shown = format!("{envelope:?}");
        assert!(!shown.contains("Ada") && !shown.contains("example"), "{shown}");
    }
}

#[test]
fn every_rejection_is_found_by_its_stored_name() {
    // Written out, because stored rows carry these names.
    let names = [
        "email-taken",
        "user-exists",
        "user-not-found",
        "version-lost",
        "already-suspended",
        "not-suspended",
        "idempotency-key-reused",
    ];
    for name in names {
        assert_eq!(Rejection::from_name(name).map(Rejection::as_str), Some(name));
    }
    for unknown in ["", "Email-Taken", "email_taken", "22001"] {
        assert_eq!(Rejection::from_name(unknown), None, "{unknown:?}");
    }
}
