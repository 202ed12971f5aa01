use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};

use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

async fn several<const N: usize>(limiter: &ConnectionLimiter) -> [Arc<ConnectionSlot>; N] {
    let mut slots = Vec::new();
    for _ in 0..N {
        slots.push(limiter.enter(HERE).await);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    slots.try_into().expect("as many")
}

fn evicted(slot: &ConnectionSlot) -> bool {
    slot.evicted().now_or_never().is_some()
}

fn is_empty(limiter: &ConnectionLimiter) -> bool {
    let registry = limiter.lock();
    let Count { regular, reserved, leaving, .. } = registry.total;
    (regular, reserved, leaving, registry.waiting) == (0, 0, 0, 0) && registry.networks.is_empty()
}

#[tokio::test(start_paused = true)]
async fn longest_idle_connection_is_evicted_for_a_new_one() {
    let limiter = ConnectionLimiter::new(3, None);
    let [working, idle, used] = several(&limiter).await;
    let request = RequestGuard::new(&working);
    drop(RequestGuard::new(&used));
    let newcomer = limiter.enter(HERE).await;
    assert!(newcomer.is_reserved() && evicted(&idle) && !evicted(&used) && !evicted(&working));
    let promoted = async { newcomer.promoted().await };
    let going = async { drop(idle) };
    assert!(tokio::join!(promoted, going).0, "the slot of the evicted one");
    assert!(!newcomer.is_reserved());
    drop((request, working, used, newcomer));
    assert!(is_empty(&limiter));
}

#[tokio::test(start_paused = true)]
async fn connection_that_was_evicted_is_not_promoted() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let request = RequestGuard::new(&only);
    let reserved: [_; RESERVED] = several(&limiter).await;
    assert!(limiter.try_enter(HERE).is_none() && evicted(&reserved[0]));
    drop((request, only));
    assert!(!reserved[0].promoted().await && reserved[1].promoted().await);
    drop(reserved);
    assert!(is_empty(&limiter));
}

#[tokio::test(start_paused = true)]
async fn request_in_time_keeps_an_evicted_connection_and_another_one_goes() {
    let limiter = ConnectionLimiter::new(2, None);
    let [first, second] = several(&limiter).await;
    let newcomer = limiter.enter(HERE).await;
    assert!(evicted(&first));
    let request = RequestGuard::new(&first);
    assert!(!evicted(&first) && !evicted(&second));
    let guard = RequestGuard::new(&newcomer);
    let going = async {
        second.evicted().await;
        drop(second);
    };
    assert!(tokio::join!(newcomer.promoted(), going).0);
    drop((request, guard, first, newcomer));
    assert!(is_empty(&limiter));
}

/// Each state in which the client is waited for.
#[tokio::test(start_paused = true)]
async fn connection_can_be_evicted_whenever_its_client_is_waited_for() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let request = RequestGuard::new(&only);
    let busy = || limiter.lock().candidates(Scope::Regular).is_empty();
    assert!(busy(), "worked on");
    only.awaits_body(true);
    assert!(!busy(), "its body is awaited");
    only.awaits_body(false);
    assert!(busy(), "worked on again");
    only.answer_unread(true);
    assert!(busy(), "its answer is being read");
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(!busy(), "its answer is not read");
    only.answer_unread(false);
    assert!(busy(), "more of the answer is made");
    drop(request);
    assert!(!busy(), "idle");
}

