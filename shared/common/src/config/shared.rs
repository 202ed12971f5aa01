//! The settings that both services have.

use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::{DatabaseUrl, Reader, SecretFile, Variable, amqp_url, database_url};
use crate::command::DEFAULT_PARTITIONS;
use crate::shutdown::Graces;
use crate::telemetry::{LogFormat, log_filter};

const DATABASE_URL: Variable = Variable::required(
    "DATABASE_URL",
    "postgres://rollcall:secret@127.0.0.1:5432/rollcall",
    "PostgreSQL, as postgres:// or postgresql://; TLS is required unless it is on this machine.",
);
const DATABASE_URL_FILE: Variable = Variable::optional(
    "DATABASE_URL_FILE",
    "/run/secrets/database-url",
    "Instead of DATABASE_URL: a file that holds it; a new user or password there counts for new connections.",
);
const DATABASE_URL_DIRECT: Variable = Variable::optional(
    "DATABASE_URL_DIRECT",
    "postgres://rollcall:secret@127.0.0.1:5432/rollcall",
    "The same database past a pooler that DATABASE_URL leads through, for what needs a session of its own: control connections, \
     migrations, the operator's commands.",
);
const DATABASE_URL_DIRECT_FILE: Variable = Variable::optional(
    "DATABASE_URL_DIRECT_FILE",
    "/run/secrets/database-url-direct",
    "Instead of DATABASE_URL_DIRECT: a file that holds it; a new user or password there counts for new connections.",
);
const DATABASE_CONTROL_URL: Variable = Variable::optional(
    "DATABASE_CONTROL_URL",
    "postgres://rollcall_control_api:secret@127.0.0.1:5432/rollcall",
    "The same database for the connection that watches it and takes part in the deployment; without it DATABASE_URL_DIRECT \
     or DATABASE_URL is used.",
);
const DATABASE_CONTROL_URL_FILE: Variable = Variable::optional(
    "DATABASE_CONTROL_URL_FILE",
    "/run/secrets/database-control-url",
    "Instead of DATABASE_CONTROL_URL: a file that holds it; a new user or password there counts for new connections.",
);
const DATABASE_CONNECTION_BUDGET: Variable = Variable::optional(
    "DATABASE_CONNECTION_BUDGET",
    "plan-50",
    "Connections of all processes together: a number, or plan-50, plan-300 or plan-1000 for what a host's plan leaves after \
     a tenth for migrations, backups and people; computed from the server's limits and from what others hold when it is not \
     set. The same for every process of a deployment (`rollcall deployment set budget=`).",
);
const DATABASE_POOL_MAX: Variable = Variable::with_default(
    "DATABASE_POOL_MAX",
    "20",
    "What the share of this process in the budget may be at most; its control connection is not counted.",
);
const AMQP_URL: Variable = Variable::required(
    "AMQP_URL",
    "amqp://rollcall:secret@127.0.0.1:5672/%2f",
    "RabbitMQ 3.10 or newer, as amqp:// or amqps://; several hosts of one cluster as \
     amqp://user:password@a:5672,b:5672/vhost, which are tried in random order.",
);
const AMQP_URL_FILE: Variable = Variable::optional(
    "AMQP_URL_FILE",
    "/run/secrets/amqp-url",
    "Instead of AMQP_URL: a file that holds it; what it holds by then counts for new connections.",
);
const BROKER_PREFIX: Variable = Variable::optional(
    "BROKER_PREFIX",
    "staging.",
    "In front of the name of every exchange and queue, so that several deployments can share a broker; the same for every \
     process of a deployment.",
);
const PARTITIONS: Variable = Variable::with_default(
    "PARTITIONS",
    "16",
    "Partition queues that users are spread over; the same for every process of a deployment, whose first one decides.",
);
const COMMAND_RETENTION_DAYS: Variable = Variable::with_default(
    "COMMAND_RETENTION_DAYS",
    "30",
    "How long a command's outcome can be asked for, in days; the same for every process of a deployment (`rollcall deployment \
     set retention=`).",
);
const IDEMPOTENCY_WINDOW_HOURS: Variable = Variable::with_default(
    "IDEMPOTENCY_WINDOW_HOURS",
    "24",
    "For how long a request under the same Idempotency-Key takes effect only once, in hours; at most the retention; the same for \
     every process of a deployment (`rollcall deployment set window=`).",
);
const STOP_DEADLINE_MS: Variable = Variable::with_default(
    "STOP_DEADLINE_MS",
    "5000",
    "After SIGTERM, and the drain delay of an API: how long work in flight may take, in milliseconds.",
);
const LOG: Variable = Variable::with_default(
    "LOG",
    "info",
    "Log filter: a level (off, error, warn, info, debug, trace), and a level for a part of the program, such as \
     info,rollcall_worker=debug.",
);
const LOG_FORMAT: Variable =
    Variable::with_default("LOG_FORMAT", "auto", "json, text, or auto: text on a terminal and json elsewhere.");
