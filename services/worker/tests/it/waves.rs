//! How a batch is split.

use std::collections::{HashMap, HashSet};

use common::command::{Command, Envelope, UserId};
use proptest::prelude::*;
use rollcall_worker::waves::waves;

use crate::support::{create, delete, reactivate, suspend, update};

fn claimed(envelope: &Envelope) -> Option<String> {
    let email = match &envelope.command {
        Command::CreateUser(create) => Some(&create.email),
        Command::UpdateUser(update) => update.email.as_ref(),
        Command::DeleteUser(_) | Command::SuspendUser(_) | Command::ReactivateUser(_) => None,
    };
    email.map(|email| email.as_str().to_lowercase())
}

/// Few users and few addresses in both letter cases, so that they collide.
fn batch() -> impl Strategy<Value = Vec<Envelope>> {
    let users: Vec<UserId> = (0..5).map(|_| UserId::mint()).collect();
    let address = prop::sample::select(vec!["a@example.org", "A@example.org", "b@example.org", "B@Example.org"]);
    let one = (prop::sample::select(users), 0..6, address).prop_map(|(user, kind, email)| match kind {
        0 => create(user, email, "User"),
        1 => update(user, Some(email), None),
        2 => update(user, None, Some("User")),
        3 => delete(user),
        4 => suspend(user),
        _ => reactivate(user),
    });
    prop::collection::vec(one, 0..60)
}

#[test]
fn commands_of_different_users_share_one_wave() {
    let batch: Vec<_> =
        (0..200).map(|number| create(UserId::mint(), &format!("u{number}@example.org"), "User")).collect();
    assert_eq!(waves(&batch).len(), 1);
    assert_eq!(waves(&Vec::new()).len(), 0);
}

#[test]
fn commands_of_one_user_come_one_after_the_other() {
    let ada = UserId::mint();
    let batch = [create(ada, "ada@example.org", "Ada"), suspend(ada), reactivate(ada), delete(ada)];
    let waves = waves(&batch);
    assert_eq!(waves, batch.iter().map(|envelope| vec![envelope]).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn waves_keep_each_users_order_and_never_collide(batch in batch()) {
        let waves = waves(&batch);

        let mut kept: Vec<_> = waves.iter().flatten().map(|envelope| envelope.id).collect();
        let mut given: Vec<_> = batch.iter().map(|envelope| envelope.id).collect();
        kept.sort_unstable();
        given.sort_unstable();
        prop_assert_eq!(kept, given, "something was lost or doubled");

        for wave in &waves {
            prop_assert!(!wave.is_empty(), "an empty wave");
            let users: HashSet<_> = wave.iter().map(|envelope| envelope.command.user_id()).collect();
            prop_assert_eq!(users.len(), wave.len(), "a user twice in a wave");
            let claims: Vec<_> = wave.iter().filter_map(|envelope| claimed(envelope)).collect();
            let distinct: HashSet<_> = claims.iter().collect();
            prop_assert_eq!(distinct.len(), claims.len(), "an address twice in a wave");
        }

        let position: HashMap<_, _> = (0..)
            .zip(&waves)
            .flat_map(|(number, wave)| wave.iter().map(move |envelope| (envelope.id, number)))
            .collect();
        let number = |envelope: &Envelope| -> i32 { position[&envelope.id] };
        for (index, later) in batch.iter().enumerate() {
            for earlier in &batch[..index] {
                let same_user = earlier.command.user_id() == later.command.user_id();
                let same_claim = claimed(earlier).is_some() && claimed(earlier) == claimed(later);
                if same_user || same_claim {
                    prop_assert!(number(earlier) < number(later), "overtaken");
                }
            }
        }
    }
}
