//! What closed and may not have ended, and what may not be opened.

use super::*;

async fn open(places: &Arc<Places<()>>) -> (Place<()>, Opening<()>) {
    let taken = tokio::time::timeout(Duration::from_secs(5), places.acquire(|()| true)).await;
    let Some((place, Found::Opening(mut opening))) = taken.expect("a place in time") else { panic!("closed") };
    opening.connected();
    (place, opening)
}

#[tokio::test(start_paused = true)]
async fn what_the_server_still_shows_counts_until_it_does_not() {
    let places: Arc<Places<()>> = Places::new();
    places.resize(2, None, None);
    let (first, second) = (open(&places).await, open(&places).await);
    drop(first.1);
    drop(first.0);
    tokio::time::advance(Duration::from_millis(1)).await;
    // It goes on showing both, beat after beat, for longer than any guess.
    for _ in 0..8 {
        places.correct(places.status(), Instant::now(), 2);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(places.status().open, 2);
    }
    places.correct(places.status(), Instant::now(), 1);
    assert_eq!(places.status().open, 1, "sooner than the guess");
    drop((open(&places).await, second));
}

#[tokio::test(start_paused = true)]
async fn what_closed_after_the_question_is_no_part_of_the_answer() {
    let places: Arc<Places<()>> = Places::new();
    places.resize(1, None, None);
    let (place, opening) = open(&places).await;
    let (status, asked_at) = (places.status(), Instant::now());
    tokio::time::advance(Duration::from_millis(1)).await;
    drop(opening);
    drop(place);
    places.correct(status, asked_at, 1);
    assert_eq!(places.status().open, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_unless_the_control_connection_was_heard_of_just_now() {
    let places: Arc<Places<()>> = Places::new();
    places.resize(3, None, Some(Instant::now()));
    let first = open(&places).await;
    // As after a sleep: much may have happened meanwhile.
    tokio::time::advance(HEARD_FOR + Duration::from_millis(1)).await;
    let mut late = Box::pin(open(&places));
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut late).await;
    assert!(waited.is_err(), "nobody said that the share still stands");
    places.heard(Instant::now());
    let second = late.await;
    assert_eq!(places.status().open, 2);
    // Where nothing can be lost to others there is nothing to hear of.
    places.resize(3, None, None);
    tokio::time::advance(HEARD_FOR * 100).await;
    drop((first, second, open(&places).await));
}
