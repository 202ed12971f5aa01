//! Who is served: one `Authorization: Bearer …` for API keys and access tokens, and the scopes that operations ask for.
//!
//! An operation says in its signature whom it serves: `caller: Caller<UsersRead>`, as its first parameter, so that nothing of
//! the request is looked at before. In reading order: `caller`, the parameter; `denial`, why somebody is not served; `keys`
//! and `tokens`, the two proofs; `local`, what is asked when there are none; `fresh`, how both know what is valid without a
//! query per request; `refusals`, the log of refused requests; `settings`.

mod caller;
mod denial;
mod fresh;
mod key_set;
mod keys;
mod local;
mod refusals;
pub mod settings;
mod tokens;

use std::sync::Arc;

use common::access::{ApiKey, Scope, Scopes};
use common::command::Principal;
use common::db::Pool;
use common::health::Health;
use common::shutdown::Shutdown;
use common::telemetry::meter;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use poem::Request;
use poem::http::{HeaderMap, header};

pub(crate) use caller::{Caller, SCHEME};
pub use caller::{HistoryRead, UsersRead, UsersWrite};
pub(crate) use denial::{CHALLENGE, scope_challenge};
use denial::{Denial, Reason};
use keys::Keys;
use refusals::RefusalLog;
use settings::AuthSettings;
use tokens::Tokens;

use crate::cors::Origins;
use crate::problem::Problem;
use crate::rate::{RateSettings, Rates};

/// Decides who is served. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard(Arc<Proofs>);

#[derive(Debug)]
struct Proofs {
    rates: Rates,
    local: Option<Origins>,
    keys: Option<Keys>,
    tokens: Option<Tokens>,
    refusals: Counter<u64>,
    log: RefusalLog,
}

/// Somebody who proved who they are.
#[derive(Debug)]
struct Identity {
    principal: Principal,
    scopes: Scopes,
}

impl Guard {
    /// Starts what keeps keys and signers known; each is a check of the health.
    ///
    /// # Errors
    /// When the HTTP client for the signers' keys cannot be made.
    pub fn start(
        shutdown: &Shutdown,
        health: &Health,
        pool: &Pool,
        settings: AuthSettings,
        rates: RateSettings,
    ) -> anyhow::Result<Self> {
        let refusals = meter()
            .u64_counter("rollcall.api.refusals")
            .with_description("Requests that were refused for who sent them, by reason")
            .build();
        let tokens = settings.tokens.map(|tokens| Tokens::start(shutdown, health, tokens)).transpose()?;
        let keys = settings.keys.then(|| Keys::start(shutdown, health, pool));
        let rates = Rates::start(shutdown, rates);
        let log = RefusalLog::default();
        Ok(Self(Arc::new(Proofs { rates, local: settings.local, keys, tokens, refusals, log })))
    }

    /// Serves everybody, as nobody in particular.
    fn open(&self) -> bool {
        self.0.keys.is_none() && self.0.tokens.is_none()
    }

    /// The caller's identity, if it has one of these scopes and is below its rate. Without authentication every caller has all.
    async fn admit(&self, request: &Request, any_of: &[Scope]) -> Result<Identity, Problem> {
        if self.open() {
            // First: a foreign page must not use up what the programs here may ask.
            if let Some(origins) = &self.0.local
                && let Err(foreign) = local::check(request.uri(), request.headers(), origins)
            {
                self.refused(request, &Reason::CrossSite.into());
                return Err(foreign);
            }
            self.0.rates.count(request, None)?;
            return Ok(Identity { principal: Principal::anonymous(), scopes: Scope::ALL.into() });
        }
        let identified = self.identify(request.headers()).await;
        // Whoever guesses is counted by address, and told nothing more beyond the limit.
        self.0.rates.count(request, identified.as_ref().ok().map(|identity| identity.principal.as_str()))?;
        let refusal = match identified {
            Ok(identity) if any_of.iter().any(|scope| identity.scopes.contains(scope)) => return Ok(identity),
            Ok(identity) => Denial::of(Reason::InsufficientScope, &identity.principal.logged()),
            Err(denial) => denial,
        };
        self.refused(request, &refusal);
        Err(refusal.reason.problem(any_of))
    }

    /// Refuses a page of another site whose name leads here, where nobody has to prove who they are.
    pub(crate) fn check_host(&self, request: &Request) -> Result<(), Problem> {
        if !self.open() || self.0.local.is_none() {
            return Ok(());
        }
        local::check_host(request.uri(), request.headers())
            .inspect_err(|_| self.refused(request, &Reason::CrossSite.into()))
    }

    fn refused(&self, request: &Request, refusal: &Denial) {
        self.0.refusals.add(1, &[KeyValue::new("reason", refusal.reason.label())]);
        self.0.log.note(request, &self.0.rates.address(request), refusal);
    }

    async fn identify(&self, headers: &HeaderMap) -> Result<Identity, Denial> {
        let bearer = bearer(headers)?;
        match (&self.0.keys, &self.0.tokens) {
            (Some(keys), _) if ApiKey::resembles(bearer) => keys.identify(bearer).await,
            (_, Some(tokens)) if !ApiKey::resembles(bearer) => tokens.identify(bearer).await,
            _ => Err(Reason::Malformed.into()),
        }
    }
}

/// What follows `Bearer` (RFC 6750 §2.1). Another scheme is as if nothing had come.
fn bearer(headers: &HeaderMap) -> Result<&str, Denial> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let line = lines.next().ok_or(Reason::Missing)?;
    if lines.next().is_some() {
        return Err(Reason::Malformed.into());
    }
    let line = line.to_str().map_err(|_| Reason::Malformed)?;
    let (scheme, rest) = line.split_once(' ').unwrap_or((line, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Reason::Missing.into());
    }
    let token = rest.trim_matches(' ');
    let spelled = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if spelled { Ok(token) } else { Err(Reason::Malformed.into()) }
}

#[cfg(test)]
mod tests {
    use poem::http::HeaderValue;

    use super::*;

    #[test]
    fn one_bearer_line_carries_the_token() {
        let rows: &[(&[&str], Result<&str, Reason>)] = &[
            (&[], Err(Reason::Missing)),
            (&["Bearer abc"], Ok("abc")),
            (&["bearer abc"], Ok("abc")),
            (&["BEARER   abc  "], Ok("abc")),
            (&["Basic dXNlcjpwYXNz"], Err(Reason::Missing)),
            (&["abc"], Err(Reason::Missing)),
            (&[""], Err(Reason::Missing)),
            (&["Bearer"], Err(Reason::Malformed)),
            (&["Bearer "], Err(Reason::Malformed)),
            (&["Bearer a b"], Err(Reason::Malformed)),
            (&["Bearer a", "Bearer b"], Err(Reason::Malformed)),
            (&["Bearer a", "Basic b"], Err(Reason::Malformed)),
        ];
        for (lines, expected) in rows {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(header::AUTHORIZATION, HeaderValue::from_str(line).expect("a header value"));
            }
            assert_eq!(bearer(&headers).map_err(|denial| denial.reason), *expected, "{lines:?}");
        }
        let headers = HeaderMap::from_iter([(
            header::AUTHORIZATION,
            HeaderValue::from_bytes(b"Bearer \xe9").expect("a header value"),
        )]);
        assert_eq!(bearer(&headers).map_err(|denial| denial.reason), Err(Reason::Malformed));
    }
}
