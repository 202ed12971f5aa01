//! What each event does, and what is noted of it. Harm that takes its time goes on while other things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use local_stack::StopMode;
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use sqlx::Connection;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ROLE;
use super::deck::{Deck, Event};
use super::harm::{Harm, HarmKind, Stopped};
use super::readiness::{Readiness, ask};
use super::shares::{Move, Observer, Shares};
use super::verdict::{Gone, Record};
use super::witness::Witness;
use crate::torture::system::{Service, System};

/// Instances that start at the same instant: more than there are places for arrivals.
const TOGETHER: usize = 6;
/// For shares to settle before a departure that is to be measured.
const SETTLED: Duration = Duration::from_secs(6);
/// How long to wait for harm to end, for the same.
const WORTHWHILE: Duration = Duration::from_millis(2_500);
/// For a share to move; far above every target.
const MOVED: Duration = Duration::from_secs(20);
/// For an instance to be ready, or to say why it is not, once nothing harms it any more.
const WELL: Duration = Duration::from_secs(30);
/// After this much quiet everything should be in use: a newcomer gets its part after a second.
const CALM_AFTER: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Longer than the time to live of a heartbeat, in milliseconds.
const BEYOND_LEASE: std::ops::Range<u64> = 5_500..8_000;
const SHORT: std::ops::Range<u64> = 100..2_500;
/// One that stops while it holds a lock of the whole server holds up every heartbeat: some leases run out then.
const STALL: std::ops::Range<u64> = 500..4_500;
const THROUGH_RESTART: std::ops::Range<u64> = 1_000..3_500;

pub(super) struct Course {
    pub(super) system: System,
    pub(super) witness: Witness,
    pub(super) record: Record,
    random: StdRng,
    deck: Deck,
    observer: Observer,
    harms: Vec<Harm>,
    hanging: JoinSet<anyhow::Result<()>>,
    stalls: JoinSet<()>,
    /// Until when anything hangs or stalls.
    hangs_until: Instant,
}

impl Course {
    pub(super) fn new(system: System, witness: Witness, random: StdRng) -> Self {
        let (deck, observer) = (Deck::default(), Observer::new());
        Self {
            system,
            witness,
            record: Record::default(),
            random,
            deck,
            observer,
            harms: Vec::new(),
            hanging: JoinSet::new(),
            stalls: JoinSet::new(),
            hangs_until: Instant::now(),
        }
    }

