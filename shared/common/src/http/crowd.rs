//! How many connections there are at once, and who has to go for a newcomer.
//!
//! # Why not let newcomers wait for a place?
//! Ten thousand connections that never finish a request would then keep everybody else out. The one that has been quiet for
//! longest, half-sent head or not, makes room instead; clients that are served again and again are never that one for long.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// All connections of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Crowd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    state: Mutex<State>,
    /// A connection ended or fell quiet.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    /// Of these, those that were asked to go.
    leaving: usize,
    next: u64,
    /// Connections without a request in hand, the longest quiet first.
    quiet: BTreeMap<u64, CancellationToken>,
}

/// One connection; dropping it ends its part.
#[derive(Debug)]
pub(super) struct Visitor {
    crowd: Crowd,
    asked_to_go: CancellationToken,
    requests: Mutex<Requests>,
    /// The last request in hand ended.
    done: Notify,
}

#[derive(Debug)]
struct Requests {
    in_hand: usize,
    /// Its place among the quiet.
    quiet: u64,
}

/// A request in hand; dropping it ends it.
#[derive(Debug)]
pub(super) struct Busy(Arc<Visitor>);

/// The body of an answer, whose request is in hand until all of it is taken.
pub(super) struct Answer<B> {
    body: B,
    _busy: Busy,
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl<B: Body + Unpin> Body for Answer<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, state: Mutex::default(), changed: Notify::new() }))
    }

    /// Lets a connection in once there is a place for it; asks others to go if there is none.
    pub(super) async fn enter(&self) -> Arc<Visitor> {
        loop {
            let changed = self.0.changed.notified();
            if let Some(visitor) = self.try_enter() {
                return visitor;
            }
            changed.await;
        }
    }

    fn try_enter(&self) -> Option<Arc<Visitor>> {
        let mut state = self.lock();
        if state.open >= self.0.most {
            if state.open - state.leaving >= self.0.most
                && let Some((_, longest)) = state.quiet.pop_first()
            {
                longest.cancel();
                state.leaving += 1;
            }
            return None;
        }
        state.open += 1;
        let asked_to_go = CancellationToken::new();
        let quiet = state.add_quiet(asked_to_go.clone());
        drop(state);
        let requests = Mutex::new(Requests { in_hand: 0, quiet });
        Some(Arc::new(Visitor { crowd: self.clone(), asked_to_go, requests, done: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add_quiet(&mut self, asked_to_go: CancellationToken) -> u64 {
        self.next += 1;
        if !asked_to_go.is_cancelled() {
            self.quiet.insert(self.next, asked_to_go);
        }
        self.next
    }
}

impl Visitor {
    /// Ends when the place is needed, and not in the middle of a request that came at the same moment.
    pub(super) async fn asked_to_go(&self) {
        self.asked_to_go.cancelled().await;
        loop {
            let done = self.done.notified();
            if self.lock().in_hand == 0 {
                return;
            }
            done.await;
        }
    }

    /// The number of the present idle period; none while a request is in hand.
    pub(super) fn idle_period(&self) -> Option<u64> {
        let requests = self.lock();
        (requests.in_hand == 0).then_some(requests.quiet)
    }

    /// Its next request begins.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        let mut requests = self.lock();
        if requests.in_hand == 0 {
            let mut crowd = self.crowd.lock();
            crowd.quiet.remove(&requests.quiet);
            if self.asked_to_go.is_cancelled() {
                // It goes later: another one has to be asked.
                crowd.leaving -= 1;
                self.crowd.0.changed.notify_one();
            }
        }
        requests.in_hand += 1;
        drop(requests);
        Busy(Arc::clone(self))
    }

    /// Held before the crowd's lock, never after it.
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let visitor = &self.0;
        let mut requests = visitor.lock();
        requests.in_hand -= 1;
        if requests.in_hand == 0 {
            let mut crowd = visitor.crowd.lock();
            crowd.leaving += usize::from(visitor.asked_to_go.is_cancelled());
            requests.quiet = crowd.add_quiet(visitor.asked_to_go.clone());
            drop(crowd);
            visitor.crowd.0.changed.notify_one();
            visitor.done.notify_one();
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let quiet = self.lock().quiet;
        let mut state = self.crowd.lock();
        state.quiet.remove(&quiet);
        state.open -= 1;
        state.leaving -= usize::from(self.asked_to_go.is_cancelled());
        drop(state);
        self.crowd.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn counts(crowd: &Crowd) -> (usize, usize) {
        let state = crowd.lock();
        (state.open, state.quiet.len())
    }

    #[tokio::test]
    async fn the_longest_quiet_one_goes_for_a_newcomer_and_whoever_is_served_stays() {
        let crowd = Crowd::new(3);
        let [served, quiet, woken] = [crowd.enter().await, crowd.enter().await, crowd.enter().await];
        let request = served.busy();
        drop(woken.busy());
        let going = async {
            timeout(SOON, quiet.asked_to_go()).await.expect("the longest quiet one");
            assert!(!served.asked_to_go.is_cancelled() && !woken.asked_to_go.is_cancelled());
            drop(quiet);
        };
        let (newcomer, ()) = timeout(SOON, async { tokio::join!(crowd.enter(), going) }).await.expect("in time");
        assert_eq!(counts(&crowd), (3, 2));
        drop((request, served, woken, newcomer));
        assert_eq!(counts(&crowd), (0, 0));
    }

    #[tokio::test]
    async fn when_the_one_that_was_asked_is_served_meanwhile_another_goes() {
        let crowd = Crowd::new(2);
        let (first, second) = (crowd.enter().await, crowd.enter().await);
        let mut newcomer = Box::pin(crowd.enter());
        assert!(timeout(Duration::from_millis(20), &mut newcomer).await.is_err(), "both places are taken");
        let request = first.busy();
        let going = async {
            second.asked_to_go().await;
            drop(second);
        };
        let (newcomer, ()) = timeout(SOON, async { tokio::join!(newcomer, going) }).await.expect("in time");
        drop(request);
        timeout(SOON, first.asked_to_go()).await.expect("its request is done");
        drop((first, newcomer));
        assert_eq!((counts(&crowd), crowd.lock().leaving), ((0, 0), 0));
    }

    #[tokio::test]
    async fn a_request_is_in_hand_until_its_answer_is_taken() {
        let crowd = Crowd::new(1);
        let only = crowd.enter().await;
        let answer = Answer::new(http_body_util::Full::new(bytes::Bytes::from_static(b"ok")), only.busy());
        let mut newcomer = Box::pin(crowd.enter());
        assert!(timeout(Duration::from_millis(20), &mut newcomer).await.is_err(), "nobody goes in the middle");
        assert!(!only.asked_to_go.is_cancelled());
        http_body_util::BodyExt::collect(answer).await.expect("all of it");
        let gone = async {
            only.asked_to_go().await;
            drop(only);
        };
        timeout(SOON, async { tokio::join!(gone, newcomer) }).await.expect("a place in time");
    }

    #[tokio::test]
    async fn when_all_are_served_a_newcomer_waits_for_the_first_that_falls_quiet() {
        let crowd = Crowd::new(1);
        let only = crowd.enter().await;
        let request = only.busy();
        let mut newcomer = Box::pin(crowd.enter());
        assert!(timeout(Duration::from_millis(20), &mut newcomer).await.is_err(), "nobody goes in the middle");
        drop(request);
        let gone = async {
            only.asked_to_go().await;
            drop(only);
        };
        let ((), newcomer) = timeout(SOON, async { tokio::join!(gone, newcomer) }).await.expect("a place in time");
        drop(newcomer);
    }
}
