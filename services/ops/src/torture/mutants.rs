//! `rollcall torture --mutant`: the checker's own test.

use anyhow::bail;
use worker::mutants::{Mutant, VARIABLE};

use super::{Arguments, torture};
use crate::say;

/// With which PostgreSQL stops, messages come again, a worker is killed and two are frozen beyond their leases, one of them cut
/// off: the first five faults.
const SEED: u64 = 3712;

pub(super) fn parse(name: &str) -> Result<Mutant, String> {
    let names = || Mutant::ALL.map(Mutant::name).join(", ");
    Mutant::from_name(name).ok_or_else(|| format!("one of {}", names()))
}

/// Succeeds if the verdict finds what the workers do wrong.
pub(super) async fn run(arguments: &Arguments, mutant: Mutant) -> anyhow::Result<()> {
    let (name, seed) = (mutant.name(), arguments.seed.unwrap_or(SEED));
    say(format_args!("seed {seed}, mutant {name}: a verdict of broken promises is wanted"));
    let verdict = torture(arguments, seed, &[(VARIABLE, name)]).await?;
    say(&verdict);
    if verdict.kept() {
        bail!("the mutant {name} was not found");
    }
    say(format_args!("the mutant {name} was found"));
    Ok(())
}
