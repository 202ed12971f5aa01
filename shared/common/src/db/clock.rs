//! Database clock: the database's time as the last heartbeat read it, carried on by this process's monotonic clock.
//!
//! # Why does it matter?
//! The times in command ids and in what is accepted come from the API's wall clock, those of decisions from the database. A
//! machine that was resumed, or that keeps local time in its hardware clock, would make commands that are too old or too new for
//! everybody else. So a process whose wall clock is off by more than [`CLOCK_TOLERANCE`] is not ready, and its API accepts
//! nothing, also while the database is away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

/// How far the clock of a process may be from the database's, beyond what the answer's way leaves open. Far more than what
/// NTP leaves, far less than any of the deployment's windows.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// The last reading. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct DatabaseClock(Arc<Mutex<Option<Reading>>>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    database: OffsetDateTime,
    /// Half-way between question and answer.
    at: Instant,
    /// Half of the time between them.
    uncertainty: Duration,
}

impl DatabaseClock {
    /// Notes what the database answered to a question that was asked then.
    pub(crate) fn note(&self, database: OffsetDateTime, asked_at: Instant) {
        let uncertainty = asked_at.elapsed() / 2;
        *self.lock() = Some(Reading { database, at: asked_at + uncertainty, uncertainty });
    }

    /// Compares the wall clock with it; nothing is wrong as long as the database has not been reached. Says both times.
    ///
    /// # Errors
    /// The reason, when they differ by more than [`CLOCK_TOLERANCE`].
    pub fn check(&self) -> Result<String, String> {
        let reading = *self.lock();
        reading.map_or_else(
            || Ok("the database's clock has not been read yet".to_owned()),
            |reading| compare(OffsetDateTime::now_utc(), reading.database + reading.at.elapsed(), reading.uncertainty),
        )
    }

    /// Held for a look only.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compare(here: OffsetDateTime, database: OffsetDateTime, uncertainty: Duration) -> Result<String, String> {
    let apart = (here - database).unsigned_abs();
    if apart.saturating_sub(uncertainty) <= CLOCK_TOLERANCE {
        return Ok(format!("{:.3} s from the database's", apart.as_secs_f64()));
    }
    let shown = |time: OffsetDateTime| time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default();
    Err(format!(
        "the clock of this process says {} and the database's {}; they may differ by {} s; correct the clock, for example by NTP",
        shown(here),
        shown(database),
        CLOCK_TOLERANCE.as_secs(),
    ))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_clock_may_be_off_by_the_tolerance_and_what_the_way_leaves_open() {
        let database = datetime!(2026-11-28 12:00:00 UTC);
        for (here, uncertainty, fits) in [
            (database, 0, true),
            (database + CLOCK_TOLERANCE, 0, true),
            (database - CLOCK_TOLERANCE, 0, true),
            (database + Duration::from_secs(6), 0, false),
            (database - Duration::from_secs(6), 0, false),
            (database - Duration::from_secs(6), 1, true),
            (database - Duration::from_hours(48), 1, false),
        ] {
            let compared = compare(here, database, Duration::from_secs(uncertainty));
            assert_eq!(compared.is_ok(), fits, "{here}: {compared:?}");
        }
        let refused =
            compare(database - Duration::from_hours(48), database, Duration::ZERO).expect_err("two days behind");
        assert!(refused.contains("2026-11-26T12:00:00Z") && refused.contains("2026-11-28T12:00:00Z"), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_is_carried_on_by_the_monotonic_clock() {
        let clock = DatabaseClock::default();
        assert!(clock.check().is_ok(), "nothing is known");
        clock.note(OffsetDateTime::now_utc(), Instant::now());
        assert!(clock.check().is_ok());
        // Time passes here and not on the wall: as a wall clock that was set back.
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(clock.check().is_err());
    }
}
