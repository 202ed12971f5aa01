//! The instances around the modelled server, what can happen to them, and what must hold at every moment.

use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};

use super::event::{Event, INSTANCES};
use super::model::{Claim, Fault, GRACE, Lock, Server};

/// By the server's clock and by the instance's own.
const TIME_TO_LIVE: i64 = 20;
const LEASE: i64 = 16;
/// For how long an answer allows to open connections.
const HEARD_FOR: i64 = 4;
/// For how long a connection may be under way after that.
const UNDER_WAY: i64 = GRACE - HEARD_FOR;
/// Until an instance gets more than its floor.
const AGE: i64 = 4;

#[derive(Debug, Clone, Default)]
struct Instance {
    epoch: Option<i64>,
    /// What its pool obeys, and until when.
    size: i64,
    until: i64,
    /// What its pool has open.
    open: i64,
    opening: i64,
    demand: i64,
    frozen: bool,
    /// Its control connection is gone, and it does not know.
    cut: bool,
    /// When the question was asked that was answered last.
    heard_at: i64,
    /// By the server's clock.
    expires_at: i64,
    joined_at: i64,
    asked: Option<(i64, i64)>,
    answered: Option<(i64, Option<(i64, i64)>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    server: Server,
    fault: Fault,
    now: i64,
    instances: Vec<Instance>,
    /// What the server really has, whatever a faulty protocol believes.
    sessions: Vec<i64>,
    locks: Vec<Lock>,
}

impl World {
    pub(crate) fn new(budget: i64, fault: Fault) -> Self {
        Self {
            server: Server::new(budget, fault),
            fault,
            now: 0,
            instances: vec![Instance::default(); INSTANCES],
            sessions: vec![0; INSTANCES],
            locks: Vec::new(),
        }
    }

    fn claim(instance: usize) -> Claim {
        let (service, weight) = if instance.is_multiple_of(3) { ("worker", 2) } else { ("api", 1) };
        // One of them has a bound of its own.
        Claim { service, weight, most: if instance == 1 { 3 } else { 50 } }
    }

    /// Lets one thing happen, if it can, and checks what must always hold.
    pub(crate) fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        self.happen(event);
        self.always()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(length) => (0..length).for_each(|_| self.tick()),
            Event::Join(i) => self.join(i),
            Event::Ask(i) => {
                let (now, instance) = (self.now, &mut self.instances[i]);
                if !instance.frozen
                    && instance.epoch.is_some()
                    && !instance.cut
                    && instance.asked.is_none()
                    && instance.answered.is_none()
                {
                    instance.asked = Some((now, instance.size.max(instance.open + instance.opening)));
                }
            }
            Event::Serve(i) => self.serve(i),
            Event::Hear(i) => self.hear(i),
            Event::Beat(i) => {
                for event in [Event::Ask(i), Event::Serve(i), Event::Hear(i)] {
                    self.happen(event);
                }
            }
            Event::Open(i) => {
                let instance = &mut self.instances[i];
                let valid = self.now < instance.until;
                let heard = self.now < instance.heard_at + HEARD_FOR || self.fault == Fault::OpensUnheard;
                let may = valid && heard || self.fault == Fault::IgnoresItsOwnClock;
                if !instance.frozen && may && instance.open + instance.opening < instance.size {
                    instance.opening += 1;
                }
            }
            Event::Show(i) => {
                let instance = &mut self.instances[i];
                let patient = Self::patient(self.fault);
                if !instance.frozen && instance.opening > 0 {
                    instance.opening -= 1;
                    // One too many is closed before it is used.
                    if instance.open < instance.size && self.now < instance.until || patient {
                        instance.open += 1;
                        self.sessions[i] += 1;
                    }
                }
            }
            Event::Close(i) => self.close(i),
            Event::Want(i, demand) => self.instances[i].demand = demand,
            Event::Leave(i) => {
                self.notice(i);
                while self.instances[i].open > 0 && !self.instances[i].frozen {
                    self.close(i);
                }
                if !self.instances[i].frozen && self.instances[i].epoch.is_some() {
                    self.observe();
                    self.server.leave(i);
                    self.note_locks();
                    self.instances[i] = Instance::default();
                }
            }
            Event::Kill(i) => {
                if let Some(row) = self.server.row_mut(i) {
                    row.connected = false;
                }
                self.instances[i] = Instance::default();
            }
            Event::Cut(i) => self.cut(i),
            Event::Notice(i) => self.notice(i),
            Event::Restart => (0..INSTANCES).for_each(|i| self.cut(i)),
            Event::Freeze(i) => self.instances[i].frozen = true,
            Event::Thaw(i) => {
                self.instances[i].frozen = false;
                self.give_up(i);
            }
            Event::End(i) => {
                // Of living members only the instance itself closes sessions.
                if self.instances[i].open < self.sessions[i] {
                    self.sessions[i] -= 1;
                }
            }
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        self.server.now = self.now;
        for (i, instance) in self.instances.iter_mut().enumerate() {
            if let Some(row) = self.server.row_mut(i) {
                row.expired |= instance.expires_at <= self.now;
                row.aged |= instance.joined_at + AGE <= self.now;
            }
            // Before anybody else can believe that it is gone.
            if !instance.frozen && self.now >= instance.until && self.fault != Fault::IgnoresItsOwnClock {
                (instance.size, instance.open) = (0, 0);
                self.sessions[i] = 0;
            }
        }
        (0..INSTANCES).for_each(|i| self.give_up(i));
    }

