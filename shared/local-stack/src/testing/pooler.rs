//! A private PgBouncer: it refuses startup options, as the poolers of several hosts do.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::account::{self, Account};
use crate::error::Error;
use crate::home::Home;
use crate::{Options, install, ports, probe};

const NAME: &str = "pgbouncer";

/// A PgBouncer in transaction mode in front of a PostgreSQL; it ends when the value is dropped.
pub struct Pooler {
    home: Home,
    url: String,
}

/// For how long a client has a session of the server to itself.
#[derive(Debug, Clone, Copy)]
pub enum Lends {
    /// As long as it is connected.
    Sessions,
    /// As long as its transaction runs.
    Transactions,
}

impl Pooler {
    /// Starts one in front of the server of this URL; whoever connects is the URL's role. Installs the package if it is
    /// missing and that may be. Blocks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(options: Options, database_url: &str, lends: Lends) -> Result<Self, Error> {
        let home = Home::exclusive(options)?;
        if program(&home.options).is_none() && home.options.install && install::possible(&home.options) {
            install::packages(&home, || program(&home.options).is_none().then_some(NAME).into_iter().collect())?;
        }
        let missing = || Error::Command { step: "find PgBouncer".into(), output: "apt-get install pgbouncer".into() };
        let program = program(&home.options).ok_or_else(missing)?;
        let (folder, account) =
            account::place(&home.options, &home.dir, NAME, Account::choose(&["postgres", "nobody"]))?;
        let step = || "prepare PgBouncer".to_owned();
        let invalid = || Error::Command { step: step(), output: "the server's URL has no port".into() };
        let mut url = Url::parse(database_url).map_err(|_| invalid())?;
        let [port] = ports::choose([None]);
        let config = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={} password={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {}\n",
            url.port().ok_or_else(invalid)?,
            url.username(),
            url.password().unwrap_or_default(),
            match lends {
                Lends::Sessions => "session",
                Lends::Transactions => "transaction",
            },
        );
        account.write(&config, &text, 0o600)?;
        let from = home.log_length(NAME);
        let process = home.spawn(NAME, home.command(program, account).arg(&config).current_dir(&folder))?;
        home.await_ready("start PgBouncer", (NAME, from), &process, || probe::postgres(port))?;
        url.set_port(Some(port)).map_err(|()| invalid())?;
        Ok(Self { home, url: url.into() })
    }

    /// The URL to connect through it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.home.end(NAME, "INT", Duration::from_secs(5));
    }
}

fn program(options: &Options) -> Option<PathBuf> {
    let path = options.search_path();
    env::split_paths(&path).map(|folder| folder.join(NAME)).find(|program| fs::metadata(program).is_ok())
}
