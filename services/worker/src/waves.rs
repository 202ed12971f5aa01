//! Splits a batch into waves that one set-based statement per kind can apply.
//!
//! The n-th command of a user goes into wave n at the earliest, so that order is kept and no statement touches a row
//! twice. Commands that claim the same e-mail address are kept apart too: the one that arrived first gets it.

use std::collections::HashMap;

use common::command::{Command, Email, Envelope, UserId};

/// The commands in waves; within a wave they are in order of arrival.
pub fn waves<'e>(commands: impl IntoIterator<Item = &'e Envelope>) -> Vec<Vec<&'e Envelope>> {
    let mut next_of_user: HashMap<UserId, usize> = HashMap::new();
    let mut next_of_email: HashMap<String, usize> = HashMap::new();
    let mut waves: Vec<Vec<&'e Envelope>> = Vec::new();
    for envelope in commands {
        let by_user = next_of_user.entry(envelope.command.user_id()).or_default();
        let wave = match claimed_email(&envelope.command) {
            None => *by_user,
            Some(email) => {
                let by_email = next_of_email.entry(email.as_str().to_ascii_lowercase()).or_default();
                let wave = (*by_user).max(*by_email);
                *by_email = wave + 1;
                wave
            }
        };
        *by_user = wave + 1;
        if waves.len() <= wave {
            waves.resize_with(wave + 1, Vec::new);
        }
        waves[wave].push(envelope);
    }
    waves
}

fn claimed_email(command: &Command) -> Option<&Email> {
    match command {
        Command::CreateUser(create) => Some(&create.email),
        Command::UpdateUser(update) => update.email.as_ref(),
        Command::DeleteUser(_) | Command::SuspendUser(_) | Command::ReactivateUser(_) => None,
    }
}
