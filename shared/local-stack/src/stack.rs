//! Both servers together.

use std::panic;
use std::sync::Arc;
use std::thread;

use crate::error::Error;
use crate::home::Home;
use crate::options::Options;
use crate::postgres::Postgres;
use crate::provision::{self, Wanted};
use crate::rabbitmq::RabbitMq;

/// A PostgreSQL and a RabbitMQ that belong together. An exclusive stack ends when the value is dropped.
pub struct Stack {
    /// The database.
    pub postgres: Postgres,
    /// The broker.
    pub rabbitmq: RabbitMq,
    home: Arc<Home>,
}

impl Stack {
    /// Starts both servers for this process alone. What a killed owner left in the directory is ended first; a
    /// living owner is named in [`Error::InUse`].
    pub fn start(options: Options) -> Result<Self, Error> {
        Self::open(Arc::new(Home::exclusive(options)?))
    }

    /// Joins the running stack of the directory, or starts it. It runs on until no process that joined it has been
    /// alive for [`Options::linger`].
    pub fn start_shared(options: Options) -> Result<Self, Error> {
        let (home, turn) = Home::shared(options)?;
        let stack = Self::open(Arc::new(home));
        drop(turn);
        stack
    }

    fn open(home: Arc<Home>) -> Result<Self, Error> {
        provision::provide(&home, &[Wanted::Postgres, Wanted::RabbitMq])?;
        let (postgres, rabbitmq) = thread::scope(|scope| {
            let rabbitmq = scope.spawn(|| RabbitMq::open(Arc::clone(&home)));
            let postgres = Postgres::open(Arc::clone(&home));
            (postgres, rabbitmq.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
        });
        Ok(Self { postgres: postgres?, rabbitmq: rabbitmq?, home })
    }

    /// Hands a process over to be ended (SIGTERM, after some seconds SIGKILL) before the servers end, even if this
    /// process is killed. `name` is for the reader of the directory.
    pub fn adopt(&self, pid: u32, name: &str) -> Result<(), Error> {
        self.home.adopt(pid, name)
    }

    /// Takes back a process that was adopted, because it has ended or is to live on.
    pub fn release(&self, pid: u32) {
        self.home.release(pid);
    }

    /// Ends the adopted processes and both servers in good order; the data stays. A shared stack is left to its other
    /// users and to its keeper.
    pub fn stop(self) {
        self.home.stop();
    }
}
