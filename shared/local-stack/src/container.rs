//! The servers as Docker containers, for machines without their packages. Published on the loopback address only;
//! the data lies in a named volume, so that it survives the container.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::files;

use crate::error::Error;
use crate::home::Home;
use crate::process;

/// What to run.
pub(crate) struct Image {
    /// The server's name within the stack.
    pub(crate) name: &'static str,
    pub(crate) tag: &'static str,
    /// The port inside.
    pub(crate) port: u16,
    /// Where the data lies inside.
    pub(crate) data: &'static str,
    /// Arguments after the image's name.
    pub(crate) arguments: Vec<String>,
}

/// One container of a stack.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) name: String,
}

pub(crate) fn available(home: &Home) -> bool {
    docker(home).arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Container {
    pub(crate) fn named(home: &Home, server: &str) -> Self {
        Self { name: format!("rollcall-{}-{server}", home.id()) }
    }

    /// Starts it on `port`, with the secrets in a file rather than on the command line.
    pub(crate) fn run(&self, home: &Home, what: &Image, port: u16, secrets: &str) -> Result<(), Error> {
        let _ = self.remove(home);
        let record = record(home, what.name);
        let secrets_file = home.dir.join("state").join(format!("{}.env", what.name));
        for (path, text) in [(&record, self.name.as_str()), (&secrets_file, secrets)] {
            files::write(path, text)
                .map_err(|source| Error::Io { step: format!("write {}", path.display()), source })?;
        }
        let mut command = docker(home);
        command.args(["run", "--detach", "--rm", "--label", "rollcall.stack"]);
        command.args(["--name", &self.name, "--hostname", what.name]).arg("--env-file").arg(&secrets_file);
        command.args(["--publish", &format!("127.0.0.1:{port}:{}", what.port)]);
        command.args(["--volume", &format!("{}:{}", self.name, what.data), what.tag]);
        command.args(&what.arguments);
        let outcome = process::run(&format!("run {} with Docker", what.tag), &mut command);
        let _ = fs::remove_file(secrets_file);
        outcome.map(drop)
    }

    pub(crate) fn running(&self, home: &Home) -> bool {
        let mut command = docker(home);
        command.args(["inspect", "--format", "{{.State.Running}}", &self.name]);
        process::run("inspect the container", &mut command).is_ok_and(|answer| answer.trim() == "true")
    }

    /// One Docker command about this container, such as `kill` or `pause`.
    pub(crate) fn control(&self, home: &Home, words: &[&str]) -> Result<(), Error> {
        let step = format!("{} the container {}", words.join(" "), self.name);
        process::run(&step, docker(home).args(words).arg(&self.name)).map(drop)
    }

    pub(crate) fn execute(&self, home: &Home, words: &[&str]) -> Result<String, Error> {
        process::run(&words.join(" "), docker(home).args(["exec", &self.name]).args(words))
    }

    /// What it wrote, for an error.
    pub(crate) fn last_words(&self, home: &Home) -> String {
        let output = docker(home).args(["logs", "--tail", "20", &self.name]).output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    fn remove(&self, home: &Home) -> Result<(), Error> {
        self.control(home, &["rm", "--force"])
    }
}

/// Stops the containers of a stack; their volumes stay.
pub(crate) fn remove_all(home: &Home) {
    for server in ["postgres", "rabbitmq"] {
        if record(home, server).exists() {
            let container = Container::named(home, server);
            // A plain removal would kill the server.
            let _ = container.control(home, &["stop", "-t", "20"]);
            let _ = container.remove(home);
            let _ = fs::remove_file(record(home, server));
        }
    }
}

/// Removes the data of a stack's containers.
pub(crate) fn remove_volumes(home: &Home) {
    for server in ["postgres", "rabbitmq"] {
        if home.state(server).get("container").is_some() {
            let volume = Container::named(home, server).name;
            let _ = process::run("remove the volume", docker(home).args(["volume", "rm", "--force", &volume]));
        }
    }
}

fn record(home: &Home, server: &str) -> PathBuf {
    home.dir.join("processes").join(format!("{server}.container"))
}

fn docker(home: &Home) -> Command {
    let mut command = Command::new("docker");
    command.env("PATH", home.options.search_path()).stdin(Stdio::null());
    command
}
