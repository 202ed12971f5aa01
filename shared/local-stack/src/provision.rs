//! How a server that is not given by its URL comes to be: installed programs, the package manager, Docker, or an
//! error that says what to type.

use std::thread;
use std::time::Instant;

use crate::advice::{Rights, System, help};
use crate::container::{self, Container};
use crate::error::Error;
use crate::find;
use crate::home::Home;
use crate::install;
use crate::options::{Options, POSTGRES_BIN, RABBITMQ_BIN};
use crate::process::POLL;

/// How often a start chooses other ports when somebody took one of the chosen in the meantime.
pub(crate) const ATTEMPTS: u32 = 4;

/// A server that the caller wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Postgres,
    RabbitMq,
}

impl Wanted {
    fn title(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::RabbitMq => "RabbitMQ",
        }
    }

    /// What the package is called on each system, in the order of `System`.
    pub(crate) fn packages(self) -> [&'static str; 3] {
        match self {
            Self::Postgres => ["postgresql", "postgresql-server", "postgresql@17"],
            Self::RabbitMq => ["rabbitmq-server", "rabbitmq-server", "rabbitmq"],
        }
    }

    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "DATABASE_URL",
            Self::RabbitMq => "AMQP_URL",
        }
    }

    /// A folder that was chosen and is of no use must not lead to an installation, or to another version.
    fn check_choice(self, options: &Options) -> Result<(), Error> {
        let (variable, folder, program) = match self {
            Self::Postgres => (POSTGRES_BIN, &options.postgres_bin, "postgres and initdb"),
            Self::RabbitMq => (RABBITMQ_BIN, &options.rabbitmq_bin, "rabbitmq-server and rabbitmq-env"),
        };
        match folder {
            Some(folder) if self.missing(options) => {
                Err(Error::NoProgram { variable, folder: folder.clone(), program })
            }
            _ => Ok(()),
        }
    }

    fn missing(self, options: &Options) -> bool {
        match self {
            Self::Postgres => options.database_url.is_none() && find::postgres(options, None).is_none(),
            Self::RabbitMq => options.amqp_url.is_none() && find::rabbitmq(options).is_none(),
        }
    }
}

/// Sees to it that every wanted server can be started; installs what is missing if that is allowed.
pub(crate) fn provide(home: &Home, wanted: &[Wanted]) -> Result<(), Error> {
    wanted.iter().try_for_each(|server| server.check_choice(&home.options))?;
    let missing = || wanted.iter().copied().filter(|server| server.missing(&home.options)).collect::<Vec<_>>();
    if missing().is_empty() {
        return Ok(());
    }
    let mut failure = None;
    if home.options.install && install::possible(&home.options) {
        let packages = || missing().into_iter().map(|server| server.packages()[0]).collect();
        failure = install::packages(home, packages).err();
    }
    let missing = missing();
    if missing.is_empty() || container::available(home) {
        if let Some(failure) = failure {
            home.options.tell(format!("the installation failed: {failure}"));
        }
        return Ok(());
    }
    let advice =
        || Error::Missing { servers: titles(&missing), help: help(&missing, System::here(), Rights::here(home)) };
    Err(failure.unwrap_or_else(advice))
}

fn titles(missing: &[Wanted]) -> String {
    missing.iter().map(|server| server.title()).collect::<Vec<_>>().join(" and no ")
}

/// Waits until the server in a container answers.
pub(crate) fn await_container(
    home: &Home,
    container: &Container,
    server: &str,
    answers: impl Fn() -> bool,
) -> Result<(), Error> {
    let deadline = Instant::now() + home.options.start_timeout;
    while !answers() {
        if Instant::now() > deadline {
            let output = container.last_words(home);
            return Err(Error::Command { step: format!("wait for {server} in {}", container.name), output });
        }
        thread::sleep(POLL);
    }
    Ok(())
}
