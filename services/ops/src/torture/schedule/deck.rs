//! Which faults are in the deck: groups that can be chosen.

use clap::ValueEnum;

use super::{Expiry, Fault, Target};

/// Kinds of fault, and how often each is in the deck.
pub(in crate::torture) type Deck = [(Fault, usize)];

/// Faults that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::torture) enum Group {
    /// Services are killed, terminated and frozen
    Processes,
    /// PostgreSQL and RabbitMQ are stopped and killed
    Servers,
    /// Connections are ended, reset, blackholed and slowed
    Network,
    /// A queue is deleted, messages come twice, an operator replays dead letters
    Messages,
    /// Processes come whose settings differ from those of the others
    Settings,
    /// The clock of a service is wrong
    Clocks,
    /// A policy of the broker lets messages expire
    Policies,
    /// PostgreSQL has a synchronous standby, which is lost and promoted
    Standby,
}

impl Group {
    fn deck(self) -> &'static Deck {
        match self {
            Self::Processes => &[
                (Fault::Kill(Target::Worker), 3),
                (Fault::Kill(Target::Api), 2),
                (Fault::Terminate(Target::Worker), 2),
                (Fault::Terminate(Target::Api), 1),
                (Fault::Freeze(Target::Worker), 1),
                (Fault::Freeze(Target::Api), 1),
                (Fault::FreezeBeyondLease, 1),
                (Fault::FreezeAndCut, 1),
            ],
            Self::Servers => &[(Fault::StopPostgres, 2), (Fault::KillRabbitMq, 1)],
            Self::Network => {
                &[(Fault::CutSessions, 1), (Fault::CutConnections, 3), (Fault::Blackhole, 2), (Fault::SlowNetwork, 1)]
            }
            Self::Messages => &[(Fault::DeleteQueue, 1), (Fault::RepeatMessages, 2), (Fault::Operate, 2)],
            Self::Settings => &[(Fault::DifferentSettings, 3)],
            Self::Clocks => &[(Fault::SkewClock(Target::Worker), 1), (Fault::SkewClock(Target::Api), 1)],
            Self::Policies => &[(Fault::Expire(Expiry::Everywhere), 1), (Fault::Expire(Expiry::Partitions), 1)],
            Self::Standby => &[(Fault::LoseStandby, 1), (Fault::Promote, 1), (Fault::PromoteBehind, 1)],
        }
    }
}

/// One deck of all these; a group that is named twice comes once.
pub(in crate::torture) fn deck_of(groups: &[Group]) -> Vec<(Fault, usize)> {
    let chosen = Group::value_variants().iter().filter(|group| groups.contains(group));
    chosen.flat_map(|group| group.deck()).copied().collect()
}
