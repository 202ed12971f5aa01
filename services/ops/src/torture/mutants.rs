//! `rollcall torture --mutant`: the checker's own test.

use std::time::Duration;

use anyhow::bail;
use worker::mutants::{Mutant, VARIABLE};

use super::schedule::{Deck, Fault, Target};
use super::verdict::Broken;
use super::{Arguments, Course, torture};
use crate::output::say;

/// A mutant may leave partitions that never move again.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) fn parse(name: &str) -> Result<Mutant, String> {
    let names = || Mutant::ALL.map(Mutant::name).join(", ");
    Mutant::from_name(name).ok_or_else(|| format!("one of {}", names()))
}

/// The faults under which a mutant shows, so that a short run meets it, and the promise that it breaks: one that is broken
/// in another way alone was not found.
fn trap(mutant: Mutant) -> (&'static Deck, Broken) {
    const LOAD_ALONE: &Deck = &[(Fault::SlowNetwork, 1)];
    match mutant {
        Mutant::Deduplication => (&[(Fault::RepeatMessages, 1)], Broken::Twice),
        Mutant::Fence => (&[(Fault::FreezeBeyondLease, 1), (Fault::FreezeAndCut, 1)], Broken::Unfenced),
        Mutant::EarlyAck => (&[(Fault::Kill(Target::Worker), 3), (Fault::StopPostgres, 1)], Broken::Lost),
        Mutant::Order | Mutant::EventOrder | Mutant::Unheld => (LOAD_ALONE, Broken::Reordered),
        Mutant::LostEvent => (LOAD_ALONE, Broken::Lost),
    }
}

/// Succeeds if the verdict finds what the workers do wrong.
pub(super) async fn run(arguments: &Arguments, mutant: Mutant) -> anyhow::Result<()> {
    let (name, seed) = (mutant.name(), arguments.seed.unwrap_or_else(rand::random));
    say(format_args!("seed {seed}, mutant {name}: a verdict of broken promises is wanted"));
    let (deck, breaks) = trap(mutant);
    let course = Course { seed, deck: deck.to_vec(), environment: &[(VARIABLE, name)], patience: PATIENCE };
    let verdict = torture(arguments, &course).await?;
    say(&verdict);
    if !verdict.has(breaks) {
        bail!("the mutant {name} was not found");
    }
    say(format_args!("the mutant {name} was found"));
    Ok(())
}