    fn patient(fault: Fault) -> bool {
        matches!(fault, Fault::WaitsForConnects | Fault::OpensUnheard | Fault::IgnoresItsOwnClock)
    }

    /// What is under way for too long, without a word over the control connection.
    fn give_up(&mut self, i: usize) {
        let instance = &mut self.instances[i];
        let forsaken = self.now >= instance.heard_at + HEARD_FOR + UNDER_WAY;
        let patient = Self::patient(self.fault);
        if !instance.frozen && forsaken && !patient {
            instance.opening = 0;
        }
    }

    fn join(&mut self, i: usize) {
        if self.instances[i].frozen || self.instances[i].epoch.is_some() {
            return;
        }
        self.observe();
        let rows = self.reapable();
        let fresh = self.server.row(i).is_none();
        if self.server.join(i, Self::claim(i)) {
            let (expires_at, joined_at) = (self.now + TIME_TO_LIVE, self.now);
            let epoch = self.server.row(i).map(|row| row.epoch);
            let instance = &mut self.instances[i];
            (instance.epoch, instance.expires_at) = (epoch, expires_at);
            if fresh {
                instance.joined_at = joined_at;
            }
        }
        self.note_locks();
        self.terminate(&rows);
    }

    /// The server sees the ends at once, the instance does not.
    fn cut(&mut self, i: usize) {
        let instance = &mut self.instances[i];
        instance.open = 0;
        self.sessions[i] = 0;
        if instance.epoch.is_some() {
            instance.cut = true;
            (instance.asked, instance.answered) = (None, None);
            if let Some(row) = self.server.row_mut(i) {
                row.connected = false;
            }
        }
    }

    /// It holds what it has open, and joins again.
    fn notice(&mut self, i: usize) {
        let instance = &mut self.instances[i];
        if !instance.frozen && instance.cut {
            (instance.cut, instance.epoch) = (false, None);
            instance.size = instance.open + instance.opening;
        }
    }

    fn serve(&mut self, i: usize) {
        let Some((asked_at, held)) = self.instances[i].asked.take() else { return };
        let Some(epoch) = self.instances[i].epoch else { return };
        self.observe();
        let rows = self.reapable();
        let answer = self.server.beat(i, epoch, held, self.instances[i].demand);
        self.note_locks();
        self.terminate(&rows);
        if answer.is_some() {
            self.instances[i].expires_at = self.now + TIME_TO_LIVE;
        }
        self.instances[i].answered = Some((asked_at, answer));
    }

    fn hear(&mut self, i: usize) {
        let instance = &mut self.instances[i];
        if instance.frozen {
            return;
        }
        let Some((asked_at, answer)) = instance.answered.take() else { return };
        if let Some((granted, target)) = answer {
            (instance.size, instance.until, instance.heard_at) = (granted.min(target), asked_at + LEASE, asked_at);
            if self.now >= instance.until && self.fault != Fault::IgnoresItsOwnClock {
                instance.size = 0;
            }
        } else {
            (instance.size, instance.epoch) = (0, None);
        }
        // Idle connections close at once; here every other one is idle.
        while self.instances[i].open > self.instances[i].size && self.instances[i].open % 2 == 0 {
            self.close(i);
        }
    }

