//! What the API reads from the environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::config::{Faults, Reader, SHARED, ServiceSettings, Variable};
use common::health::ReadyWhen;

use crate::auth::settings::{
    AUTH, AUTH_JWKS, AUTH_JWKS_CA_FILE, AUTH_JWT_ALGORITHMS, AUTH_JWT_AUDIENCE, AUTH_JWT_ISSUER, AUTH_JWT_MAX_BYTES,
    AUTH_JWT_TYPES, AuthSettings,
};
use crate::limits::{
    CORS_ORIGINS, KEEP_ALIVE_SECONDS, Limits, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, MAX_WAITING,
    RATE_LIMIT_PER_MINUTE, SHED_AFTER_SECONDS, TRUSTED_PROXIES,
};

const HOST: Variable = Variable::optional(
    "HOST",
    "127.0.0.1",
    "IP address to listen on: 127.0.0.1 unless AUTH is set, then 0.0.0.0; anything but loopback needs AUTH.",
);
const PORT: Variable = Variable::with_default("PORT", "8080", "Port to listen on; 0 takes a free one.");
const LISTEN_DELAY_MS: Variable = Variable::with_default(
    "LISTEN_DELAY_MS",
    "10000",
    "After the start: how long connections are refused at most while the API is not ready, in milliseconds, so that a load \
     balancer takes another instance; 0 to listen at once.",
);
const DRAIN_DELAY_MS: Variable = Variable::with_default(
    "DRAIN_DELAY_MS",
    "10000",
    "After SIGTERM: how long an API goes on accepting while /readyz already fails, in milliseconds; longer than the load \
     balancer takes to notice, and short enough that the platform does not kill the process before (docker stop, Cloud Run \
     10 s, Fly 5 s). A worker has no drain delay.",
);
const READY_WHEN: Variable = Variable::with_default(
    "READY_WHEN",
    "all",
    "When /readyz says yes: all checks hold, or any of reading and accepting is possible.",
);

/// The API's own variables.
pub const OWN: &[&Variable] = &[
    &HOST,
    &PORT,
    &LISTEN_DELAY_MS,
    &DRAIN_DELAY_MS,
    &AUTH,
    &AUTH_JWT_ISSUER,
    &AUTH_JWT_AUDIENCE,
    &AUTH_JWT_ALGORITHMS,
    &AUTH_JWT_TYPES,
    &AUTH_JWKS,
    &AUTH_JWKS_CA_FILE,
    &AUTH_JWT_MAX_BYTES,
    &MAX_CONNECTIONS,
    &MAX_CONNECTIONS_PER_ADDRESS,
    &KEEP_ALIVE_SECONDS,
    &MAX_WAITING,
    &RATE_LIMIT_PER_MINUTE,
    &TRUSTED_PROXIES,
    &SHED_AFTER_SECONDS,
    &CORS_ORIGINS,
    &READY_WHEN,
];

/// Everything the API can be told.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// What both services have.
    pub service: ServiceSettings,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How long it refuses connections at most until it is ready.
    pub listen_delay: Duration,
    /// Who is served.
    pub auth: AuthSettings,
    /// What clients may ask for at once.
    pub limits: Limits,
    /// When it counts as ready.
    pub ready_when: ReadyWhen,
}

impl ApiSettings {
    /// Reads them.
    ///
    /// # Errors
    /// All faults at once.
    pub fn read(mut reader: Reader) -> Result<Self, Faults> {
        let service = ServiceSettings::read(&mut reader);
        let limits = Limits::read(&mut reader);
        let origins = limits.as_ref().map(|limits| &limits.origins);
        let (given, auth) = AuthSettings::read(&mut reader, origins);
        let everywhere = if given { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
        let host = reader.parse(&HOST, |text| {
            let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address"))?;
            if given || address.is_loopback() {
                Ok(address)
            } else {
                Err(format!("{address} is not loopback, and nobody has to log in; set AUTH=keys or AUTH=jwt, or AUTH=none if that is meant"))
            }
        });
        let port = reader.number(&PORT, 0..=u16::MAX);
        let listen_delay = reader.millis(&LISTEN_DELAY_MS, 0..=300_000);
        let drain = reader.millis(&DRAIN_DELAY_MS, 0..=300_000);
        let ready_when = reader.choice(&READY_WHEN, &[("all", ReadyWhen::All), ("any", ReadyWhen::Any)]);
        let listen = port.map(|port| SocketAddr::new(host.unwrap_or(everywhere.into()), port));
        let exposures = reader.take_exposures();
        let settings = || {
            let mut service = ServiceSettings { exposures, ..service? };
            service.graces.drain = drain?;
            Some(Self {
                service,
                listen: listen?,
                listen_delay: listen_delay?,
                auth: auth?,
                limits: limits?,
                ready_when: ready_when?,
            })
        };
        let settings = settings();
        reader.finish(settings)
    }
}

/// The environment section of `--help`.
pub fn help() -> String {
    common::config::help(&[SHARED, OWN].concat())
}
