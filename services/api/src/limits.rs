//! What clients may ask for at once, from the environment.

use std::num::NonZeroU32;
use std::time::Duration;

use common::config::{Reader, Variable};
use common::http::{ConnectionLimits, KEEP_ALIVE, MOST_CONNECTIONS, possible_connections};

use crate::cors::Origins;
use crate::rate::RateSettings;

pub(crate) const MAX_CONNECTIONS: Variable = Variable::with_default(
    "MAX_CONNECTIONS",
    "10000",
    "Clients' connections at once; beyond, the one whose client has been waited for longest is evicted for the next. Each takes \
     a file descriptor.",
);
pub(crate) const MAX_CONNECTIONS_PER_ADDRESS: Variable = Variable::optional(
    "MAX_CONNECTIONS_PER_ADDRESS",
    "8000",
    "Of these, the connections of one address or of an IPv6 network of 64 bits; 0 for no bound of its own. Four fifths of \
     MAX_CONNECTIONS when it is not set, and no bound with TRUSTED_PROXIES, because all connections come from the proxies then.",
);
pub(crate) const KEEP_ALIVE_SECONDS: Variable = Variable::with_default(
    "KEEP_ALIVE_SECONDS",
    "620",
    "How long an idle connection is kept, in seconds; longer than the proxy or load balancer in front keeps its own (nginx and \
     AWS 60, Azure 240, Google 600, Envoy 3600), or it loses requests.",
);
pub(crate) const MAX_WAITING: Variable = Variable::optional(
    "MAX_WAITING",
    "8000",
    "Requests that wait for an outcome at once (Prefer: wait); beyond, they are answered at once with 202. One principal has \
     three quarters of them at most. Below MAX_CONNECTIONS, because each keeps its connection; four fifths of it when it is \
     not set.",
);
pub(crate) const RATE_LIMIT_PER_MINUTE: Variable = Variable::optional(
    "RATE_LIMIT_PER_MINUTE",
    "600",
    "Requests that one caller may send to one instance at once, and as many again each minute, by principal or, without one, by \
     address; no limit when it is not set.",
);
pub(crate) const TRUSTED_PROXIES: Variable = Variable::with_default(
    "TRUSTED_PROXIES",
    "0",
    "Proxies in front that append the client's address to X-Forwarded-For; with 0 that field is not believed.",
);
pub(crate) const SHED_AFTER_SECONDS: Variable = Variable::with_default(
    "SHED_AFTER_SECONDS",
    "900",
    "Age of the oldest command of a partition that is not applied yet at which further ones are answered with 503; 0 for never.",
);
pub(crate) const CORS_ORIGINS: Variable = Variable::optional(
    "CORS_ORIGINS",
    "https://app.example.org",
    "Origins whose pages may call the API from a browser, separated by commas, or *, which is refused without AUTH and with \
     AUTH=local; none when it is not set.",
);

/// The limits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Of these, the connections of one address; 0 for no bound.
    pub connections_per_address: Option<usize>,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// Requests that wait for an outcome at once.
    pub waiting: usize,
    /// Requests of one caller.
    pub rate: RateSettings,
    /// Age of the oldest command that is not applied, beyond which no more are accepted.
    pub shed_after: Option<Duration>,
    /// Whose pages may call.
    pub origins: Origins,
}

/// Of so many connections, those of requests that wait, or of one address: the others are for other requests and addresses.
fn most(connections: usize) -> usize {
    connections * 4 / 5
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MOST_CONNECTIONS,
            connections_per_address: None,
            keep_alive: KEEP_ALIVE,
            waiting: most(MOST_CONNECTIONS),
            rate: RateSettings::default(),
            shed_after: None,
            origins: Origins::default(),
        }
    }
}

impl Limits {
    /// What the listener allows.
    pub(crate) fn of_connections(&self) -> ConnectionLimits {
        let most_per_address = match (self.connections_per_address, self.rate.trusted_proxies) {
            (Some(bound), _) => Some(bound).filter(|bound| *bound > 0),
            (None, 0) => Some(most(self.connections).max(1)),
            (None, _) => None,
        };
        ConnectionLimits { most: self.connections, most_per_address, keep_alive: self.keep_alive }
    }

    /// The same, with no more connections than this process can have.
    #[must_use]
    pub(crate) fn possible(self) -> Self {
        let connections = possible_connections(self.connections);
        let waiting = if connections < self.connections { self.waiting.min(most(connections)) } else { self.waiting };
        Self { connections, waiting, ..self }
    }

    /// Reads them; `None` when something is faulty.
    pub(crate) fn read(reader: &mut Reader) -> Option<Self> {
        let connections = reader.number(&MAX_CONNECTIONS, 1..=1_000_000);
        let per_address = reader.number(&MAX_CONNECTIONS_PER_ADDRESS, 0..=1_000_000);
        let keep_alive = reader.number(&KEEP_ALIVE_SECONDS, 1..=86_400_u64);
        let most_waiting = connections.unwrap_or(MOST_CONNECTIONS) - 1;
        let waiting = reader.number(&MAX_WAITING, 0..=most_waiting).or(connections.map(most));
        let per_minute = reader.number(&RATE_LIMIT_PER_MINUTE, 1..=1_000_000_u32);
        let trusted_proxies = reader.number(&TRUSTED_PROXIES, 0..=10);
        let shed_after = reader.number(&SHED_AFTER_SECONDS, 0..=86_400_u64);
        let origins = reader.parse(&CORS_ORIGINS, Origins::parse);
        Some(Self {
            connections: connections?,
            connections_per_address: per_address,
            keep_alive: Duration::from_secs(keep_alive?),
            waiting: waiting?,
            rate: RateSettings { per_minute: per_minute.and_then(NonZeroU32::new), trusted_proxies: trusted_proxies? },
            shed_after: Some(Duration::from_secs(shed_after?)).filter(|age| !age.is_zero()),
            origins: origins.unwrap_or_default(),
        })
    }
}
