//! A value that is loaded again and again: at an interval, and sooner when somebody misses something in it.
//!
//! # Why does a value stay when it cannot be loaded?
//! The API accepts writes while the database is away, and serves while an issuer is. What was valid a moment ago still is,
//! as far as anybody knows; what ends at a known time ends then by the clock. But what was taken back meanwhile is not known,
//! so a value counts only for a limited time without a load.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::health::{Ability, CheckFailure, Health};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a request waits for a value that it asked for.
const PATIENCE: Duration = Duration::from_millis(1500);
/// After a failure, if the interval is longer, while there is an older value.
const RETRY: Duration = Duration::from_secs(5);

/// When to load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From the beginning of one load to the next.
    pub(super) interval: Duration,
    /// The same when somebody asks, so that strangers cannot make it load all the time.
    pub(super) gap: Duration,
    /// The longest time for which a value counts, from the beginning of its load.
    pub(super) limit: Duration,
}

/// The newest value there is.
#[derive(Debug)]
pub(super) struct Fresh<T> {
    newest: watch::Receiver<Newest<T>>,
    asked: Arc<Notify>,
    pace: Pace,
}

#[derive(Debug)]
struct Newest<T> {
    value: Option<Arc<T>>,
    /// When the load of the value began.
    value_at: Option<Instant>,
    /// When the last load began, whatever came of it.
    begun_at: Option<Instant>,
    failed: bool,
}

impl<T: fmt::Display + Send + Sync + 'static> Fresh<T> {
    /// Starts loading. `check` is the health's line for it; until the first value nobody can be served.
    pub(super) fn start<F: Future<Output = Result<T, CheckFailure>> + Send + 'static>(
        shutdown: &Shutdown,
        health: &Health,
        check: &'static str,
        pace: Pace,
        load: impl Fn() -> F + Send + 'static,
    ) -> Self {
        health.register(check, Ability::Everything);
        let (sender, newest) = watch::channel(Newest { value: None, value_at: None, begun_at: None, failed: false });
        let asked = Arc::new(Notify::new());
        let task = Loading { sender, asked: Arc::clone(&asked), pace, check, health: health.clone() };
        shutdown.supervise(check, Tier::Back, task.run(shutdown.clone(), load));
        Self { newest, asked, pace }
    }

    /// The newest value, if there is one that counts.
    pub(super) fn value(&self) -> Option<Arc<T>> {
        let newest = self.newest.borrow();
        newest.value.clone().filter(|_| newest.counts(self.pace.limit))
    }

    /// Whether the newest value is from the last load, and so says what is missing, too.
    pub(super) fn complete(&self) -> bool {
        let newest = self.newest.borrow();
        newest.counts(self.pace.limit) && !newest.failed
    }

    /// Waits for a load that begins after now, if one may begin soon; false when none ended in time.
    pub(super) async fn ask(&self) -> bool {
        let now = Instant::now();
        let begun_at = self.newest.borrow().begun_at;
        // Also when it begins too late for this request: the next one with the same key finds it.
        self.asked.notify_one();
        if begun_at.is_some_and(|begun_at| begun_at + self.pace.gap > now + PATIENCE) {
            return true;
        }
        let mut newest = self.newest.clone();
        let loaded = newest.wait_for(|newest| newest.begun_at.is_some_and(|begun_at| begun_at >= now));
        timeout(PATIENCE, loaded).await.is_ok()
    }
}

impl<T> Newest<T> {
    /// True while its value is younger than the limit.
    fn counts(&self, limit: Duration) -> bool {
        self.value_at.is_some_and(|at| at.elapsed() < limit)
    }
}

struct Loading<T> {
    sender: watch::Sender<Newest<T>>,
    asked: Arc<Notify>,
    pace: Pace,
    check: &'static str,
    health: Health,
}

impl<T: fmt::Display> Loading<T> {
    async fn run<F: Future<Output = Result<T, CheckFailure>>>(
        self,
        shutdown: Shutdown,
        load: impl Fn() -> F,
    ) -> TaskResult {
        loop {
            let begun_at = Instant::now();
            let loaded = tokio::select! {
                loaded = load() => loaded,
                () = shutdown.reached(Phase::Closing) => return Ok(()),
            };
            let failed = loaded.is_err();
            self.keep(loaded, begun_at);
            let pause = match (failed, self.sender.borrow().value.is_some()) {
                (false, _) => self.pace.interval,
                (true, true) => self.pace.interval.min(RETRY),
                // Nobody can be served.
                (true, false) => self.pace.gap,
            };
            let asked = async {
                self.asked.notified().await;
                sleep_until(begun_at + self.pace.gap).await;
            };
            tokio::select! {
                () = sleep_until(begun_at + pause) => {}
                () = asked => {}
                () = shutdown.reached(Phase::Closing) => return Ok(()),
            }
        }
    }

    fn keep(&self, loaded: Result<T, CheckFailure>, begun_at: Instant) {
        self.sender.send_modify(|newest| {
            let turned = newest.failed != loaded.is_err();
            let state = match loaded {
                Ok(value) => {
                    let state = Ok(value.to_string());
                    newest.value = Some(Arc::new(value));
                    newest.value_at = Some(begun_at);
                    newest.failed = false;
                    state
                }
                Err(reason) => {
                    if turned && newest.value.is_some() {
                        tracing::warn!(check = self.check, %reason, "going on with what was loaded before");
                    }
                    newest.failed = true;
                    match &newest.value {
                        Some(value) if newest.counts(self.pace.limit) => Ok(format!(
                            "{value}, from before: {}; it counts for {} at most",
                            reason.words(),
                            spoken(self.pace.limit)
                        )),
                        Some(_) => Err(reason.within(format!("nothing was loaded for {}", spoken(self.pace.limit)))),
                        None => Err(reason),
                    }
                }
            };
            newest.begun_at = Some(begun_at);
            self.health.set(self.check, state);
        });
    }
}

