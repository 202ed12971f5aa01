//! What closed and may not have ended.

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
    places.resize(2, None);
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
    places.resize(1, None);
    let (place, opening) = open(&places).await;
    let (status, asked_at) = (places.status(), Instant::now());
    tokio::time::advance(Duration::from_millis(1)).await;
    drop(opening);
    drop(place);
    places.correct(status, asked_at, 1);
    assert_eq!(places.status().open, 1);
}
