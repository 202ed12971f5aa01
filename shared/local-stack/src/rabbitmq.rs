//! RabbitMQ as a caller sees it: a URL, and the faults a test may cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::account::hash;
use crate::container::{Container, Image};
use crate::error::Error;
use crate::find;
use crate::home::Home;
use crate::node::{Identity, NAME, Node, USER_PASSWORD};
use crate::options::{Options, elapsed};
use crate::probe;
use crate::provision::{self, Wanted};
use crate::state::password;

/// A RabbitMQ with an administrator named `rollcall` and the virtual host `/`.
pub struct RabbitMq {
    home: Arc<Home>,
    runtime: Runtime,
    url: String,
}

enum Runtime {
    External,
    Private(Node, Identity),
    Container(Container, Identity),
}

const SERVER: &str = "RabbitMQ";

impl RabbitMq {
    /// A private RabbitMQ with nothing beside it, in a directory of its own. It ends when the value is dropped.
    pub fn start_alone(options: Options) -> Result<Self, Error> {
        let home = Arc::new(Home::exclusive(options)?);
        provision::provide(&home, &[Wanted::RabbitMq])?;
        Self::open(home)
    }

    /// The URL to connect with, as the administrator `rollcall` unless the URL was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL for one of [`Options::rabbitmq_users`]; `None` unless the server is a private one.
    pub fn user_url(&self, name: &str) -> Option<String> {
        let Runtime::Private(_, identity) = &self.runtime else { return None };
        let (_, password) = identity.users.iter().find(|(known, _)| known == name)?;
        Some(format!("amqp://{name}:{password}@127.0.0.1:{}/%2f", identity.amqp))
    }

    /// The pid of the Erlang machine.
    pub fn pid(&self) -> Result<u32, Error> {
        match self.runtime {
            Runtime::Private(..) => self.home.process(NAME).map(|process| process.pid).ok_or_else(not_running),
            Runtime::External | Runtime::Container(..) => Err(not_ours("looked up by pid")),
        }
    }

    /// The name of the server with its version, where that is known.
    pub fn title(&self) -> String {
        match &self.runtime {
            Runtime::Private(node, _) => node.title(),
            Runtime::External | Runtime::Container(..) => SERVER.to_owned(),
        }
    }

    /// Stops the node in good order and waits for its end.
    pub fn stop(&self) -> Result<(), Error> {
        self.end("stopped", "TERM", "stop")
    }

    /// Ends the node with SIGKILL: what was not yet on the disk is lost.
    pub fn kill(&self) -> Result<(), Error> {
        self.end("killed", "KILL", "kill")
    }

