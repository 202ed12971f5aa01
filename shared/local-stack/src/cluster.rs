//! A private PostgreSQL: its data folder, made once, and its server process.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::account::{self, Account};
use crate::error::{Error, IoStep};
use crate::find;
use crate::home::Home;
use crate::options::{POSTGRES_BIN, elapsed};
use crate::probe;
use crate::process::{self, Process};

/// The name of the process, of its log, and of its folder.
pub(crate) const NAME: &str = "postgres";

/// A program without the links that lead to it: the account of the server may not be able to enter the folder of a link.
fn real(bin: &Path, name: &str) -> PathBuf {
    let path = bin.join(name);
    path.canonicalize().unwrap_or(path)
}

pub(crate) struct Cluster {
    bin: PathBuf,
    account: Account,
    folder: PathBuf,
    version: String,
}

impl Cluster {
    /// The programs and the folder for this directory; `None` when no PostgreSQL is installed.
    pub(crate) fn find(home: &Home) -> Result<Option<Self>, Error> {
        let Some(newest) = find::postgres(&home.options, None) else { return Ok(None) };
        let account = Account::choose(&["postgres", "nobody"]);
        let (folder, account) = account::place(&home.options, &home.dir, NAME, account)?;
        // Data of one major version opens with that version only.
        let major = fs::read_to_string(folder.join("data/PG_VERSION")).ok().map(|major| major.trim().to_owned());
        let bin = match &major {
            None => newest,
            Some(major) => find::postgres(&home.options, Some(major)).ok_or_else(|| Error::Unusable {
                reason: format!("the data was written by PostgreSQL {major}, which is no longer installed"),
                dir: home.dir.clone(),
            })?,
        };
        account.require(&real(&bin, "postgres"), POSTGRES_BIN)?;
        let version = major.or_else(|| find::postgres_major(&bin)).unwrap_or_default();
        Ok(Some(Self { bin, account, folder, version }))
    }

    pub(crate) fn title(&self) -> String {
        format!("PostgreSQL {}", self.version)
    }

    fn program(&self, name: &str) -> PathBuf {
        real(&self.bin, name)
    }

    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    pub(crate) fn exists(&self) -> bool {
        self.data().exists()
    }

    /// The folder of the server's data.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder that the server's account owns.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program of this PostgreSQL, under the server's account.
    pub(crate) fn command(&self, home: &Home, name: &str) -> Command {
        let mut command = home.command(self.program(name), self.account);
        command.current_dir(&self.folder);
        command
    }

    /// Writes a file of the server's account.
    pub(crate) fn write(&self, path: &Path, content: &str) -> Result<(), Error> {
        self.account.write(path, content, 0o600)
    }

    /// Makes the data folder. It gets its name last, so that a half-made one is never taken for a whole one.
    pub(crate) fn create(&self, home: &Home, password: &str) -> Result<(), Error> {
        let began = Instant::now();
        home.options.tell(format!("{}: creating its data folder", self.title()));
        let draft = self.folder.join("draft");
        let password_file = self.folder.join("password");
        let step = || format!("prepare {}", self.folder.display());
        if draft.exists() {
            fs::remove_dir_all(&draft).step(step)?;
        }
        self.account.write(&password_file, password, 0o600)?;
        // Not every system has a UTF-8 locale named C.
        let mut made = self.initdb(home, &draft, &password_file, "C.UTF-8");
        if made.is_err() {
            made = self.initdb(home, &draft, &password_file, "C");
        }
        fs::remove_file(&password_file).step(step)?;
        made?;
        self.single_user(home, &draft, "CREATE DATABASE rollcall")?;
        fs::rename(&draft, self.data()).step(step)?;
        home.options.tell(format!("{}: data folder created after {}", self.title(), elapsed(began)));
        Ok(())
    }

    fn initdb(&self, home: &Home, data: &Path, password_file: &Path, locale: &str) -> Result<(), Error> {
        let mut command = home.command(self.program("initdb"), self.account);
        command.arg("--pgdata").arg(data).arg("--pwfile").arg(password_file);
        command.args(["--username=rollcall", "--auth=scram-sha-256", "--encoding=UTF8"]);
        command.arg(format!("--locale={locale}"));
        process::run("create the data folder of PostgreSQL", &mut command).map(drop)
    }

    /// One statement without a server, and so without a client.
    fn single_user(&self, home: &Home, data: &Path, statement: &str) -> Result<(), Error> {
        let name = format!("run {statement}");
        let step = || name.clone();
        let mut command = home.command(self.program("postgres"), self.account);
        command.args(["--single", "-j", "-D"]).arg(data).arg("postgres");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().step(step)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(format!("{statement};\n\n").as_bytes()).step(step)?;
        }
        let output = child.wait_with_output().step(step)?;
        let said = String::from_utf8_lossy(&output.stderr);
        // A failed statement is only printed.
        if output.status.success() && !said.contains("ERROR:") {
            return Ok(());
        }
        Err(Error::Command { step: step(), output: process::last_lines(&said) })
    }

    /// Starts the server and waits until it accepts connections.
    pub(crate) fn start(&self, home: &Home, port: u16) -> Result<(), Error> {
        let began = Instant::now();
        let step = format!("start {} on port {port}", self.title());
        home.options.tell(format!("{}: starting on port {port}", self.title()));
        self.release_data()?;
        let from = home.log_length(NAME);
        let process = home.spawn(NAME, &mut self.server(home, &self.data(), port))?;
        home.await_ready(&step, (NAME, from), &process, || probe::postgres(port))?;
        home.options.tell(format!("{}: ready on port {port} after {}", self.title(), elapsed(began)));
        Ok(())
    }

    /// The server program on this data folder and port.
    pub(crate) fn server(&self, home: &Home, data: &Path, port: u16) -> Command {
        let mut command = self.command(home, "postgres");
        command.arg("-D").arg(data);
        let connections = home.options.max_connections;
        let settings = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            // A socket's path may be no longer than about 100 bytes; a checkout's may.
            ("unix_socket_directories", String::new()),
            ("max_connections", connections.to_string()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            ("log_line_prefix", "%m [%p] %q%u@%d ".to_owned()),
            // Details have values of rows in them.
            ("log_error_verbosity", "terse".to_owned()),
        ];
        for (name, value) in &settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &home.options.postgres_settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command
    }

    /// `postmaster.pid` of a killed server is ignored by the next one, unless its pid has meanwhile gone to somebody
    /// else. A server of ours that nobody recorded is ended.
    fn release_data(&self) -> Result<(), Error> {
        let path = self.data().join("postmaster.pid");
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let pid = text.lines().next().and_then(|pid| pid.trim().parse().ok());
        let Some(process) = pid.and_then(Process::find) else { return Ok(()) };
        let Ok(line) = fs::read(format!("/proc/{}/cmdline", process.pid)) else { return Ok(()) };
        let data = self.data();
        if line.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_encoded_bytes()) {
            process.end("INT", Duration::from_secs(20));
            return Ok(());
        }
        fs::remove_file(&path).step(|| format!("remove {}", path.display()))
    }
}