    fn close(&mut self, i: usize) {
        if !self.instances[i].frozen && self.instances[i].open > 0 {
            self.instances[i].open -= 1;
            self.sessions[i] = self.sessions[i].saturating_sub(1);
        }
    }

    /// Those that the next transaction reaps, if it looks.
    fn reapable(&self) -> Vec<(usize, i64)> {
        let gone = self.server.rows.iter().filter(|row| self.server.is_gone(row) || !row.connected);
        gone.map(|row| (row.instance, row.epoch)).collect()
    }

    /// The connections of those that were reaped are dead, though their sessions may take a while to end.
    fn terminate(&mut self, rows: &[(usize, i64)]) {
        for (i, epoch) in rows {
            if self.server.row(*i).is_none_or(|row| row.epoch != *epoch) {
                self.instances[*i].open = 0;
            }
        }
    }

    fn observe(&mut self) {
        self.server.sessions.clone_from(&self.sessions);
    }

    fn note_locks(&mut self) {
        self.locks = std::mem::take(&mut self.server.locks);
    }

    fn always(&mut self) -> Result<(), TestCaseError> {
        // One lock order: nobody who has a row asks for the budget.
        if let Some(first) = self.locks.iter().position(|lock| matches!(lock, Lock::Row(_))) {
            prop_assert!(!self.locks[first..].contains(&Lock::Budget), "{:?}", self.locks);
        }
        self.observe();
        let taken = self.server.taken();
        prop_assert!(taken <= self.server.budget, "{taken} of {}: {self:#?}", self.server.budget);
        for row in &self.server.rows {
            let instance = &self.instances[row.instance];
            let ours = instance.epoch == Some(row.epoch) && !row.expired;
            // What was left behind by an earlier membership is the server's to end.
            prop_assert!(!ours || instance.open <= row.granted, "open without a grant: {self:#?}");
        }
        Ok(())
    }

    /// Everybody who is not dead beats again and again; what must hold in the end.
    pub(crate) fn settle(mut self) -> Result<(), TestCaseError> {
        for round in 0..12 {
            if round % 2 == 0 {
                self.step(Event::Tick(AGE))?;
            }
            for i in 0..INSTANCES {
                self.step(Event::Thaw(i))?;
                self.step(Event::Notice(i))?;
                while self.instances[i].opening > 0 {
                    self.step(Event::Show(i))?;
                }
                while self.instances[i].open < self.sessions[i] {
                    self.step(Event::End(i))?;
                }
                for event in [Event::Serve(i), Event::Hear(i), Event::Ask(i), Event::Serve(i), Event::Hear(i)] {
                    self.step(event)?;
                }
                while self.instances[i].open > self.instances[i].size {
                    self.step(Event::Close(i))?;
                }
            }
        }
        let shares = |world: &Self| -> Vec<(usize, i64)> {
            world.server.rows.iter().map(|row| (row.instance, row.target)).collect()
        };
        let before = shares(&self);
        for i in 0..INSTANCES {
            for event in [Event::Ask(i), Event::Serve(i), Event::Hear(i)] {
                self.step(event)?;
            }
        }
        if self.instances.iter().all(|instance| instance.epoch.is_none()) {
            // Nobody is left to look after the rows of the dead.
            return Ok(());
        }
        prop_assert_eq!(before, shares(&self), "settled shares move");
        let places = self.server.places();
        let most: i64 = self.server.rows.iter().map(|row| row.most).sum();
        let targets: i64 = self.server.rows.iter().map(|row| row.target).sum();
        prop_assert_eq!(targets, places.min(most), "places are wasted: {:#?}", self.server.rows);
        for row in &self.server.rows {
            prop_assert_eq!(row.granted, row.target, "not granted: {:#?}", self.server.rows);
            prop_assert!(row.target >= row.floor, "below the floor: {:#?}", self.server.rows);
            let waits = row.demand > row.target && row.target < row.most;
            prop_assert!(!waits || !self.server.something_for(row), "waits in vain: {:#?}", self.server.rows);
        }
        Ok(())
    }
}