    fn end(&self, action: &'static str, signal: &str, word: &str) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours(action)),
            Runtime::Private(..) => {
                self.home.end(NAME, signal, Duration::from_secs(20));
                Ok(())
            }
            Runtime::Container(container, _) => container.control(&self.home, &[word]),
        }
    }

    /// Starts a stopped or killed node again: same name, same ports, same data.
    pub fn start(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours("started")),
            Runtime::Private(..) if self.home.process(NAME).is_some() => Ok(()),
            Runtime::Private(node, identity) => node.start(&self.home, identity),
            Runtime::Container(container, identity) => run(&self.home, container, identity),
        }
    }

    /// Stops the node in the middle of whatever it does (SIGSTOP): the port accepts, nobody answers.
    pub fn freeze(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours("frozen")),
            Runtime::Private(..) => {
                let process = self.home.process(NAME).ok_or_else(not_running)?;
                self.home.freeze(NAME, &process)
            }
            Runtime::Container(container, _) => container.control(&self.home, &["pause"]),
        }
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => return Err(not_ours("thawed")),
            Runtime::Private(..) => self.home.thaw(NAME),
            Runtime::Container(container, _) => container.control(&self.home, &["unpause"])?,
        }
        Ok(())
    }

    /// Runs the package's `rabbitmqctl` against this node and gives what it prints. Takes about a second.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours("controlled")),
            Runtime::Private(node, identity) => node.ctl(&self.home, identity, arguments),
            Runtime::Container(container, _) => container.execute(&self.home, &[&["rabbitmqctl"], arguments].concat()),
        }
    }

    /// Finds the running server of this directory, or starts one.
    pub(crate) fn open(home: Arc<Home>) -> Result<Self, Error> {
        if let Some(url) = home.options.amqp_url.clone() {
            home.options.tell("RabbitMQ: using the one given by its URL");
            return Ok(Self { home, runtime: Runtime::External, url });
        }
        let node = Node::find(&home)?;
        let mut state = home.state(NAME);
        if node.as_ref().is_some_and(Node::exists) && state.get("password").is_none() {
            let reason = "RabbitMQ has data, but its node name and password are lost".to_owned();
            return Err(Error::Unusable { reason, dir: home.dir.clone() });
        }
        state.get_or_set("password", password);
        for (name, _) in &home.options.rabbitmq_users {
            state.get_or_set(&format!("{USER_PASSWORD}{name}"), password);
        }
        // A node of an earlier version gets it at its next start.
        state.get_or_set("cookie", password);
        state.get_or_set("node", || format!("rollcall-{:016x}@localhost", hash(&home.dir)));
        state.write()?;
        let container = Container::named(&home, NAME);
        let known = Identity::read(&state);
        let runs = match &node {
            Some(_) => home.process(NAME).is_some(),
            None => container.running(&home),
        };
        if runs && probe::amqp(known.amqp) {
            return Ok(Self::running(home, node, container, known));
        }
        home.end(NAME, "KILL", Duration::from_secs(5));
        home.end("epmd", "TERM", Duration::from_secs(2));
        if let Some(node) = node.as_ref().filter(|_| state.get("created").is_none() || !home.options.keep_messages) {
            node.discard()?;
        }
        let mut attempts = provision::ATTEMPTS;
        loop {
            let identity = Identity::choose(&mut state)?;
            if node.is_none() {
                state.set("container", container.name.as_str());
                state.write()?;
            }
            let from = home.log_length(NAME);
            let started = match &node {
                Some(node) => node.start(&home, &identity),
                None => run(&home, &container, &identity),
            };
            attempts -= 1;
            match started {
                Ok(()) => {
                    state.set("created", "yes");
                    state.write()?;
                    return Ok(Self::running(home, node, container, identity));
                }
                Err(_) if attempts > 0 && port_was_taken(&home, from) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    fn running(home: Arc<Home>, node: Option<Node>, container: Container, identity: Identity) -> Self {
        let url = format!("amqp://rollcall:{}@127.0.0.1:{}/%2f", identity.password, identity.amqp);
        let runtime = match node {
            Some(node) => Runtime::Private(node, identity),
            None => Runtime::Container(container, identity),
        };
        Self { home, runtime, url }
    }
}

fn port_was_taken(home: &Home, from: u64) -> bool {
    // A port mapper that finds its port taken ends without a word.
    let mapper_ended = find::epmd(&home.options).is_some() && home.process("epmd").is_none();
    mapper_ended || home.port_was_taken(NAME, from)
}

fn run(home: &Home, container: &Container, identity: &Identity) -> Result<(), Error> {
    let began = Instant::now();
    let port = identity.amqp;
    home.options.tell(format!("RabbitMQ: starting with Docker on port {port}"));
    let image = Image { name: NAME, tag: "rabbitmq:4", port: 5672, data: "/var/lib/rabbitmq", arguments: Vec::new() };
    let secrets = format!("RABBITMQ_DEFAULT_USER=rollcall\nRABBITMQ_DEFAULT_PASS={}\n", identity.password);
    container.run(home, &image, port, &secrets)?;
    provision::await_container(home, container, SERVER, || probe::amqp(port))?;
    home.options.tell(format!("RabbitMQ: ready on port {port} after {}", elapsed(began)));
    Ok(())
}

fn not_ours(action: &'static str) -> Error {
    Error::NotOurs { server: SERVER, action }
}

fn not_running() -> Error {
    Error::NotRunning { server: SERVER }
}
