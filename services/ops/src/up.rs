//! `rollcall up`: the whole system on this machine, from nothing to working URLs.

mod access;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::auth::settings::VARIABLES as AUTH_VARIABLES;
use common::broker::BrokerUser;
use common::config::{DatabaseUrl, Reader, given_amqp_url, given_database_url, given_direct_url};
use common::files;
use local_stack::{Options, Stack, leave_root, stay_root, this_program};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::ExposeSecret;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use self::access::Access;
use crate::output::say;

const FOLDER: &str = ".rollcall";
const READY_DEADLINE: Duration = Duration::from_mins(2);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
const SHOWN_LOG_LINES: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Remove what earlier runs stored, and start over
    #[arg(long)]
    fresh: bool,
    /// Port for the API; a free one is taken when something listens there already
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
}

struct Service {
    name: &'static str,
    child: Child,
    log: PathBuf,
    probe: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let folder = std::env::current_dir()?.join(FOLDER);
    if arguments.fresh {
        local_stack::erase(&folder)?;
        say(format_args!("Removed {}", folder.display()));
    }
    let mut interrupts = Interrupts::listen()?;
    // Before anything is started for nothing.
    let mut reader = Reader::from_process();
    let (database, amqp) = (given_database_url(&mut reader), given_amqp_url(&mut reader));
    // It leads to the same server, or to none of ours.
    let direct = given_direct_url(&mut reader).filter(|_| database.is_some());
    reader.finish(Some(()))?;
    let prefix = Reader::from_process().raw("BROKER_PREFIX").unwrap_or_default().to_owned();
    let user = |user: BrokerUser| (user.name("rollcall"), user.permissions(&prefix));
    let options = Options {
        rabbitmq_users: BrokerUser::ALL.map(user).into(),
        database_url: database.map(|url| url.expose().to_owned()),
        amqp_url: amqp.map(|url| url.expose_secret().to_owned()),
        install: true,
        progress: Arc::new(|line| say(line)),
        ..Options::new(&folder)
    };
    let mut starting = tokio::task::spawn_blocking(move || Stack::start(options));
    let stack = tokio::select! {
        stack = &mut starting => stack??,
        () = interrupts.next() => {
            say("Stopping as soon as what was begun is in order …");
            let stack = starting.await??;
            return stop_servers(stack).await;
        }
    };
    let outcome = serve(&stack, &folder, arguments.port, direct.as_ref(), &mut interrupts).await;
    stop_servers(stack).await.and(outcome)
}

async fn stop_servers(stack: Stack) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || stack.stop()).await?;
    say("Stopped. Data stays for the next `rollcall up`; `rollcall up --fresh` starts over.");
    Ok(())
}

/// Migrates, runs both services, and comes back when one of them ended or a signal came.
async fn serve(
    stack: &Stack,
    folder: &Path,
    preferred: u16,
    direct: Option<&DatabaseUrl>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<()> {
    let access = Access::prepare(stack, folder, direct).await?;
    let port = free_port(preferred)?;
    let worker_port = free_port(0)?;
    let own = ("PORT", port.to_string());
    let mut api = start(stack, folder, "api", format!("http://127.0.0.1:{port}"), &[access.api, vec![own]].concat())?;
    let own = ("WORKER_LISTEN", format!("127.0.0.1:{worker_port}"));
    let url = format!("http://127.0.0.1:{worker_port}");
    let mut worker = start(stack, folder, "worker", url, &[access.worker, vec![own]].concat())?;
    let running = async {
        ready(&mut api).await?;
        ready(&mut worker).await?;
        announce(stack, folder, &access.operator, &api, &worker);
        tokio::select! {
            ended = api.child.wait() => bail!("the API ended ({}):\n{}", ended?, last_lines(&api.log)),
            ended = worker.child.wait() => bail!("the worker ended ({}):\n{}", ended?, last_lines(&worker.log)),
        }
    };
    let outcome = tokio::select! {
        outcome = running => outcome,
        () = interrupts.next() => Ok(()),
    };
    say("\nStopping the API and the worker …");
    let stopped = tokio::join!(stop(stack, api), stop(stack, worker));
    outcome.and(stopped.0).and(stopped.1)
}

/// Ctrl-C, or the request to end.
struct Interrupts {
    interrupt: Signals,
    terminate: Signals,
}

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn free_port(preferred: u16) -> anyhow::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    Ok(bind(preferred).or_else(|_| bind(0))?.local_addr()?.port())
}