const OTEL_EXPORTER_OTLP_ENDPOINT: Variable = Variable::optional(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "http://127.0.0.1:4317",
    "Where traces go, as OTLP over gRPC; nothing is recorded when it is not set.",
);
const OTEL_SERVICE_NAME: Variable =
    Variable::optional("OTEL_SERVICE_NAME", "rollcall-api", "The service's name in traces.");

/// More than any server that this was made for gives.
const MOST_CONNECTIONS: u16 = 10_000;
/// What a host's plan of so many connections leaves, the same as is computed for a server with that limit.
const PLANS: &[(&str, u16)] = &[("plan-50", 45), ("plan-300", 270), ("plan-1000", 900)];

/// What the PostgreSQL client library would read behind our back, and nobody can take back from it.
const AMBIENT: [Variable; 4] = [
    Variable::optional("PGOPTIONS", "", "Refused."),
    Variable::optional("PGSSLROOTCERT", "", "Refused."),
    Variable::optional("PGSSLCERT", "", "Refused."),
    Variable::optional("PGSSLKEY", "", "Refused."),
];

/// What both services read, in the order of the sample file.
pub const SHARED: &[&Variable] = &[
    &DATABASE_URL,
    &DATABASE_URL_FILE,
    &DATABASE_URL_DIRECT,
    &DATABASE_URL_DIRECT_FILE,
    &DATABASE_CONTROL_URL,
    &DATABASE_CONTROL_URL_FILE,
    &DATABASE_CONNECTION_BUDGET,
    &DATABASE_POOL_MAX,
    &AMQP_URL,
    &AMQP_URL_FILE,
    &BROKER_PREFIX,
    &PARTITIONS,
    &COMMAND_RETENTION_DAYS,
    &IDEMPOTENCY_WINDOW_HOURS,
    &STOP_DEADLINE_MS,
    &LOG,
    &LOG_FORMAT,
    &OTEL_EXPORTER_OTLP_ENDPOINT,
    &OTEL_SERVICE_NAME,
];

/// What both services need.
#[derive(Debug, Clone)]
pub struct ServiceSettings {
    /// PostgreSQL.
    pub database: DatabaseSettings,
    /// PostgreSQL for the control connection: as a role of its own, or the same.
    pub control: DatabaseSettings,
    /// `DATABASE_CONNECTION_BUDGET`, if it is set.
    pub budget: Option<u16>,
    /// RabbitMQ.
    pub broker: BrokerSettings,
    /// How long outcomes are kept.
    pub retention: Retention,
    /// How long idempotency keys count.
    pub idempotency_window: IdempotencyWindow,
    /// How long a stop may take; without a drain delay, which only an API has.
    pub graces: Graces,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
}

/// How to reach PostgreSQL.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// A checked URL.
    pub url: DatabaseUrl,
    /// The size of a pool, or what a lease can make of it at most.
    pub connections: usize,
}

/// How to reach RabbitMQ.
#[derive(Debug, Clone)]
pub struct BrokerSettings {
    /// A checked URL.
    pub url: SecretString,
    /// Where it stands, if it may change.
    pub file: Option<SecretFile>,
    /// In front of every name.
    pub prefix: String,
    /// How many partition queues there are.
    pub partitions: u16,
}

/// For how long a command's outcome is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention(pub Duration);

/// For how long after a request another one under the same idempotency key takes no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyWindow(pub Duration);

/// Where logs and traces go.
#[derive(Debug, Clone)]
pub struct TelemetrySettings {
    /// The log filter's directives.
    pub filter: String,
    /// How log lines look.
    pub format: LogFormat,
    /// The OTLP endpoint, if traces are wanted.
    pub otlp_endpoint: Option<String>,
    /// `OTEL_SERVICE_NAME`, if it is set.
    pub service_name: Option<String>,
}

impl ServiceSettings {
    /// Reads them; `None` when something is faulty.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let database = DatabaseSettings::read(reader);
        let direct = given_direct_url(reader);
        let control = url_of(reader, &DATABASE_CONTROL_URL, &DATABASE_CONTROL_URL_FILE).or(direct);
        let budget = reader.parse(&DATABASE_CONNECTION_BUDGET, connection_budget);
        let broker = BrokerSettings::read(reader);
        let retention = Retention::read(reader);
        let window = IdempotencyWindow::read(reader);
        if let (Some(retention), Some(window)) = (retention, window)
            && window.0 > retention.0
        {
            // A retry is answered with the first outcome, so that must still be there.
            let hours = |length: Duration| length.as_secs() / 3600;
            let (given, most) = (hours(window.0), hours(retention.0));
            let problem = format!("{given} hours exceed COMMAND_RETENTION_DAYS; expected at most {most}");
            reader.fault(&IDEMPOTENCY_WINDOW_HOURS, problem);
        }
        let finish = reader.millis(&STOP_DEADLINE_MS, 100..=300_000);
        let telemetry = TelemetrySettings::read(reader);
        let database = database?;
        let control = control.map(|url| DatabaseSettings { url, ..database });
        Some(Self {
            control: control.unwrap_or_else(|| database.clone()),
            database,
            budget,
            broker: broker?,
            retention: retention?,
            idempotency_window: window?,
            graces: Graces { drain: Duration::ZERO, finish: finish? },
            telemetry: telemetry?,
        })
    }
}