/// A limit in hours, of which it has whole ones.
fn spoken(limit: Duration) -> String {
    match limit.as_secs() / 3600 {
        1 => "an hour".to_owned(),
        hours => format!("{hours} hours"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::health::ReadyWhen;
    use futures_util::future::join_all;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const GAP: Duration = Duration::from_millis(20);

    /// Counts its loads, which succeed for these numbers.
    fn counting(interval: Duration, gap: Duration, succeed: fn(usize) -> bool) -> (Fresh<usize>, Health) {
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::Any, shutdown.clone());
        let loads = AtomicUsize::new(0);
        let load = move || {
            let number = loads.fetch_add(1, Ordering::Relaxed);
            async move { if succeed(number) { Ok(number) } else { Err("the source is away".into()) } }
        };
        (Fresh::start(&shutdown, &health, "source", Pace { interval, gap, limit: HOUR }, load), health)
    }

    /// The value after the first load that this fits.
    async fn after(fresh: &Fresh<usize>, fits: impl FnMut(&Newest<usize>) -> bool) -> Option<usize> {
        let mut newest = fresh.newest.clone();
        let found = timeout(Duration::from_secs(30), newest.wait_for(fits)).await.expect("in time").expect("a sender");
        found.value.as_deref().copied()
    }

    #[tokio::test]
    async fn it_loads_at_the_interval() {
        let (fresh, _) = counting(GAP, HOUR, |_| true);
        assert_eq!(after(&fresh, |newest| newest.value.as_deref() == Some(&3)).await, Some(3));
    }

    #[tokio::test]
    async fn who_asks_gets_a_value_that_was_loaded_after_the_question() {
        let (fresh, _) = counting(HOUR, GAP, |_| true);
        after(&fresh, |newest| newest.value.is_some()).await;
        for expected in 1..5 {
            fresh.ask().await;
            assert_eq!(fresh.value().as_deref(), Some(&expected));
        }
    }

    #[tokio::test]
    async fn however_many_ask_it_loads_no_oftener_than_the_gap() {
        let (fresh, _) = counting(HOUR, GAP, |_| true);
        after(&fresh, |newest| newest.value.is_some()).await;
        let started_at = Instant::now();
        for _ in 0..20 {
            join_all((0..100).map(|_| fresh.ask())).await;
        }
        let most = started_at.elapsed().div_duration_f64(GAP).ceil();
        let loads = fresh.value().map_or(0, |value| *value);
        assert!(loads >= 20, "each round waited for a load of its own: {loads}");
        assert!(f64::from(u32::try_from(loads).expect("few")) <= most + 1.0, "{loads} loads in {most} gaps");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_load_that_may_not_begin_soon() {
        let (fresh, _) = counting(HOUR, HOUR, |_| true);
        after(&fresh, |newest| newest.value.is_some()).await;
        let asked_at = Instant::now();
        fresh.ask().await;
        assert!(asked_at.elapsed() < PATIENCE);
        assert_eq!(fresh.value().as_deref(), Some(&0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_told_when_no_load_ended_in_time() {
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::Any, shutdown.clone());
        let loads = AtomicUsize::new(0);
        let load = move || {
            let number = loads.fetch_add(1, Ordering::Relaxed);
            async move { if number == 0 { Ok(number) } else { std::future::pending().await } }
        };
        let fresh = Fresh::start(&shutdown, &health, "source", Pace { interval: HOUR, gap: GAP, limit: HOUR }, load);
        after(&fresh, |newest| newest.value.is_some()).await;
        tokio::time::advance(GAP).await;
        assert!(!fresh.ask().await);
        assert!(fresh.complete(), "as far as it knows");
    }

    #[tokio::test]
    async fn what_was_loaded_stays_while_its_source_is_away_and_before_that_the_instance_is_not_ready() {
        let (fresh, health) = counting(HOUR, GAP, |number| number == 1);
        after(&fresh, |newest| newest.failed).await;
        assert_eq!((fresh.value(), fresh.complete()), (None, false));
        assert!(!health.report().ready);
        fresh.ask().await;
        assert_eq!((fresh.value().as_deref(), fresh.complete()), (Some(&1), true));
        assert_eq!((health.report().ready, &*health.report().checks["source"]), (true, "ok: 1"));
        fresh.ask().await;
        assert_eq!((fresh.value().as_deref(), fresh.complete()), (Some(&1), false));
        let line = health.report().checks["source"].clone();
        assert!(
            health.report().ready && line == "ok: 1, from before: the source is away; it counts for an hour at most",
            "{line}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_loaded_for_as_long_as_it_counts_counts_no_longer() {
        let (fresh, health) = counting(Duration::from_secs(2), GAP, |number| number == 0);
        after(&fresh, |newest| newest.failed).await;
        tokio::time::advance(Duration::from_mins(59)).await;
        assert_eq!(fresh.value().as_deref(), Some(&0));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!((fresh.value(), fresh.complete()), (None, false));
        fresh.ask().await;
        let line = health.report().checks["source"].clone();
        assert!(
            !health.report().ready && line == "failed: nothing was loaded for an hour: the source is away",
            "{line}"
        );
    }
}
