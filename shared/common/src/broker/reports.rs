//! What the users of a connection report about it: partitions that confirm nothing, and auxiliary parts that do not work.
//! The link shows both in its readiness check.
//!
//! # Terms
//! A partition is *silent* when nothing that was published to it has been confirmed for some seconds, although something
//! was: its messages are refused, or left without an answer. Its queue is full, or it has no leader, because the majority
//! of the broker's nodes that hold it is away.
//!
//! # Why does a silent partition count only for a while after the last attempt?
//! An instance that is not ready is sent no commands, so nothing would ever show that the partition works again. After a
//! pause the check holds, and the next command that is refused makes it fail again at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Topology;
use crate::health::CheckFailure;

/// How long a partition may confirm nothing before the link's check fails: longer than a leader election.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long after the last attempt a silent partition counts.
const RECENT: Duration = Duration::from_secs(30);
/// The same for one whose queue is full: workers empty it, and its instance may accept everything else.
const RECENTLY_FULL: Duration = Duration::from_secs(10);
/// How long the answer whether a queue is full may be used again.
const ANSWER_AGE: Duration = Duration::from_secs(1);

/// The reports about the connections of one link; they outlive each connection.
#[derive(Debug)]
pub struct LinkReports {
    topology: Topology,
    silent: Mutex<BTreeMap<u16, Silence>>,
    auxiliary: Mutex<BTreeMap<&'static str, CheckFailure>>,
}

/// A partition that has confirmed nothing since an instant.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Instant,
    last: Instant,
    /// When the broker was asked for the cause.
    asked: Instant,
    cause: Cause,
}

/// Why a message was not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Refused, and messages wait in the queue.
    Full,
    /// Refused, and it does not seem to be full.
    Refused,
    /// Left without an answer.
    Unanswered,
    /// The broker closed the channel instead.
    Closed,
}

impl LinkReports {
    pub(super) fn new(topology: Topology) -> Self {
        Self { topology, silent: Mutex::default(), auxiliary: Mutex::default() }
    }

    /// The names of the deployment.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Reports that an auxiliary part does not work, and why, or that it does. It shows in the readiness check, and the check
    /// does not fail for it. Whether this is news.
    pub fn auxiliary(&self, part: &'static str, problem: Option<CheckFailure>) -> bool {
        let mut parts = lock(&self.auxiliary);
        match problem {
            Some(problem) => parts.insert(part, problem.clone()).as_ref() != Some(&problem),
            None => parts.remove(part).is_some(),
        }
    }

    pub(super) fn confirmed(&self, partition: u16) {
        let mut silent = lock(&self.silent);
        // What made one fail may be over for all; the others show by themselves when it is not.
        if silent.remove(&partition).is_some_and(|silence| silence.fails()) {
            silent.clear();
        }
    }

    /// Reports a message to this partition that was published at an instant and not confirmed.
    pub(super) fn unconfirmed(&self, partition: u16, published: Instant, cause: Cause) {
        let last = Instant::now();
        let mut silent = lock(&self.silent);
        let silence = silent.entry(partition).or_insert(Silence { since: published, last, asked: last, cause });
        let asked = if silence.asked.elapsed() < ANSWER_AGE { silence.asked } else { last };
        *silence = Silence { since: silence.since.min(published), last, asked, cause };
    }

    /// Why this partition refused, if the broker was asked a moment ago.
    pub(super) fn refused_lately(&self, partition: u16) -> Option<Cause> {
        let silence = lock(&self.silent).get(&partition).copied()?;
        let refused = matches!(silence.cause, Cause::Full | Cause::Refused);
        (refused && silence.asked.elapsed() < ANSWER_AGE).then_some(silence.cause)
    }

    /// The line of the readiness check while the link is up.
    pub(super) fn line(&self) -> Result<String, String> {
        let failing: Vec<_> =
            lock(&self.silent).iter().filter(|(_, silence)| silence.fails()).map(|(n, s)| (*n, *s)).collect();
        let Some((partition, silence)) = failing.first() else {
            let mut line = "connected".to_owned();
            for (part, problem) in lock(&self.auxiliary).iter() {
                let _ = write!(line, "; {part}: {}", problem.words());
            }
            return Ok(line);
        };
        let cause = match silence.cause {
            Cause::Full => "its queue is full: start workers, or find out why they do not apply",
            Cause::Refused => "the broker refuses: the queue has no leader, or its length limit is very low",
            Cause::Unanswered => {
                "the broker does not answer: the queue has no leader that a majority of its nodes follows"
            }
            Cause::Closed => "the broker closes the channel; its log says why",
        };
        let seconds = silence.last.duration_since(silence.since).as_secs();
        Err(format!("{} partition(s) confirm nothing; partition {partition} for {seconds} s: {cause}", failing.len()))
    }
}

impl Silence {
    fn fails(&self) -> bool {
        let recent = if self.cause == Cause::Full { RECENTLY_FULL } else { RECENT };
        self.last.duration_since(self.since) >= PATIENCE && self.last.elapsed() < recent
    }
}

/// Held for a look-up only, never over an await.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerSettings;
    use crate::transport::PlaintextHosts;

    fn reports() -> LinkReports {
        let settings = BrokerSettings {
            url: "amqp://h".into(),
            file: None,
            prefix: "t.".to_owned(),
            partitions: 4,
            plaintext_hosts: PlaintextHosts::default(),
        };
        LinkReports::new(Topology::new(&settings))
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_is_silent_once_it_has_confirmed_nothing_for_seconds() {
        let reports = reports();
        for _ in 0..3 {
            assert_eq!(reports.line().as_deref(), Ok("connected"));
            reports.unconfirmed(2, Instant::now(), Cause::Refused);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        reports.unconfirmed(2, Instant::now(), Cause::Full);
        let line = reports.line().expect_err("silent");
        assert!(line.starts_with("1 partition(s) confirm nothing; partition 2 for 3 s: its queue is full"), "{line}");
        reports.confirmed(3);
        assert!(reports.line().is_err(), "another partition");
        reports.confirmed(2);
        assert_eq!(reports.line().as_deref(), Ok("connected"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_attempts_a_silent_partition_is_forgotten_until_the_next_one() {
        let reports = reports();
        reports.unconfirmed(0, Instant::now() - PATIENCE, Cause::Unanswered);
        assert!(reports.line().is_err());
        tokio::time::advance(RECENT).await;
        assert!(reports.line().is_ok());
        reports.unconfirmed(0, Instant::now(), Cause::Unanswered);
        assert!(reports.line().is_err(), "at once");
    }

    #[tokio::test(start_paused = true)]
    async fn when_one_silent_partition_confirms_all_are_tried_again() {
        let reports = reports();
        for partition in 0..4 {
            reports.unconfirmed(partition, Instant::now() - PATIENCE, Cause::Unanswered);
        }
        assert!(reports.line().expect_err("silent").starts_with("4 partition(s)"));
        reports.confirmed(2);
        assert!(reports.line().is_ok());
    }

    #[test]
    fn an_auxiliary_part_is_shown_and_fails_nothing() {
        let reports = reports();
        assert!(reports.auxiliary("reply hints", Some("refused".into())));
        assert!(!reports.auxiliary("reply hints", Some("refused".into())), "no news");
        assert_eq!(reports.line().as_deref(), Ok("connected; reply hints: refused"));
        assert!(reports.auxiliary("reply hints", None));
        assert_eq!(reports.line().as_deref(), Ok("connected"));
    }
}
