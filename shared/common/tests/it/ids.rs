//! Identifiers and the partition of a user.

use proptest::prelude::*;
use rollcall_common::command::{CommandId, CommandIdKey, Digest, IdOrigin, InvalidId, Principal, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

fn any_v7() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(|bits| {
        let bits = bits & !(0xf << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62;
        Uuid::from_u128(bits)
    })
}

#[test]
fn a_text_that_is_no_uuid_of_the_right_version_is_refused() {
    let no_uuid = ["", "ada", "01890a5d-ac96-774b-bcce-b302099a805", "01890a5d-ac96-774b-bcce-b302099a8057 "];
    for text in no_uuid.into_iter().chain(["01890a5d-ac96-774b-bcce-b302099a805g"]) {
        assert_eq!(text.parse::<UserId>(), Err(InvalidId::NotUuid), "{text:?}");
        assert_eq!(text.parse::<CommandId>(), Err(InvalidId::NotUuid), "{text:?}");
    }
    let other_versions = [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "c232ab00-9414-11ec-b3c8-9f6bdeced846",
        "1ec9414c-232a-6b00-b3c8-9f6bdeced846",
    ];
    for text in other_versions {
        assert_eq!(text.parse::<UserId>(), Err(InvalidId::NotV7OrV8), "{text:?}");
        assert_eq!(text.parse::<CommandId>(), Err(InvalidId::NotV7), "{text:?}");
    }
    let v8 = "320c3d4d-cc00-875b-8ec9-32d5f69181c0";
    assert!(v8.parse::<UserId>().is_ok(), "the id of a user that was created under a key");
    assert_eq!(v8.parse::<CommandId>(), Err(InvalidId::NotV7), "a command's id carries its time");
}

#[test]
fn the_id_derived_from_a_key_is_frozen_and_of_its_principal_and_key_alone() {
    let derive = |principal: &str, key: &str| {
        let principal = Principal::parse(principal).expect("a principal");
        UserId::derive(&Digest::of_key(&principal, key))
    };
    // Computed apart from the code: a retry may come to an instance of another release.
    assert_eq!(derive("anonymous", "7f3c").to_string(), "a866f4f0-5184-8864-942b-2acf8caf98d5");
    let ids = [
        derive("anonymous", "7f3c"),
        derive("anonymous", "7f3d"),
        derive("anonymous", "7F3C"),
        derive("ada", "7f3c"),
        derive("anonymous7", "f3c"),
        derive("anonymou", "s7f3c"),
    ];
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    for id in ids {
        assert_eq!(id.to_string().parse(), Ok(id), "it is a user's id");
        assert_eq!(Uuid::from(id).get_variant(), uuid::Variant::RFC4122);
    }
}

fn deployment(number: u128) -> CommandIdKey {
    CommandIdKey::of_deployment(Uuid::from_u128(number))
}

fn principal(name: &str) -> Principal {
    Principal::parse(name).expect("a principal")
}

#[test]
fn a_minted_id_carries_its_time() {
    let before = OffsetDateTime::now_utc();
    let (key, ada) = (deployment(1), principal("key:ada"));
    for _ in 0..1000 {
        let second = time::Duration::seconds(1);
        for id in [CommandId::mint(), CommandId::mint_for(&key, &ada)] {
            assert!((before - second..OffsetDateTime::now_utc() + second).contains(&id.minted_at()), "{id}");
        }
    }
    for at in [time::macros::datetime!(2026-11-05 12:34:56.789 UTC), OffsetDateTime::UNIX_EPOCH] {
        assert_eq!(CommandId::mint_at(at).minted_at(), at);
    }
    let before_1970 = OffsetDateTime::UNIX_EPOCH - time::Duration::HOUR;
    assert_eq!(CommandId::mint_at(before_1970).minted_at(), OffsetDateTime::UNIX_EPOCH);
}

/// The attack: a client with one id knew the first 42 of the 74 bits behind the time of the next.
#[test]
fn an_id_says_nothing_of_the_next_one() {
    const IDS: u32 = 10_000;
    let (key, ada) = (deployment(1), principal("key:ada"));
    let minters: [(&str, &dyn Fn() -> Uuid); 3] = [
        ("a user", &|| UserId::mint().into()),
        ("a command of another publisher", &|| CommandId::mint().into()),
        ("a command", &|| CommandId::mint_for(&key, &ada).into()),
    ];
    for (what, mint) in minters {
        let ids: Vec<u128> = (0..IDS).map(|_| mint().as_u128()).collect();
        // Behind the time, without version and variant: 12 bits and 62.
        let random = |id: u128| (id >> 64 & 0xfff) << 62 | id & ((1 << 62) - 1);
        let near = ids.windows(2).filter(|pair| (random(pair[0]) >> 32).abs_diff(random(pair[1]) >> 32) < 1024).count();
        assert_eq!(near, 0, "{what}: neighbours share their first bits");
        for bit in 0..74 {
            let set = ids.iter().filter(|id| random(**id) >> bit & 1 == 1).count();
            // Six standard deviations.
            assert!((4_700..=5_300).contains(&set), "{what}: bit {bit} is set in {set} of {IDS}");
        }
    }
}

#[test]
fn the_tags_say_where_an_id_was_minted_and_for_whom() {
    let (key, other) = (deployment(1), deployment(2));
    let (ada, bob) = (principal("key:ada"), principal("key:bob"));
    let mut seen = std::collections::HashMap::<_, u32>::new();
    for _ in 0..2_000 {
        let id = CommandId::mint_for(&key, &ada);
        assert_eq!(id.origin(&key, &ada), IdOrigin::Principal, "{id}");
        assert_eq!(id, id.tagged(&key, &ada));
        *seen.entry(("to another principal", id.origin(&key, &bob))).or_default() += 1;
        *seen.entry(("to another deployment", id.origin(&other, &ada))).or_default() += 1;
        *seen.entry(("without tags", CommandId::mint().origin(&key, &ada))).or_default() += 1;
    }
    let seen = |what, origin| seen.get(&(what, origin)).copied().unwrap_or_default();
    // By chance one in 4,096 looks like another, and so six of 2,000 almost never do.
    assert!(seen("to another principal", IdOrigin::Deployment) > 1_994);
    assert!(seen("to another deployment", IdOrigin::Unknown) > 1_994);
    assert!(seen("without tags", IdOrigin::Unknown) > 1_994);
    assert!(!format!("{key:?}").contains("00000001"), "the key is not shown");
}

#[test]
fn the_tags_are_frozen() {
    // Computed apart from the code: an instance of another release reads them.
    let key = CommandIdKey::of_deployment("0f6f5a30-8c7a-4c39-9c4e-3f7a0f8e6a11".parse().expect("a UUID"));
    let id: CommandId = "019a5c3e-7115-7abc-8def-012345000000".parse().expect("an id");
    assert_eq!(id.tagged(&key, &principal("key:ada")).to_string(), "019a5c3e-7115-7abc-8def-012345b9b050");
}

#[test]
fn the_partition_of_a_user_is_frozen() {
    const PARTITIONS: [u16; 6] = [1, 2, 7, 16, 1024, 65535];
    // Computed apart from the code. A change here would send the commands of one user to two queues.
    let table = [
        ("01890a5d-ac96-774b-bcce-b302099a8057", [0, 1, 3, 15, 879, 27578]),
        ("00000000-0000-7000-8000-000000000000", [0, 0, 3, 2, 258, 44917]),
        ("ffffffff-ffff-7fff-bfff-ffffffffffff", [0, 0, 2, 6, 470, 45545]),
        ("019a5c3e-0001-7abc-8def-0123456789ab", [0, 1, 3, 7, 823, 64472]),
        ("019a5c3e-0001-7abc-8def-0123456789ac", [0, 0, 6, 2, 610, 1796]),
    ];
    for (user, expected) in table {
        let user: UserId = user.parse().expect("an id");
        assert_eq!(PARTITIONS.map(|partitions| user.partition(partitions)), expected, "{user}");
    }
}

#[test]
fn minted_users_are_spread_evenly() {
    let mut counts = [0_u32; 16];
    for _ in 0..16_000 {
        counts[usize::from(UserId::mint().partition(16))] += 1;
    }
    // Six standard deviations.
    assert!(counts.iter().all(|count| (817..=1183).contains(count)), "{counts:?}");
}

proptest! {
    #[test]
    fn every_partition_is_below_their_number(uuid in any_v7(), partitions in 1..=u16::MAX) {
        let user = UserId::try_from(uuid).expect("version 7");
        prop_assert!(user.partition(partitions) < partitions);
    }

    #[test]
    fn ids_survive_text_and_json(uuid in any_v7()) {
        let user = UserId::try_from(uuid).expect("version 7");
        prop_assert_eq!(user.to_string().parse::<UserId>(), Ok(user));
        prop_assert_eq!(Uuid::from(user), uuid);
        let json = serde_json::to_string(&user).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<UserId>(&json).expect("an id"), user);
        if let Ok(command) = CommandId::try_from(uuid) {
            prop_assert_eq!(command.to_string().parse::<CommandId>(), Ok(command));
        }
    }

    #[test]
    fn the_time_of_any_command_id_can_be_read(uuid in any_v7()) {
        let ms = i128::from(u64::try_from(uuid.as_u128() >> 80).expect("48 bits"));
        let last = time::macros::datetime!(9999-12-31 23:59:59.999 UTC).unix_timestamp_nanos() / 1_000_000;
        match CommandId::try_from(uuid) {
            Ok(command) => prop_assert_eq!(command.minted_at().unix_timestamp_nanos(), ms * 1_000_000),
            // No table has a day of the year 10000.
            Err(_) => prop_assert!(ms > last),
        }
    }
}
