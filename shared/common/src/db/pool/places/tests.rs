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
async fn what_should_have_ended_counts_again_when_the_server_still_shows_it() {
    let places: Arc<Places<()>> = Places::new();
    places.resize(2, None, Some(Heard { at: Instant::now(), counts: Duration::from_secs(5) }));
    let (place, opening) = open(&places).await;
    drop((place, opening));
    // Nor is it forgotten while this instance is none.
    places.resize(0, None, None);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(places.status().open, 0, "as it seems");
    places.correct(places.status(), Instant::now(), 1);
    assert_eq!(places.status().open, 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_server_shows_before_it_is_open_here_counts_once() {
    let places: Arc<Places<()>> = Places::new();
    places.resize(2, None, Some(Heard { at: Instant::now(), counts: Duration::from_secs(5) }));
    let closed = open(&places).await;
    drop(closed);
    tokio::time::advance(Duration::from_secs(1)).await;
    places.correct(places.status(), Instant::now(), 0);
    let mut taken = Vec::new();
    for _ in 0..2 {
        let Some((place, Found::Opening(opening))) = places.acquire(|()| true).await else { panic!("closed") };
        taken.push((place, opening));
    }
    // The server has let both in, and this side is about to learn of it.
    places.correct(places.status(), Instant::now(), 2);
    assert_eq!(places.status().open, 2);
    let mut kept = Vec::new();
    for (place, mut opening) in taken {
        opening.connected();
        assert!(!places.exceeded(), "it may be used");
        place.put_back(());
        kept.push(opening);
    }
    assert_eq!(places.status().idle, 2, "and kept");
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
    let counts = Duration::from_millis(150);
    places.resize(3, None, Some(Heard { at: Instant::now(), counts }));
    let first = open(&places).await;
    // As after a sleep: much may have happened meanwhile.
    tokio::time::advance(counts + Duration::from_millis(1)).await;
    let mut late = Box::pin(open(&places));
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut late).await;
    assert!(waited.is_err(), "nobody said that the share still stands");
    places.heard(Heard { at: Instant::now(), counts });
    let second = late.await;
    assert_eq!(places.status().open, 2);
    // Where nothing can be lost to others there is nothing to hear of.
    places.resize(3, None, None);
    tokio::time::advance(counts * 100).await;
    drop((first, second, open(&places).await));
}

#[tokio::test(start_paused = true)]
async fn what_is_being_opened_is_given_up_when_the_control_connection_falls_silent() {
    let places: Arc<Places<()>> = Places::new();
    let counts = Duration::from_millis(150);
    let silent_for = async |heard_twice: bool| {
        let began = Instant::now();
        places.resize(1, None, Some(Heard { at: began, counts }));
        let hearing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if heard_twice {
                places.heard(Heard { at: Instant::now(), counts });
            }
        };
        tokio::join!(places.forsaken(), hearing);
        began.elapsed()
    };
    assert_eq!(silent_for(false).await, counts + UNDER_WAY);
    assert_eq!(silent_for(true).await, counts + UNDER_WAY + Duration::from_millis(100));
    places.resize(1, None, None);
    let never = tokio::time::timeout(Duration::from_hours(1), places.forsaken()).await;
    assert!(never.is_err(), "nothing can be lost");
}
