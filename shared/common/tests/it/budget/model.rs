//! The lease protocol of `migrations/0003` as a state machine: the server's half, one function for one of SQL's, with the
//! faults that it could have.

use std::cmp::Ordering;

/// A fault of the protocol. The properties must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// A heartbeat takes its own row before the budget.
    RowsBeforeBudget,
    /// A share grows as soon as it is due, and not when there is room.
    GrowsBeforeOthersShrink,
    /// What an instance had is free when its heartbeat is too old, whatever its sessions do.
    FreesByTheClockAlone,
    /// A share shrinks when it is due, and not when the pool says that it did.
    ShrinksUnasked,
    /// Whoever has a seat joins, whether or not there is room for its control connection.
    JoinsWithoutRoom,
    /// Shares follow what is wanted, however little that leaves to others.
    NoFloors,
    /// Shares follow demand down at once.
    NothingIsKept,
    /// The instance goes on opening whatever its own clock says.
    IgnoresItsOwnClock,
    /// Others get a share as soon as its control connection is seen to be gone.
    FreesAtOnce,
    /// The instance opens connections although it has not heard of its control connection lately.
    OpensUnheard,
    /// What is being opened is not given up, however long it takes.
    WaitsForConnects,
}

/// How long after its control connection was seen to be gone an instance counts as gone.
pub(crate) const GRACE: i64 = 6;

/// What a transaction locks, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Budget,
    Row(usize),
}

/// One row of `members`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "as in the table, or what the database would find out of its columns"
)]
pub(crate) struct Row {
    pub(crate) instance: usize,
    pub(crate) epoch: i64,
    pub(crate) service: &'static str,
    pub(crate) weight: i64,
    pub(crate) floor: i64,
    pub(crate) most: i64,
    pub(crate) settled: bool,
    pub(crate) target: i64,
    pub(crate) granted: i64,
    pub(crate) demand: i64,
    /// Joined a second ago.
    pub(crate) aged: bool,
    /// Its heartbeat is too old.
    pub(crate) expired: bool,
    /// Its control connection is open.
    pub(crate) connected: bool,
    /// When that was found not to be so.
    pub(crate) lost_at: Option<i64>,
}

/// What an instance asks for when it joins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) service: &'static str,
    pub(crate) weight: i64,
    pub(crate) most: i64,
}

/// Of every claim.
pub(crate) const FLOOR: i64 = 1;

/// The database: the rows in the order of their epochs, and the sessions of each pool as it sees them.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) now: i64,
    pub(crate) budget: i64,
    pub(crate) rows: Vec<Row>,
    pub(crate) sessions: Vec<i64>,
    /// What the last transaction locked.
    pub(crate) locks: Vec<Lock>,
    epochs: i64,
    fault: Fault,
}

impl Server {
    pub(crate) fn new(budget: i64, fault: Fault) -> Self {
        Self { now: 0, budget, rows: Vec::new(), sessions: Vec::new(), locks: Vec::new(), epochs: 0, fault }
    }