    /// Makes one event; gives its name, or nothing when there was nobody whom it could happen to.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<&'static str>> {
        self.pause(20..300).await;
        self.mend(Instant::now())?;
        let running = self.running()?;
        let event = match self.deck.draw(&mut self.random) {
            Event::Join | Event::JoinTogether if running.len() == self.count() => Event::Leave,
            _ if running.is_empty() => Event::Join,
            // Somebody stays.
            Event::Leave | Event::Kill if running.len() == 1 => Event::Join,
            event => event,
        };
        let name = self.make(event).await?;
        let running = self.running()?.len();
        if let Some(name) = name {
            self.record.happened(name, running);
        }
        Ok(name)
    }

    async fn make(&mut self, event: Event) -> anyhow::Result<Option<&'static str>> {
        match event {
            Event::Join => self.join(1),
            Event::JoinTogether => self.join(TOGETHER),
            Event::Leave => self.leave().await,
            Event::Kill => self.kill().await,
            Event::Freeze => self.harm(HarmKind::Frozen, SHORT),
            Event::Silence => self.harm(HarmKind::Silenced, SHORT),
            Event::FreezeBeyondLease => self.outlast(HarmKind::Frozen).await,
            Event::SilenceBeyondLease => self.outlast(HarmKind::Silenced).await,
            Event::Cut => self.cut(),
            Event::Hang => self.hang().await,
            Event::Stall => self.stall().await,
            Event::Restart(mode) => self.restart(mode).await,
        }
    }

    fn join(&mut self, together: usize) -> anyhow::Result<Option<&'static str>> {
        let stack = Arc::clone(&self.system.stack);
        for _ in 0..together {
            let running = self.running()?;
            let stopped: Vec<usize> = (0..self.count()).filter(|number| !running.contains(number)).collect();
            if let Some(number) = self.pick(&stopped) {
                self.service(number).start(&stack)?;
            }
        }
        Ok(Some(if together > 1 { "joined together" } else { "joined" }))
    }

    async fn leave(&mut self) -> anyhow::Result<Option<&'static str>> {
        let before = self.alone().await?;
        let Some((number, ready)) = self.answering().await? else { return self.kill().await };
        let stack = Arc::clone(&self.system.stack);
        self.service(number).terminate(&stack).await?;
        self.measure(Gone::Left, before.filter(|_| ready), Instant::now()).await?;
        Ok(Some("left"))
    }

    async fn kill(&mut self) -> anyhow::Result<Option<&'static str>> {
        let before = self.alone().await?;
        let Some((number, ready)) = self.victim().await? else { return Ok(None) };
        let stack = Arc::clone(&self.system.stack);
        let since = Instant::now();
        self.service(number).kill(&stack).await?;
        self.measure(Gone::Killed, before.filter(|_| ready), since).await?;
        Ok(Some("killed"))
    }

    /// In the background.
    fn harm(&mut self, kind: HarmKind, length: std::ops::Range<u64>) -> anyhow::Result<Option<&'static str>> {
        let unharmed = self.unharmed()?;
        let Some(number) = self.pick(&unharmed) else { return Ok(None) };
        self.begin(number, kind, length)?;
        Ok(Some(match kind {
            HarmKind::Frozen => "frozen",
            HarmKind::Silenced => "silenced",
        }))
    }

    /// Every other one in the background; the others until the share has moved.
    async fn outlast(&mut self, kind: HarmKind) -> anyhow::Result<Option<&'static str>> {
        let before = if self.random.random_bool(0.5) { self.alone().await? } else { None };
        let Some((number, ready)) = self.victim().await? else { return Ok(None) };
        let since = Instant::now();
        self.begin(number, kind, BEYOND_LEASE)?;
        let (gone, name) = match kind {
            HarmKind::Frozen => (Gone::Frozen, "frozen beyond its lease"),
            HarmKind::Silenced => (Gone::Silenced, "silenced beyond its lease"),
        };
        self.measure(gone, before.filter(|_| ready), since).await?;
        Ok(Some(name))
    }

    fn cut(&mut self) -> anyhow::Result<Option<&'static str>> {
        let unharmed = self.unharmed()?;
        let Some(number) = self.pick(&unharmed) else { return Ok(None) };
        self.service(number).database.cut();
        Ok(Some("cut off"))
    }

    /// In the background.
    async fn hang(&mut self) -> anyhow::Result<Option<&'static str>> {
        let length = Duration::from_millis(self.random.random_range(SHORT));
        let mut connection = self.system.database().await?;
        // One at a time; and one whose server was stopped has ended.
        self.hanging.shutdown().await;
        self.hanging.spawn(async move {
            let mut tx = connection.begin().await?;
            sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *tx).await?;
            sleep(length).await;
            Ok(tx.rollback().await?)
        });
        self.hangs_until = self.hangs_until.max(Instant::now() + length);
        Ok(Some("users locked"))
    }

    /// In the background.
    async fn stall(&mut self) -> anyhow::Result<Option<&'static str>> {
        let pools = self.observer.backends(&self.system).await?;
        if pools.is_empty() {
            return Ok(None);
        }
        let Some(stopped) = Stopped::new(&pools[self.random.random_range(0..pools.len())], ROLE) else {
            return Ok(None);
        };
        let length = Duration::from_millis(self.random.random_range(STALL));
        self.stalls.spawn(async move {
            sleep(length).await;
            drop(stopped);
        });
        self.hangs_until = self.hangs_until.max(Instant::now() + length);
        Ok(Some("backends frozen"))
    }

    async fn restart(&mut self, mode: StopMode) -> anyhow::Result<Option<&'static str>> {
        if self.random.random_bool(0.5) {
            // It sleeps through the restart, and wakes with rights that others have been given, though its lease still runs.
            self.harm(HarmKind::Frozen, THROUGH_RESTART)?;
        }
        let stack = Arc::clone(&self.system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.stop(mode)).await??;
        self.pause(20..800).await;
        let stack = Arc::clone(&self.system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.start()).await??;
        Ok(Some(match mode {
            StopMode::Fast => "PostgreSQL restarted",
            StopMode::Immediate => "PostgreSQL crashed",
        }))
    }

    /// The shares, if nothing else goes on.
    async fn alone(&mut self) -> anyhow::Result<Option<Shares>> {
        while let Some(last) = self.harmed_until() {
            let rest = last.saturating_duration_since(Instant::now());
            if rest > WORTHWHILE {
                return Ok(None);
            }
            sleep(rest).await;
            self.mend(Instant::now())?;
        }
        let running = self.running()?;
        let fed = self.fed(&running).await?;
        let before = self.observer.settled(&self.system, fed, SETTLED).await?;
        // A share moves to somebody.
        Ok(before.filter(|before| before.count() > 1))
    }

    async fn measure(&mut self, gone: Gone, before: Option<Shares>, since: Instant) -> anyhow::Result<()> {
        let moved = match before {
            Some(before) => self.observer.moved(&self.system, &before, since, MOVED).await?,
            None => Move::Blurred,
        };
        self.record.moved(gone, moved);
        Ok(())
    }

    /// Mends everything, waits until all is well, and then looks for a while whether everything is used.
    pub(super) async fn rest(&mut self) -> anyhow::Result<()> {
        while let Some(last) = self.harmed_until() {
            sleep(last.saturating_duration_since(Instant::now())).await;
            self.mend(Instant::now())?;
        }
        if let Err(what) = self.well().await? {
            self.record.unwell.push(what);
        }
        sleep(CALM_AFTER).await;
        self.witness.calm(true);
        sleep(CALM).await;
        self.witness.calm(false);
        Ok(())
    }

    /// Whether everybody is ready or says that there is no room, nobody who could be fed is turned away, and everything is
    /// granted; or who is not well.
    async fn well(&mut self) -> anyhow::Result<Result<(), String>> {
        let deadline = Instant::now() + WELL;
        loop {
            let running = self.running()?;
            let fed = self.fed(&running).await?;
            let mut readiness = Vec::new();
            for number in &running {
                readiness.push(ask(&self.service(*number).base()).await);
            }
            let ready = readiness.iter().filter(|one| **one == Readiness::Ready).count();
            let full = readiness.iter().filter(|one| **one == Readiness::NoRoom).count();
            let shares = self.observer.shares(&self.system).await?;
            if ready == fed && ready + full == running.len() && shares.count() == fed && shares.settled() {
                return Ok(Ok(()));
            }
            if Instant::now() > deadline {
                let all = running.iter().zip(readiness).map(|(number, one)| format!("{number}: {one}"));
                let all = all.collect::<Vec<_>>().join("; ");
                return Ok(Err(format!("not well after {WELL:?}: {fed} can be fed, {shares:?}; {all}")));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// How many of these the budget feeds.
    async fn fed(&mut self, running: &[usize]) -> anyhow::Result<usize> {
        let roles: BTreeSet<_> = running.iter().map(|number| self.service(*number).role).collect();
        let seats = self.observer.seats(&self.system).await?;
        // A seat is kept for each service that is not here.
        Ok(running.len().min(seats.saturating_sub(2 - roles.len())))
    }

    /// One that nothing harms, and whether it is ready.
    async fn victim(&mut self) -> anyhow::Result<Option<(usize, bool)>> {
        let unharmed = self.unharmed()?;
        let Some(number) = self.pick(&unharmed) else { return Ok(None) };
        let ready = ask(&self.service(number).base()).await == Readiness::Ready;
        Ok(Some((number, ready)))
    }

    /// The same of those that have come so far that SIGTERM means what it should.
    async fn answering(&mut self) -> anyhow::Result<Option<(usize, bool)>> {
        let mut answering = BTreeMap::new();
        for number in self.unharmed()? {
            let readiness = ask(&self.service(number).base()).await;
            if readiness != Readiness::Silent {
                answering.insert(number, readiness == Readiness::Ready);
            }
        }
        let numbers: Vec<usize> = answering.keys().copied().collect();
        Ok(self.pick(&numbers).map(|number| (number, answering[&number])))
    }

    fn begin(&mut self, number: usize, kind: HarmKind, length: std::ops::Range<u64>) -> anyhow::Result<()> {
        let ends_at = Instant::now() + Duration::from_millis(self.random.random_range(length));
        match kind {
            HarmKind::Frozen => self.service(number).signal(Signal::STOP)?,
            HarmKind::Silenced => self.service(number).database.silence(),
        }
        self.harms.push(Harm { number, kind, ends_at });
        Ok(())
    }

    /// Ends what has gone on for long enough.
    fn mend(&mut self, now: Instant) -> anyhow::Result<()> {
        let (over, harms) = std::mem::take(&mut self.harms).into_iter().partition(|harm| harm.ends_at <= now);
        self.harms = harms;
        for Harm { number, kind, .. } in over {
            let cut = self.random.random_bool(0.5);
            let service = self.service(number);
            match kind {
                HarmKind::Frozen => service.signal(Signal::CONT)?,
                HarmKind::Silenced => {
                    if cut {
                        service.database.cut();
                    }
                    // Otherwise what was held back arrives now.
                    service.database.open();
                }
            }
        }
        Ok(())
    }

    fn harmed_until(&self) -> Option<Instant> {
        let hanging = Some(self.hangs_until).filter(|until| *until > Instant::now());
        self.harms.iter().map(|harm| harm.ends_at).chain(hanging).max()
    }

    fn count(&self) -> usize {
        self.system.apis.len() + self.system.workers.len()
    }

    fn service(&mut self, number: usize) -> &mut Service {
        let apis = self.system.apis.len();
        if number < apis { &mut self.system.apis[number] } else { &mut self.system.workers[number - apis] }
    }

    fn running(&mut self) -> anyhow::Result<Vec<usize>> {
        let mut running = Vec::new();
        for number in 0..self.count() {
            if self.service(number).running()? {
                running.push(number);
            }
        }
        Ok(running)
    }

    fn unharmed(&mut self) -> anyhow::Result<Vec<usize>> {
        let mut unharmed = self.running()?;
        unharmed.retain(|number| self.harms.iter().all(|harm| harm.number != *number));
        Ok(unharmed)
    }

    fn pick(&mut self, numbers: &[usize]) -> Option<usize> {
        if numbers.is_empty() { None } else { Some(numbers[self.random.random_range(0..numbers.len())]) }
    }

    async fn pause(&mut self, milliseconds: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(milliseconds))).await;
    }
}
