//! Which event comes next: a deck of cards that the seed shuffles, so that even a short run sees nearly all of them.

use local_stack::StopMode;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// What happens to an instance, or to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Join,
    /// Several at the same instant.
    JoinTogether,
    /// SIGTERM.
    Leave,
    /// kill -9.
    Kill,
    /// SIGSTOP, for less than the time to live of a lease.
    Freeze,
    FreezeBeyondLease,
    /// The network to PostgreSQL carries nothing, for less than that time.
    Silence,
    SilenceBeyondLease,
    /// Its connections to PostgreSQL are reset.
    Cut,
    /// Nobody can read or write users for a while, so that every connection is in use and comes back late.
    Hang,
    /// SIGSTOP for what serves one pool on the server: its sessions neither answer nor end, whoever closes them.
    Stall,
    Restart(StopMode),
}

/// Each event, and how often it is in the decks of rising and of falling tide: in turn they fill the budget and empty it.
const DECK: [(Event, usize, usize); 13] = [
    (Event::Join, 10, 5),
    (Event::JoinTogether, 3, 1),
    (Event::Leave, 3, 8),
    (Event::Kill, 3, 8),
    (Event::Freeze, 4, 4),
    (Event::FreezeBeyondLease, 2, 2),
    (Event::Silence, 3, 3),
    (Event::SilenceBeyondLease, 2, 2),
    (Event::Cut, 5, 5),
    (Event::Hang, 4, 3),
    (Event::Stall, 3, 3),
    (Event::Restart(StopMode::Immediate), 2, 2),
    (Event::Restart(StopMode::Fast), 2, 2),
];

#[derive(Default)]
pub(super) struct Deck {
    cards: Vec<Event>,
    rising: bool,
}

impl Deck {
    pub(super) fn draw(&mut self, random: &mut StdRng) -> Event {
        if self.cards.is_empty() {
            self.rising = !self.rising;
            let count = |rising, falling| if self.rising { rising } else { falling };
            let cards = |(event, rising, falling)| std::iter::repeat_n(event, count(rising, falling));
            self.cards = DECK.into_iter().flat_map(cards).collect();
            self.cards.shuffle(random);
        }
        // It was just filled.
        self.cards.pop().unwrap_or(Event::Join)
    }
}