    pub(crate) fn row(&self, instance: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.instance == instance)
    }

    pub(crate) fn row_mut(&mut self, instance: usize) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.instance == instance)
    }

    pub(crate) fn arrival_places(&self) -> i64 {
        (self.budget / 24).clamp(2, 8)
    }

    pub(crate) fn kept(&self, demand: i64) -> i64 {
        if self.fault == Fault::NothingIsKept { demand } else { demand + (demand / 4).max(1) }
    }

    /// What the pools may have together.
    pub(crate) fn places(&self) -> i64 {
        self.budget - self.arrival_places() - count(self.rows.len())
    }

    fn seen(&self, instance: usize) -> i64 {
        self.sessions.get(instance).copied().unwrap_or_default()
    }

    /// `taken_connections`.
    pub(crate) fn taken(&self) -> i64 {
        let members: i64 = self.rows.iter().map(|row| 1 + row.granted.max(self.seen(row.instance))).sum();
        let strangers = self.sessions.iter().enumerate().filter(|(instance, _)| self.row(*instance).is_none());
        members + strangers.map(|(_, sessions)| sessions).sum::<i64>()
    }

    /// `join_membership`: whether it joined.
    pub(crate) fn join(&mut self, instance: usize, claim: Claim) -> bool {
        self.locks = vec![Lock::Budget];
        if let Some(row) = self.row_mut(instance).filter(|row| !row.expired) {
            (row.connected, row.lost_at) = (true, None);
        }
        self.note_lost();
        if self.reap() {
            self.redistribute();
        }
        let others = self.rows.iter().filter(|row| row.instance != instance);
        let seats: i64 = others.map(|row| 1 + row.floor.min(row.most)).sum();
        let absent = ["api", "worker"]
            .iter()
            .filter(|needed| **needed != claim.service && self.rows.iter().all(|row| row.service != **needed));
        let seats = seats + 2 * count(absent.count());
        if seats + 1 + FLOOR + self.arrival_places() > self.budget {
            return false;
        }
        let room = self.fault == Fault::JoinsWithoutRoom || self.taken() < self.budget;
        if !room && self.row(instance).is_none() {
            return false;
        }
        self.epochs += 1;
        let epoch = self.epochs;
        match self.row_mut(instance) {
            Some(row) => {
                row.epoch = epoch;
                (row.connected, row.lost_at) = (true, None);
                row.expired = false;
            }
            None => self.rows.push(Row {
                instance,
                epoch,
                service: claim.service,
                weight: claim.weight,
                floor: FLOOR,
                most: claim.most,
                settled: false,
                target: 0,
                granted: 0,
                demand: 0,
                aged: false,
                expired: false,
                connected: true,
                lost_at: None,
            }),
        }
        self.rows.sort_by_key(|row| row.epoch);
        self.redistribute();
        true
    }

    /// `beat_membership`: what is granted and what shall be, unless it was reaped.
    pub(crate) fn beat(&mut self, instance: usize, epoch: i64, held: i64, demand: i64) -> Option<(i64, i64)> {
        let reverse = self.fault == Fault::RowsBeforeBudget;
        self.locks = if reverse { vec![Lock::Row(instance)] } else { Vec::new() };
        let me = self.row(instance).filter(|row| row.epoch == epoch)?.clone();
        let gone = self.rows.iter().any(|row| row.instance != instance && self.is_gone(row));
        let lost = self.rows.iter().any(|row| row.instance != instance && !row.connected && row.lost_at.is_none());
        let came_of_age = !me.settled && me.aged;
        let unfair = me.settled && demand > me.target && me.target < me.most && self.something_for(&me);
        let mut reaped = false;
        if gone || lost || came_of_age || unfair || me.granted != me.target {
            self.locks.push(Lock::Budget);
            self.note_lost();
            reaped = self.reap();
        }
        self.locks.push(Lock::Row(instance));
        let unasked = self.fault == Fault::ShrinksUnasked;
        let alive = self.row_mut(instance).filter(|row| row.epoch == epoch && !row.expired);
        let found = alive.is_some();
        if let Some(row) = alive {
            row.settled |= came_of_age;
            let floor = row.target.min(row.granted);
            row.granted = if unasked { floor } else { floor.max(row.granted.min(held)) };
            row.demand = demand;
        }
        if reaped {
            self.redistribute();
        } else if came_of_age || unfair {
            self.share();
            self.grant();
        } else if me.granted != me.target {
            self.grant();
        }
        let row = self.row(instance).filter(|row| found && row.epoch == epoch)?;
        Some((row.granted, row.target))
    }

    /// Whether somebody who waits could have more.
    pub(crate) fn something_for(&self, me: &Row) -> bool {
        let targets: i64 = self.rows.iter().map(|row| row.target).sum();
        let unfair = |row: &Row| {
            row.target > row.floor
                && (self.kept(row.demand) < row.target
                    || level(row.target, row.weight) > level(me.target + 1, me.weight))
        };
        targets < self.places() || self.rows.iter().any(|row| row.instance != me.instance && unfair(row))
    }

    /// `leave_membership`.
    pub(crate) fn leave(&mut self, instance: usize) {
        self.locks = vec![Lock::Budget];
        self.rows.retain(|row| row.instance != instance);
        self.redistribute();
    }

    /// `gone_members`.
    pub(crate) fn is_gone(&self, row: &Row) -> bool {
        let grace = if self.fault == Fault::FreesAtOnce { 0 } else { GRACE };
        row.expired || row.lost_at.is_some_and(|lost_at| lost_at + grace <= self.now)
    }

    /// `note_lost_members`.
    fn note_lost(&mut self) {
        for row in self.rows.iter_mut().filter(|row| !row.connected && row.lost_at.is_none()) {
            self.locks.push(Lock::Row(row.instance));
            row.lost_at = Some(self.now);
        }
    }

    /// `reap_members`. What becomes of the sessions is the world's to say.
    fn reap(&mut self) -> bool {
        let gone: Vec<usize> = self.rows.iter().filter(|row| self.is_gone(row)).map(|row| row.instance).collect();
        if gone.is_empty() {
            return false;
        }
        self.locks.extend(gone.iter().map(|instance| Lock::Row(*instance)));
        if self.fault == Fault::FreesByTheClockAlone {
            for (instance, sessions) in self.sessions.iter_mut().enumerate() {
                *sessions *= i64::from(!gone.contains(&instance));
            }
        }
        self.rows.retain(|row| !gone.contains(&row.instance));
        true
    }

    fn redistribute(&mut self) {
        self.share();
        self.grant();
    }

    /// `share_connections`.
    fn share(&mut self) {
        let places = self.places();
        let mut wanted = Vec::new();
        for row in &self.rows {
            let lowest = row.floor.min(row.most);
            let wish = match row {
                Row { settled: false, .. } => lowest,
                row if row.demand > row.target => row.demand.min(row.most),
                row => self.kept(row.demand).min(row.target).min(row.most),
            };
            let highest = if row.settled { row.most } else { lowest };
            let floors = self.fault != Fault::NoFloors;
            for nth in 1..=highest.min(places) {
                let round = if floors && nth <= lowest {
                    0
                } else if nth <= wish {
                    1
                } else {
                    2
                };
                wanted.push((round, level(nth, row.weight), row.epoch));
            }
        }
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal)).then(a.2.cmp(&b.2)));
        wanted.truncate(usize::try_from(places).unwrap_or_default());
        for row in &mut self.rows {
            let target = count(wanted.iter().filter(|(.., epoch)| *epoch == row.epoch).count());
            if row.target != target {
                self.locks.push(Lock::Row(row.instance));
                row.target = target;
            }
        }
    }

    /// `grant_connections`.
    fn grant(&mut self) {
        let mut room = self.budget - self.taken() - self.arrival_places();
        let everything = self.fault == Fault::GrowsBeforeOthersShrink;
        let mut order: Vec<&mut Row> = self.rows.iter_mut().filter(|row| row.granted < row.target).collect();
        order.sort_by_key(|row| (row.granted, row.epoch));
        for row in order {
            let lack = row.target - row.granted;
            let more = if everything { lack } else { lack.min(room).max(0) };
            room -= lack;
            if more > 0 {
                self.locks.push(Lock::Row(row.instance));
                row.granted += more;
            }
        }
    }
}

/// How far a share is filled for its weight.
#[expect(clippy::cast_precision_loss, reason = "as the server divides, and all numbers are small")]
fn level(number: i64, weight: i64) -> f64 {
    number as f64 / weight as f64
}

fn count(number: usize) -> i64 {
    i64::try_from(number).expect("a small number")
}