impl Retention {
    /// Reads it; `None` when it is faulty.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let days = reader.number(&COMMAND_RETENTION_DAYS, 1..=3650_u64)?;
        Some(Self(Duration::from_hours(days * 24)))
    }
}

impl IdempotencyWindow {
    /// Reads it; `None` when it is faulty.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let hours = reader.number(&IDEMPOTENCY_WINDOW_HOURS, 1..=720_u64)?;
        Some(Self(Duration::from_hours(hours)))
    }
}

impl DatabaseSettings {
    /// For what needs a session of its own: past the pooler, if there is one.
    pub fn read_direct(reader: &mut Reader) -> Option<Self> {
        let settings = Self::read(reader);
        let direct = given_direct_url(reader);
        settings.map(|settings| Self { url: direct.unwrap_or(settings.url), ..settings })
    }

    /// Reads them; `None` when something is faulty.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        for ambient in AMBIENT.iter().filter(|variable| reader.raw(variable.name).is_some()).collect::<Vec<_>>() {
            reader.fault(ambient, "is set, and the client library would heed it; unset it, and say it in DATABASE_URL");
        }
        let url = url_of(reader, &DATABASE_URL, &DATABASE_URL_FILE);
        let most = reader.number(&DATABASE_POOL_MAX, 1..=MOST_CONNECTIONS);
        Some(Self { url: url?, connections: most?.into() })
    }
}

impl BrokerSettings {
    /// Reads them; `None` when something is faulty.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let url = reader.secret(&AMQP_URL, &AMQP_URL_FILE, amqp_url);
        let prefix = reader.parse(&BROKER_PREFIX, |text| {
            let fits = text.len() <= 100 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            if fits { Ok(text.to_owned()) } else { Err("use at most 100 of a-z, A-Z, 0-9, \".\", \"_\", \"-\"") }
        });
        let partitions = reader.number(&PARTITIONS, 1..=1024);
        Some(Self {
            url: url?,
            file: reader.secret_file(&AMQP_URL_FILE),
            prefix: prefix.unwrap_or_default(),
            partitions: partitions.unwrap_or(DEFAULT_PARTITIONS),
        })
    }
}

impl TelemetrySettings {
    fn read(reader: &mut Reader) -> Option<Self> {
        let filter = reader.parse(&LOG, |text| log_filter(text).map(|_| text.to_owned()));
        let format = reader
            .choice(&LOG_FORMAT, &[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)]);
        let endpoint = reader.parse(&OTEL_EXPORTER_OTLP_ENDPOINT, |text| match Url::parse(text) {
            Ok(url) if url.scheme() == "http" && url.has_host() => Ok(text.to_owned()),
            Ok(_) => Err("expected http:// and a host, such as a collector on this machine".to_owned()),
            Err(fault) => Err(fault.to_string()),
        });
        let service_name = reader.parse(&OTEL_SERVICE_NAME, |text| Ok::<_, String>(text.to_owned()));
        Some(Self { filter: filter?, format: format?, otlp_endpoint: endpoint, service_name })
    }
}

/// Reads a budget: a number, or the name of a plan.
fn connection_budget(text: &str) -> Result<u16, String> {
    if let Some((_, budget)) = PLANS.iter().find(|(name, _)| *name == text) {
        return Ok(*budget);
    }
    let names: Vec<_> = PLANS.iter().map(|(name, _)| *name).collect();
    let expected = || format!("expected a number from 6 to {MOST_CONNECTIONS}, or {}", names.join(", "));
    let number = text.parse().map_err(|_| format!("{text:?} is unknown; {}", expected()))?;
    if (6..=MOST_CONNECTIONS).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is out of range; {}", expected()))
    }
}

/// A database's URL, which goes on being read where it stands in a file.
fn url_of(reader: &mut Reader, variable: &Variable, file: &Variable) -> Option<DatabaseUrl> {
    let url = reader.secret(variable, file, database_url)?;
    Some(url.in_file(reader.secret_file(file)))
}

/// The database's URL, if the environment gives one; a fault is noted.
pub fn given_database_url(reader: &mut Reader) -> Option<DatabaseUrl> {
    let variable = Variable { required: false, ..DATABASE_URL };
    url_of(reader, &variable, &DATABASE_URL_FILE)
}

/// The database's URL past the pooler, if the environment gives one; a fault is noted.
pub fn given_direct_url(reader: &mut Reader) -> Option<DatabaseUrl> {
    url_of(reader, &DATABASE_URL_DIRECT, &DATABASE_URL_DIRECT_FILE)
}

/// The broker's URL, if the environment gives one; a fault is noted.
pub fn given_amqp_url(reader: &mut Reader) -> Option<SecretString> {
    let variable = Variable { required: false, ..AMQP_URL };
    reader.secret(&variable, &AMQP_URL_FILE, amqp_url)
}