#[tokio::test(start_paused = true)]
async fn body_that_arrives_in_time_keeps_an_evicted_connection() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let request = RequestGuard::new(&only);
    only.awaits_body(true);
    let newcomer = limiter.enter(HERE).await;
    assert!(evicted(&only));
    only.awaits_body(false);
    assert!(!evicted(&only));
    assert!(only.released(Instant::now()).now_or_never().is_none(), "it is not cut off while it is worked on");
    drop((request, only, newcomer));
    assert!(is_empty(&limiter));
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_its_answer_is_evicted_last_and_may_read_on() {
    let limiter = ConnectionLimiter::new(2, None);
    let [reader, idle] = several(&limiter).await;
    reader.answer_unread(true);
    let first = limiter.enter(HERE).await;
    assert!(evicted(&idle) && !evicted(&reader));
    drop(idle);
    assert!(first.promoted().await);
    let request = RequestGuard::new(&first);
    let second = limiter.enter(HERE).await;
    assert!(evicted(&reader), "there is no other");
    let evicted_at = Instant::now();
    let mut released = Box::pin(reader.released(evicted_at));
    for _ in 0..4 {
        assert!(timeout(Duration::from_secs(4), &mut released).await.is_err(), "it takes some of it");
        reader.answer_unread(false);
        reader.answer_unread(true);
    }
    released.await;
    assert!(evicted_at.elapsed() >= Duration::from_secs(20), "cut off when it takes no more");
    drop((request, reader, first, second));
    assert!(is_empty(&limiter));
}

#[tokio::test(start_paused = true)]
async fn request_is_in_hand_until_its_answer_is_taken() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let answer = GuardedBody::new(Full::new(bytes::Bytes::from_static(b"ok")), RequestGuard::new(&only));
    assert!(only.idle_period().is_none());
    answer.collect().await.expect("all of it");
    assert!(only.idle_period().is_some());
}

#[tokio::test(start_paused = true)]
async fn request_waits_for_the_first_slot_that_comes_free() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let request = RequestGuard::new(&only);
    let newcomer = limiter.enter(HERE).await;
    let mut promoted = Box::pin(newcomer.promoted());
    assert!(timeout(Duration::from_secs(1), &mut promoted).await.is_err(), "the service works for the other");
    drop(request);
    let going = async {
        only.evicted().await;
        drop(only);
    };
    assert!(tokio::join!(promoted, going).0);
    drop(newcomer);
    assert!(is_empty(&limiter));
}

#[tokio::test(start_paused = true)]
async fn request_does_not_wait_for_ever_nor_in_the_way_of_probes() {
    let limiter = ConnectionLimiter::new(1, None);
    let only = limiter.enter(HERE).await;
    let _request = RequestGuard::new(&only);
    let impatient = limiter.enter(HERE).await;
    assert!(!impatient.promoted().await, "none came free");
    let mut slots = vec![impatient];
    while slots.len() < RESERVED {
        slots.push(limiter.enter(HERE).await);
    }
    let requests: Vec<_> = slots.iter().map(RequestGuard::new).collect();
    let mut waiting: Vec<_> = slots.iter().map(|slot| Box::pin(slot.promoted())).collect();
    for promoted in &mut waiting {
        assert!(promoted.as_mut().now_or_never().is_none());
    }
    let mut probe = Box::pin(limiter.enter(HERE));
    assert!(probe.as_mut().now_or_never().is_none(), "all reserved slots are in use");
    let ended = waiting.iter_mut().filter_map(|promoted| promoted.as_mut().now_or_never());
    assert_eq!(ended.collect::<Vec<_>>(), [false], "one request ends for it");
    drop(waiting);
    drop((requests, slots));
    assert!(probe.await.is_reserved());
}

#[tokio::test(start_paused = true)]
async fn one_address_does_not_take_the_slots_of_others() {
    let limiter = ConnectionLimiter::new(4, Some(2));
    let other = limiter.enter(THERE).await;
    tokio::time::advance(Duration::from_millis(1)).await;
    let [first, second] = several(&limiter).await;
    let third = limiter.enter(HERE).await;
    assert!(third.is_reserved() && evicted(&first), "its own longest idle one");
    assert!(!evicted(&other) && !evicted(&second));
    let another = limiter.enter(THERE).await;
    assert!(!another.is_reserved(), "there is a slot for others");
    drop((first, second, third, other, another));
    assert!(is_empty(&limiter));
}

#[test]
fn ipv6_subscriber_is_one_client() {
    let network = |text: &str| client_network(text.parse().expect("an address")).to_string();
    assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    assert_eq!(network("192.0.2.1"), "192.0.2.1");
}