fn start(
    stack: &Stack,
    folder: &Path,
    name: &'static str,
    url: String,
    variables: &[(&'static str, String)],
) -> anyhow::Result<Service> {
    let log = folder.join("logs").join(format!("{name}.log"));
    files::create_folder(&folder.join("logs"))?;
    let context = || format!("the log {} cannot be written", log.display());
    // Begun again at each start: it grows for as long as the service runs, and no longer.
    let output = files::open(&log, OpenOptions::new().append(true)).with_context(context)?;
    output.set_len(0).with_context(context)?;
    let mut command = Command::new(this_program()?);
    for variable in AUTH_VARIABLES {
        command.env_remove(variable.name);
    }
    command
        .arg(name)
        .env_remove("DATABASE_URL_FILE")
        .env_remove("DATABASE_URL_DIRECT")
        .env_remove("DATABASE_URL_DIRECT_FILE")
        .env_remove("DATABASE_CONTROL_URL")
        .env_remove("DATABASE_CONTROL_URL_FILE")
        .env_remove("AMQP_URL_FILE")
        .env("DRAIN_DELAY_MS", "0")
        // The announcement and the probes go to loopback.
        .env_remove("HOST")
        .envs(variables.iter().map(|(name, value)| (*name, value.as_str())))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A Ctrl-C reaches the whole group of the terminal; a second signal would make the services abort.
        .process_group(0);
    let left = leave_root(command.as_std_mut());
    let mut child = command.spawn();
    if left && child.as_ref().is_err_and(|fault| fault.kind() == ErrorKind::PermissionDenied) {
        say(format_args!("{name}: runs as root, because no other account may execute this program (umask 077?)"));
        stay_root(command.as_std_mut());
        child = command.spawn();
    }
    let child = child.with_context(|| format!("failed to start the {name}"))?;
    if let Some(pid) = child.id() {
        stack.adopt(pid, name)?;
    }
    Ok(Service { name, child, log, probe: url })
}

async fn ready(service: &mut Service) -> anyhow::Result<()> {
    let started = Instant::now();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(Duration::from_secs(2)).build()?;
    let url = format!("{}/readyz", service.probe);
    loop {
        let answer = client.get(&url).send().await;
        if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
            say(format_args!("{}: ready in {:.1} s", service.name, started.elapsed().as_secs_f64()));
            return Ok(());
        }
        if let Some(ended) = service.child.try_wait()? {
            bail!("the {} ended ({ended}):\n{}", service.name, last_lines(&service.log));
        }
        if started.elapsed() > READY_DEADLINE {
            let report = match answer {
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(_) => last_lines(&service.log),
            };
            bail!("the {} is not ready after {READY_DEADLINE:?}:\n{report}", service.name);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn announce(stack: &Stack, folder: &Path, operator: &str, api: &Service, worker: &Service) {
    let (api, worker) = (&api.probe, &worker.probe);
    say(format_args!(
        "
Rollcall is up.

  Swagger UI   {api}/docs
  API          {api}/v1/users
  Contract     {api}/openapi.json
  Readiness    {api}/readyz and {worker}/readyz
  Metrics      {api}/metrics and {worker}/metrics
  PostgreSQL   {}
  RabbitMQ     {}
  Logs         {}

Try it:

  curl -i {api}/v1/users -H 'content-type: application/json' -H 'prefer: wait=5' \\
    -d '{{\"email\": \"ada@example.org\", \"name\": \"Ada\"}}'

Ctrl-C stops everything.",
        shown(operator, "DATABASE_URL"),
        shown(stack.rabbitmq.url(), "AMQP_URL"),
        folder.join("logs").display(),
    ));
}

/// The URL of a server; not of one that was given, whose password is not this program's to show.
fn shown<'u>(url: &'u str, variable: &'static str) -> &'u str {
    let reader = Reader::from_process();
    let given = [variable, &format!("{variable}_FILE")].iter().any(|name| reader.raw(name).is_some());
    if given { variable } else { url }
}

async fn stop(stack: &Stack, mut service: Service) -> anyhow::Result<()> {
    let Some(id) = service.child.id() else { return Ok(()) };
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id is out of range")?;
    kill_process(pid, Signal::TERM)?;
    let ended = tokio::time::timeout(STOP_DEADLINE, service.child.wait()).await;
    stack.release(id);
    match ended {
        Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
        Ok(status) => bail!("the {} did not end well ({}):\n{}", service.name, status?, last_lines(&service.log)),
        Err(_) => {
            service.child.kill().await?;
            bail!("the {} did not end within {STOP_DEADLINE:?}", service.name)
        }
    }
}

fn last_lines(log: &Path) -> String {
    let mut bytes = Vec::new();
    let _ = File::open(log).and_then(|mut file| file.read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..].join("\n")
}
