//! How many requests a caller may send: whoever proved who they are by that, everybody else by address.
//!
//! The fields of the answer are those of draft-ietf-httpapi-ratelimit-headers-10.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::http::client_network;
use common::shutdown::{Phase, Shutdown, Tier};
use governor::clock::{Clock, MonotonicClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use poem::Request;
use poem::http::{HeaderMap, HeaderValue};

use crate::headers::lines;
use crate::problem::{Problem, ProblemKind};

/// The period that limits are given for.
const WINDOW_SECONDS: u32 = 60;
/// How often callers that have been quiet for the whole window are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_mins(1);

/// What is allowed, from the settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateSettings {
    /// Requests that one caller may send within a minute; without it there is no limit.
    pub per_minute: Option<NonZeroU32>,
    /// Proxies in front that append to `X-Forwarded-For`; what stands before their entries is anybody's claim.
    pub trusted_proxies: usize,
}

type Limiter = RateLimiter<String, HashMapStateStore<String>, MonotonicClock, StateInformationMiddleware>;

/// The callers of this instance. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Rates {
    limit: Option<(NonZeroU32, Arc<Limiter>)>,
    trusted_proxies: usize,
}

/// What is left for the caller of one request, once it is known; a part of the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowance(Arc<OnceLock<Left>>);

#[derive(Debug, Clone, Copy)]
struct Left {
    quota: u32,
    remaining: u32,
}

impl Rates {
    /// Starts what forgets callers.
    pub(crate) fn start(shutdown: &Shutdown, settings: RateSettings) -> Self {
        let limit = settings.per_minute.map(|number| {
            let limiter: Limiter = RateLimiter::hashmap(Quota::per_minute(number)).with_middleware();
            (number, Arc::new(limiter))
        });
        if let Some((_, limiter)) = &limit {
            let (limiter, closing) = (Arc::clone(limiter), shutdown.clone());
            shutdown.supervise("rate limits", Tier::Back, async move {
                loop {
                    tokio::select! {
                        () = closing.reached(Phase::Closing) => return Ok(()),
                        () = tokio::time::sleep(FORGET_INTERVAL) => limiter.retain_recent(),
                    }
                }
            });
        }
        Self { limit, trusted_proxies: settings.trusted_proxies }
    }

    /// Counts a request of this principal, or of whoever is at its address.
    ///
    /// # Errors
    /// 429, with the time after which one more is allowed.
    pub(crate) fn count(&self, request: &Request, principal: Option<&str>) -> Result<(), Problem> {
        let Some((quota, limiter)) = &self.limit else { return Ok(()) };
        let caller = principal.map_or_else(|| self.address(request), str::to_owned);
        let (remaining, refused) = match limiter.check_key(&caller) {
            Ok(state) => (state.remaining_burst_capacity(), None),
            Err(until) => (0, Some(until.wait_time_from(MonotonicClock.now()))),
        };
        if let Some(allowance) = request.data::<Allowance>() {
            let _ = allowance.0.set(Left { quota: quota.get(), remaining });
        }
        match refused {
            None => Ok(()),
            Some(wait) => {
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(WINDOW_SECONDS) + 1;
                Err(Problem::new(ProblemKind::TooManyRequests)
                    .retry_after(seconds)
                    .detail(format_args!("{quota} requests a minute are allowed; wait as long as Retry-After says")))
            }
        }
    }

    /// The client that an address stands for.
    pub(crate) fn address(&self, request: &Request) -> String {
        let peer = request.remote_addr().as_socket_addr().map(SocketAddr::ip);
        match forwarded(request.headers(), self.trusted_proxies).or(peer) {
            Some(address) => format!("address:{}", client_network(address)),
            None => "address:unknown".to_owned(),
        }
    }
}

/// The address that the outermost trusted proxy saw.
fn forwarded(headers: &HeaderMap, trusted_proxies: usize) -> Option<IpAddr> {
    let seen = lines(headers, "x-forwarded-for")?;
    let entry = seen.rsplit(',').nth(trusted_proxies.checked_sub(1)?)?;
    let entry = entry.trim();
    // Some proxies write the port, too, and then IPv6 in brackets.
    let address = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    address.parse().or_else(|_| address.parse().map(|socket: SocketAddr| socket.ip())).ok()
}

impl Allowance {
    /// Writes the fields, if the request was counted.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let Some(Left { quota, remaining }) = self.0.get() else { return };
        let missing = u64::from(quota.saturating_sub(*remaining));
        // It fills steadily.
        let full_in = (missing * u64::from(WINDOW_SECONDS)).div_ceil(u64::from(*quota));
        let fields = [
            ("ratelimit-policy", format!("\"caller\";q={quota};w={WINDOW_SECONDS}")),
            ("ratelimit", format!("\"caller\";r={remaining};t={full_in}")),
        ];
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trusted_proxies_appended_is_believed() {
        let rows = [
            (&["1.1.1.1, 2.2.2.2"][..], 0, None),
            (&["1.1.1.1, 2.2.2.2"], 1, Some("2.2.2.2")),
            (&["1.1.1.1, 2.2.2.2"], 2, Some("1.1.1.1")),
            (&["1.1.1.1, 2.2.2.2"], 3, None),
            (&["1.1.1.1", "2.2.2.2"], 1, Some("2.2.2.2")),
            (&["nonsense"], 1, None),
            (&["2001:db8::1"], 1, Some("2001:db8::1")),
            (&[], 1, None),
            (&["192.0.2.1:5678"], 1, Some("192.0.2.1")),
            (&["[2001:db8::1]:5678"], 1, Some("2001:db8::1")),
            (&["[2001:db8::1]"], 1, Some("2001:db8::1")),
            (&["[2001:db8::1"], 1, None),
        ];
        for (fields, proxies, expected) in rows {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append("x-forwarded-for", HeaderValue::from_static(field));
            }
            let expected = expected.map(|address| address.parse::<IpAddr>().expect("an address"));
            assert_eq!(forwarded(&headers, proxies), expected, "{fields:?} behind {proxies}");
        }
    }
}
