//! What the users of a connection report about it: partitions that confirm nothing, partitions without a queue, and auxiliary
//! parts that do not work. The link shows them in its readiness check.
//!
//! # Terms
//! A partition is *silent* when nothing that was published to it has been confirmed for some seconds, although something
//! was: its messages are refused, or left without an answer. Its queue is full, or it has no leader, because the majority
//! of the broker's nodes that hold it is away.
//!
//! # Why does a silent partition count only for a while after the last attempt?
//! An instance that is not ready is sent no commands, so nothing would ever show that the partition works again. After a
//! pause the check holds, and the next command that is refused makes it fail again at once.
//!
//! # Why does a partition without a queue not fail the check?
//! Its commands are refused at once, and the other partitions go on, for which the instance has to stay ready. Only when no
//! partition is left the check fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Topology;
use crate::health::CheckFailure;

/// How long a partition may confirm nothing before the link's check fails: longer than a leader election.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long after the last attempt a silent partition counts.
const RECENT: Duration = Duration::from_secs(30);
/// The same for one whose queue is full: workers empty it, and its instance may accept everything else.
const RECENTLY_FULL: Duration = Duration::from_secs(10);
/// How long a partition that no queue took a message of is shown after that, if its queue is there: it may not be bound.
const RECENTLY_UNROUTABLE: Duration = Duration::from_secs(10);
/// How long the answer whether a queue is full may be used again.
const ANSWER_AGE: Duration = Duration::from_secs(1);

/// The reports about the connections of one link; they outlive each connection.
#[derive(Debug)]
pub struct LinkReports {
    topology: Topology,
    silent: Mutex<BTreeMap<u16, Silence>>,
    /// Partitions without a queue, and when that was seen last.
    unroutable: Mutex<BTreeMap<u16, Instant>>,
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
        Self { topology, silent: Mutex::default(), unroutable: Mutex::default(), auxiliary: Mutex::default() }
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

    /// Whether this auxiliary part does not work.
    pub(super) fn shows(&self, part: &str) -> bool {
        lock(&self.auxiliary).contains_key(part)
    }

    /// Reports that this partition has no queue, or one that gets no messages.
    pub(super) fn unroutable(&self, partition: u16) {
        if lock(&self.unroutable).insert(partition, Instant::now()).is_none() {
            let queue = self.topology.partition_queue(partition);
            warn!(partition, queue, "no queue takes the commands of a partition; run `rollcall broker apply`");
        }
    }

    /// The partitions for which that was reported.
    pub(super) fn unroutable_partitions(&self) -> Vec<u16> {
        lock(&self.unroutable).keys().copied().collect()
    }

    /// Reports that the queue of this partition is there.
    pub(super) fn queue_exists(&self, partition: u16) {
        lock(&self.unroutable).retain(|number, seen| *number != partition || seen.elapsed() < RECENTLY_UNROUTABLE);
    }

    pub(super) fn confirmed(&self, partition: u16) {
        lock(&self.unroutable).remove(&partition);
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
            let unroutable = lock(&self.unroutable);
            if let Some((partition, _)) = unroutable.first_key_value() {
                let queue = self.topology.partition_queue(*partition);
                let _ = write!(
                    line,
                    "; {} partition(s) accept nothing: the queue {queue:?} does not exist or is not bound; run `rollcall broker \
                     apply`",
                    unroutable.len()
                );
                if unroutable.len() >= usize::from(self.topology.partitions()) {
                    return Err(line);
                }
            }
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

    #[tokio::test(start_paused = true)]
    async fn partitions_without_a_queue_are_named_and_fail_the_check_only_when_none_is_left() {
        let reports = reports();
        reports.unroutable(2);
        let line = reports.line().expect("the others go on");
        let said =
            "connected; 1 partition(s) accept nothing: the queue \"t.commands.2\" does not exist or is not bound; run ";
        assert!(line.starts_with(said), "{line}");
        reports.queue_exists(2);
        assert_eq!(reports.unroutable_partitions(), [2], "it may not be bound");
        tokio::time::advance(RECENTLY_UNROUTABLE).await;
        reports.queue_exists(2);
        assert_eq!(reports.line().as_deref(), Ok("connected"));
        for partition in 0..4 {
            reports.unroutable(partition);
        }
        assert!(reports.line().is_err());
        reports.confirmed(3);
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
