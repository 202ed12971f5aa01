//! API keys: all that are active, in memory.
//!
//! # Why not a query per request?
//! A read would cost two, and no write could be accepted while the database is away. The price is that a revoked key works
//! until the next load, [`PACE`]; a new one works at once, because an unknown id makes the list load again.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use common::access::{ApiKey, Client, InvalidKey, Scopes};
use common::command::Principal;
use common::db::{DbError, Pool, within};
use common::health::{CheckFailure, Health};
use common::shutdown::Shutdown;
use sqlx::PgConnection;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use super::Identity;
use super::denial::{Denial, Reason};
use super::fresh::{Fresh, Pace};

/// The interval is how long a revoked key can go on working, a query's time aside, and the limit how long while the database
/// cannot be read.
const PACE: Pace =
    Pace { interval: Duration::from_secs(2), gap: Duration::from_millis(250), limit: Duration::from_hours(1) };
/// For a connection to come free: longer than any client waits, so that a crowd of them keeps no revocation away.
const PATIENCE: Duration = Duration::from_secs(5);
/// For the list.
const DEADLINE: Duration = Duration::from_millis(700);

/// The keys, as new as the database lets them be.
#[derive(Debug)]
pub(super) struct Keys(Fresh<Snapshot>);

/// Keys by their ids; those that ended lately, too, so that the log can say so.
#[derive(Debug, Default)]
struct Snapshot(HashMap<String, Entry>);

#[derive(Debug)]
struct Entry {
    hash: Vec<u8>,
    principal: Principal,
    scopes: Scopes,
    expires_at: Option<OffsetDateTime>,
    revoked: bool,
}

impl Keys {
    pub(super) fn start(shutdown: &Shutdown, health: &Health, pool: &Pool) -> Self {
        let pool = pool.clone();
        let load = move || {
            let pool = pool.clone();
            async move { load(&pool).await.map_err(|error| CheckFailure::caused("the keys cannot be read", &error)) }
        };
        Self(Fresh::start(shutdown, health, "keys", PACE, load))
    }

    /// Who has this key.
    pub(super) async fn identify(&self, text: &str) -> Result<Identity, Denial> {
        let key = ApiKey::parse(text).map_err(|fault| match fault {
            InvalidKey::NotAKey => Reason::Malformed,
            InvalidKey::Mistyped => Reason::Mistyped,
        })?;
        if let Some(known) = self.0.value().filter(|snapshot| snapshot.0.contains_key(key.id())) {
            return known.identify(&key, OffsetDateTime::now_utc());
        }
        let answered = self.0.ask().await;
        match self.0.value() {
            Some(newest) if answered && self.0.complete() || newest.0.contains_key(key.id()) => {
                newest.identify(&key, OffsetDateTime::now_utc())
            }
            _ => Err(Reason::Unavailable.into()),
        }
    }
}

impl Snapshot {
    fn identify(&self, key: &ApiKey, now: OffsetDateTime) -> Result<Identity, Denial> {
        let entry = self.0.get(key.id()).ok_or(Reason::UnknownKey)?;
        let denied = |reason| Err(Denial::of(reason, key.id()));
        // In constant time: how much of a hash fits is nobody's to measure.
        if !bool::from(key.hash().as_slice().ct_eq(&entry.hash)) {
            return denied(Reason::WrongSecret);
        }
        if entry.revoked {
            return denied(Reason::RevokedKey);
        }
        if entry.expires_at.is_some_and(|end| end <= now) {
            return denied(Reason::ExpiredKey);
        }
        Ok(Identity { principal: entry.principal.clone(), scopes: entry.scopes.clone() })
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = OffsetDateTime::now_utc();
        let active = |entry: &&Entry| !entry.revoked && entry.expires_at.is_none_or(|end| end > now);
        write!(f, "{} active", self.0.values().filter(active).count())
    }
}

async fn load(pool: &Pool) -> Result<Snapshot, DbError> {
    let mut lease = pool.acquire(PATIENCE).await?;
    match within(DEADLINE, rows(&mut lease)).await {
        Ok(snapshot) => {
            lease.release().await?;
            Ok(snapshot)
        }
        Err(error) => {
            if error.lost_connection() {
                // The server was restarted: what the pool holds is dead.
                pool.discard_idle();
            }
            Err(error)
        }
    }
}

async fn rows(conn: &mut PgConnection) -> Result<Snapshot, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT id, client, hash, scopes, expires_at, revoked_at IS NOT NULL AS "revoked!"
        FROM api_keys
        WHERE coalesce(least(expires_at, revoked_at), 'infinity') > now() - interval '30 days'
        "#,
    )
    .fetch_all(conn)
    .await?;
    let entries = rows.into_iter().filter_map(|row| {
        // A name that a newer `rollcall keys` allows is none that this one can record.
        let client: Client = row.client.parse().ok()?;
        let entry = Entry {
            hash: row.hash,
            principal: client.principal(),
            scopes: row.scopes.iter().filter_map(|scope| scope.parse().ok()).collect(),
            expires_at: row.expires_at,
            revoked: row.revoked,
        };
        Some((row.id, entry))
    });
    Ok(Snapshot(entries.collect()))
}

#[cfg(test)]
mod tests {
    use std::slice;

    use common::access::Scope;
    use time::Duration;

    use super::*;

    /// Makes of a good entry another one, at a time.
    type Change = fn(&mut Entry, OffsetDateTime);

    fn snapshot(key: &ApiKey, change: impl FnOnce(&mut Entry)) -> Snapshot {
        let mut entry = Entry {
            hash: key.hash().to_vec(),
            principal: Principal::parse("key:billing").expect("a principal"),
            scopes: Scopes::from([Scope::UsersRead]),
            expires_at: None,
            revoked: false,
        };
        change(&mut entry);
        Snapshot(HashMap::from([(key.id().to_owned(), entry)]))
    }

    #[test]
    fn a_key_holds_until_it_is_revoked_or_ends() {
        let (key, now) = (ApiKey::mint(), OffsetDateTime::now_utc());
        let rows: &[(&str, Change, Option<Reason>)] = &[
            ("for ever", |_, _| {}, None),
            ("until later", |entry, now| entry.expires_at = Some(now + Duration::NANOSECOND), None),
            ("until now", |entry, now| entry.expires_at = Some(now), Some(Reason::ExpiredKey)),
            ("revoked", |entry, _| entry.revoked = true, Some(Reason::RevokedKey)),
            ("another secret", |entry, _| entry.hash = ApiKey::mint().hash().to_vec(), Some(Reason::WrongSecret)),
            ("half a hash", |entry, _| entry.hash.truncate(16), Some(Reason::WrongSecret)),
            ("no hash", |entry, _| entry.hash.clear(), Some(Reason::WrongSecret)),
        ];
        for (what, change, expected) in rows {
            match snapshot(&key, |entry| change(entry, now)).identify(&key, now) {
                Ok(identity) => {
                    assert_eq!(*expected, None, "{what}");
                    assert_eq!(identity.principal.as_str(), "key:billing");
                    assert!(identity.scopes.iter().eq(slice::from_ref(&Scope::UsersRead)));
                }
                Err(denial) => {
                    assert_eq!(Some(denial.reason), *expected, "{what}");
                    assert_eq!(denial.who.as_deref(), Some(key.id()), "{what}");
                }
            }
        }
        let denial = snapshot(&key, |_| {}).identify(&ApiKey::mint(), now).expect_err("a stranger");
        assert_eq!((denial.reason, denial.who), (Reason::UnknownKey, None), "what nobody knows is not logged");
    }
}
