//! Settings from the environment: every fault at once, and no secret anywhere.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use proptest::prelude::*;
use rollcall_common::config::{
    Faults, IdempotencyWindow, Reader, Retention, SHARED, ServiceSettings, Variable, amqp_url, database_url, help,
    sample,
};
use rollcall_common::telemetry::LogFormat;
use secrecy::ExposeSecret;

const DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://rollcall:hunter2@db.example:5433/rollcall");
const BROKER: (&str, &str) = ("AMQP_URL", "amqps://rollcall:hunter2@mq.example:5673/%2f");

fn read(variables: &[(&str, &str)]) -> Result<ServiceSettings, Faults> {
    let mut reader = Reader::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let settings = ServiceSettings::read(&mut reader);
    reader.finish(settings)
}

#[test]
fn two_urls_are_all_that_must_be_set() {
    let settings = read(&[DATABASE, BROKER]).expect("settings");
    assert_eq!(settings.database.url.expose(), DATABASE.1);
    assert_eq!(settings.control.url.expose(), DATABASE.1);
    assert_eq!((settings.budget, settings.database.connections), (None, 20));
    assert_eq!(settings.broker.url.expose_secret(), BROKER.1);
    assert_eq!(settings.broker.prefix, "");
    assert_eq!(settings.broker.partitions, 16);
    assert_eq!(settings.retention, Retention(Duration::from_hours(30 * 24)));
    assert_eq!(settings.idempotency_window, IdempotencyWindow(Duration::from_hours(24)));
    assert_eq!(settings.graces.drain, Duration::ZERO, "only an API has a drain delay");
    assert_eq!(settings.graces.finish, Duration::from_secs(5));
    assert_eq!(settings.telemetry.filter, "info");
    assert_eq!(settings.telemetry.format, LogFormat::Auto);
    assert_eq!(settings.telemetry.otlp_endpoint, None);
    assert_eq!(settings.telemetry.service_name, None);
}

#[test]
fn every_setting_is_taken_from_its_variable() {
    let settings = read(&[
        DATABASE,
        BROKER,
        ("DATABASE_CONNECTION_BUDGET", "120"),
        ("DATABASE_POOL_MAX", "7"),
        ("BROKER_PREFIX", "staging."),
        ("PARTITIONS", "32"),
        ("COMMAND_RETENTION_DAYS", "2"),
        ("IDEMPOTENCY_WINDOW_HOURS", "48"),
        ("STOP_DEADLINE_MS", "2000"),
        ("LOG", "warn,rollcall_worker=debug"),
        ("LOG_FORMAT", "json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel.example:4317"),
        ("OTEL_SERVICE_NAME", "directory"),
    ])
    .expect("settings");
    assert_eq!((settings.budget, settings.database.connections), (Some(120), 7));
    assert_eq!((settings.broker.prefix.as_str(), settings.broker.partitions), ("staging.", 32));
    assert_eq!(settings.retention, Retention(Duration::from_hours(48)));
    assert_eq!(settings.idempotency_window, IdempotencyWindow(Duration::from_hours(48)));
    assert_eq!(settings.graces.finish, Duration::from_secs(2));
    assert_eq!(settings.telemetry.filter, "warn,rollcall_worker=debug");
    assert_eq!(settings.telemetry.format, LogFormat::Json);
    assert_eq!(settings.telemetry.otlp_endpoint.as_deref(), Some("https://otel.example:4317/"));
    assert_eq!(settings.telemetry.service_name.as_deref(), Some("directory"));
}

#[test]
fn an_empty_value_counts_as_not_set() {
    let settings = read(&[DATABASE, BROKER, ("PARTITIONS", ""), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
    assert_eq!(settings.expect("settings").broker.partitions, 16);
    let faults = read(&[("DATABASE_URL", ""), BROKER]).expect_err("no database").to_string();
    assert!(faults.contains("DATABASE_URL: is not set"), "{faults}");
}

#[test]
fn all_faults_are_reported_at_once_with_variable_fault_and_example() {
    let faults = read(&[
        ("DATABASE_URL", "mysql://rollcall:hunter2@db.example/rollcall"),
        ("DATABASE_CONNECTION_BUDGET", "plan-51"),
        ("DATABASE_POOL_MAX", "0"),
        ("BROKER_PREFIX", "a b"),
        ("PARTITIONS", "many"),
        ("COMMAND_RETENTION_DAYS", "-1"),
        ("IDEMPOTENCY_WINDOW_HOURS", "a day"),
        ("STOP_DEADLINE_MS", "1.5"),
        ("LOG", "rollcall=loud"),
        ("LOG_FORMAT", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel.example:4317"),
    ])
    .expect_err("faults");
    insta::assert_snapshot!(faults, @r#"
    the environment has 12 fault(s):
      DATABASE_URL: has the scheme "mysql"; expected postgres or postgresql; for example DATABASE_URL=postgres://rollcall:secret@127.0.0.1:5432/rollcall
      DATABASE_POOL_MAX: 0 is out of range; expected a whole number from 1 to 10000; for example DATABASE_POOL_MAX=20
      DATABASE_CONNECTION_BUDGET: "plan-51" is unknown; expected a number from 6 to 10000, or plan-50, plan-300, plan-1000; for example DATABASE_CONNECTION_BUDGET=plan-50
      AMQP_URL: is not set, and neither is AMQP_URL_FILE; for example AMQP_URL=amqp://rollcall:secret@127.0.0.1:5672/%2f
      BROKER_PREFIX: use at most 100 of a-z, A-Z, 0-9, ".", "_", "-"; for example BROKER_PREFIX=staging.
      PARTITIONS: "many" is no number; expected a whole number from 1 to 1024; for example PARTITIONS=16
      COMMAND_RETENTION_DAYS: "-1" is no number; expected a whole number from 1 to 3650; for example COMMAND_RETENTION_DAYS=30
      IDEMPOTENCY_WINDOW_HOURS: "a day" is no number; expected a whole number from 1 to 720; for example IDEMPOTENCY_WINDOW_HOURS=24
      STOP_DEADLINE_MS: "1.5" is no number; expected a whole number from 100 to 300000; for example STOP_DEADLINE_MS=5000
      LOG: "loud" is no level; expected one of off, error, warn, info, debug, trace; for example LOG=info
      LOG_FORMAT: "xml" is unknown; expected one of auto, json, text; for example LOG_FORMAT=auto
      OTEL_EXPORTER_OTLP_ENDPOINT: names no host; expected https:// and a host; for example OTEL_EXPORTER_OTLP_ENDPOINT=https://collector.example.org:4317
    "#);
}

#[test]
fn bounds_are_part_of_what_is_allowed() {
    let table = [
        ("DATABASE_CONNECTION_BUDGET", "6", "10000", "5", "10001"),
        ("DATABASE_POOL_MAX", "1", "10000", "0", "10001"),
        ("PARTITIONS", "1", "1024", "0", "1025"),
        ("COMMAND_RETENTION_DAYS", "1", "3650", "0", "3651"),
        ("IDEMPOTENCY_WINDOW_HOURS", "1", "720", "0", "721"),
        ("STOP_DEADLINE_MS", "100", "300000", "99", "300001"),
    ];
    for (name, lowest, highest, below, above) in table {
        for value in [lowest, highest] {
            assert!(read(&[DATABASE, BROKER, (name, value)]).is_ok(), "{name}={value} is refused");
        }
        for value in [below, above, "99999999999999999999999", " 7", "7 "] {
            let faults = read(&[DATABASE, BROKER, (name, value)]).expect_err(value).to_string();
            assert!(faults.contains(name), "{name}={value}: {faults}");
        }
    }
}

#[test]
fn a_plan_leaves_a_tenth_to_others() {
    for (plan, budget) in [("plan-50", 45), ("plan-300", 270), ("plan-1000", 900)] {
        let settings = read(&[DATABASE, BROKER, ("DATABASE_CONNECTION_BUDGET", plan)]).expect("settings");
        assert_eq!(settings.budget, Some(budget), "{plan}");
    }
}

#[test]
fn an_idempotency_window_beyond_the_retention_is_refused() {
    let (retention, window) = (("COMMAND_RETENTION_DAYS", "2"), ("IDEMPOTENCY_WINDOW_HOURS", "49"));
    let faults = read(&[DATABASE, BROKER, retention, window]).expect_err("longer than outcomes are kept").to_string();
    insta::assert_snapshot!(faults, @r"
    the environment has 1 fault(s):
      IDEMPOTENCY_WINDOW_HOURS: 49 hours exceed COMMAND_RETENTION_DAYS; expected at most 48; for example IDEMPOTENCY_WINDOW_HOURS=24
    ");
}

#[test]
fn both_schemes_of_the_broker_are_accepted() {
    for url in [
        "amqp://u:p@h:5672/%2f",
        "amqp://u:p,q@a,b:5672,127.0.0.1:5673/v?heartbeat=3",
        "amqp://a,b",
        "amqps://u:p@h",
        "amqp://h/v?heartbeat=10&connection_timeout=1000",
    ] {
        assert_eq!(amqp_url(url).expect(url).expose_secret(), url);
    }
}

#[test]
fn a_secret_can_stand_in_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (database, broker) = (file("database", &format!("{}\n", DATABASE.1)), file("broker", BROKER.1));
    let control = file("control", "postgres://control:hunter2@db.example/rollcall\r\n");
    let files = [("DATABASE_URL_FILE", database.as_str()), ("AMQP_URL_FILE", &broker)];
    let settings = read(&[&files[..], &[("DATABASE_CONTROL_URL_FILE", &control)]].concat()).expect("settings");
    assert_eq!(settings.database.url.expose(), DATABASE.1);
    assert_eq!(settings.broker.url.expose_secret(), BROKER.1);
    assert_eq!(settings.control.url.expose(), "postgres://control:hunter2@db.example/rollcall");

    let (empty, gone) = (file("empty", "\n"), folder.path().join("gone"));
    let (unusable, gone) = (file("unusable", "postgres://u:hunter2@h"), gone.to_str().expect("UTF-8"));
    for (variables, problem) in [
        (vec![DATABASE, BROKER, files[0]], "DATABASE_URL: is set, and so is DATABASE_URL_FILE; unset one of them"),
        (vec![DATABASE, BROKER, files[1]], "AMQP_URL: is set, and so is AMQP_URL_FILE"),
        (vec![BROKER], "DATABASE_URL: is not set, and neither is DATABASE_URL_FILE"),
        (vec![DATABASE, ("AMQP_URL_FILE", &empty)], "AMQP_URL_FILE: names a file that is empty"),
        (vec![BROKER, ("DATABASE_URL_FILE", gone)], "DATABASE_URL_FILE: names a file that cannot be read"),
        (vec![BROKER, ("DATABASE_URL_FILE", &unusable)], "DATABASE_URL_FILE: names no database"),
    ] {
        let faults = read(&variables).expect_err(problem).to_string();
        assert!(faults.contains(problem) && !faults.contains("hunter2"), "{faults}");
    }
}

#[test]
fn what_the_client_library_would_read_behind_our_back_is_refused() {
    for name in ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"] {
        let faults = read(&[DATABASE, BROKER, (name, "hunter2")]).expect_err(name).to_string();
        assert!(faults.contains(&format!("{name}: is set")) && !faults.contains("hunter2"), "{faults}");
    }
}

#[test]
fn unusable_broker_urls_are_refused_without_their_secrets() {
    let broker = [
        ("no URL", "hunter2", "is no URL"),
        ("another scheme", "http://u:hunter2@h/", r#"the scheme "http""#),
        ("no host", "amqp:hunter2", "names no host"),
        ("an empty host", "amqp:///hunter2", "names no host"),
        ("an IPv6 address, which the client would take for localhost", "amqp://u:hunter2@[2001:db8::1]/", "IPv6"),
        ("an unknown parameter", "amqps://u:hunter2@h/?verify=hunter2", r#"unknown parameter "verify""#),
        ("one of two parameters", "amqp://h/?heartbeat=5&certfile=hunter2", r#"unknown parameter "certfile""#),
        ("no number", "amqp://u:hunter2@h/?heartbeat=hunter2", "heartbeat"),
        ("one of several hosts", "amqp://u:hunter2@a:5672,/v", "is no URL (empty host)"),
        ("one of several ports", "amqp://u:hunter2@a:5672,b:hunter2/v", "is no URL"),
        ("a name of a parameter that is none", "amqp://u@h/v?hunter2!", r#"unknown parameter "…""#),
        ("an unknown mechanism", "amqp://u:hunter2@h/?auth_mechanism=hunter2", "auth_mechanism"),
    ];
    let broker = broker.map(|(reason, url, part)| (reason, amqp_url(url).map(|_| ()), part));
    for (reason, result, part) in broker {
        let fault = result.err().unwrap_or_else(|| panic!("accepted: {reason}"));
        assert!(fault.contains(part), "{reason}: {fault}");
        assert!(!fault.contains("hunter2"), "{reason}: {fault}");
    }
}

#[test]
fn a_reserved_character_in_a_password_is_told_to_be_encoded() {
    // Digits before it would be read as a port, and looked up with the user's name as host.
    for reserved in ['/', '?', '#'] {
        for password in
            [format!("12345{reserved}hunter2"), format!("hun@ter2{reserved}x"), format!("{reserved}hunter2")]
        {
            for (url, rest) in [("postgres", "h/d"), ("amqp", "h/v"), ("amqps", "h")] {
                let text = format!("{url}://u:{password}@{rest}");
                let fault = if url == "postgres" { database_url(&text).err() } else { amqp_url(&text).err() };
                let fault = fault.unwrap_or_else(|| panic!("accepted: {text}"));
                assert!(fault.contains("in a user name or password write / as %2F, ? as %3F, # as %23"), "{fault}");
                assert!(!fault.contains("12345") && !fault.contains("hunter2"), "{fault}");
            }
        }
    }
    for cut in ["postgres://u:p@h/d#b", "amqp://u:p@h/v#b"] {
        let fault = if cut.starts_with('p') { database_url(cut).err() } else { amqp_url(cut).err() };
        assert!(fault.as_ref().is_some_and(|fault| fault.contains("write # as %23")), "{cut}: {fault:?}");
    }
    for encoded in ["postgres://u:12345%2Fx%3F%23%40@h/d?application_name=a@b", "postgres://u@h/d"] {
        database_url(encoded).expect(encoded);
    }
}

#[test]
fn a_value_that_is_not_utf8_is_not_taken_for_unset() {
    let latin1 = || OsString::from_vec(b"hunter2\xff".to_vec());
    let given = |name: &str, value: OsString| (OsString::from(name), value);
    for name in ["DATABASE_POOL_MAX", "AMQP_URL", "DATABASE_CONTROL_URL_FILE", "LOG_FORMAT", "OTEL_SERVICE_NAME"] {
        let urls = [DATABASE, BROKER].map(|(name, value)| given(name, value.into()));
        let mut reader = Reader::of_os(urls.into_iter().chain([given(name, latin1()), given("OTHER", latin1())]));
        let settings = ServiceSettings::read(&mut reader);
        let faults = reader.finish(settings).expect_err(name).to_string();
        assert!(faults.contains("1 fault(s)") && faults.contains(&format!("\n  {name}: is not UTF-8")), "{faults}");
        assert!(!faults.contains("hunter2"), "{faults}");
    }
}

#[test]
fn no_secret_is_shown_by_settings_or_faults() {
    let settings = read(&[DATABASE, BROKER]).expect("settings");
    let shown = format!("{settings:?} {settings:#?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let faults = read(&[("DATABASE_URL", "postgres://u:hunter2@h"), ("AMQP_URL", "amqp://u:hunter2@h:x/")]);
    let faults = faults.expect_err("faults");
    let shown = format!("{faults} {faults:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn prefixes_that_a_queue_name_cannot_carry_are_refused() {
    let long = "x".repeat(101);
    let table = [
        ("a space", "a b"),
        ("a slash", "a/b"),
        ("a letter outside ASCII", "ä."),
        ("a wildcard of topic exchanges", "a.#"),
        ("101 characters", &long),
    ];
    for (reason, prefix) in table {
        assert!(read(&[DATABASE, BROKER, ("BROKER_PREFIX", prefix)]).is_err(), "accepted: {reason}");
    }
}

#[test]
fn every_shared_example_is_a_valid_value() {
    // A secret has one place only, and files of authorities are read.
    let read_elsewhere = |name: &str| name.ends_with("_FILE") || name.ends_with("_CERTIFICATE");
    let variables = SHARED.iter().filter(|variable| !read_elsewhere(variable.name));
    let variables: Vec<(&str, &str)> = variables.map(|variable| (variable.name, variable.example)).collect();
    read(&variables).expect("settings");
}

#[test]
fn help_and_sample_name_every_variable() {
    let variables: &[&Variable] = SHARED;
    let (help, sample) = (help(variables), sample(variables));
    for variable in variables {
        assert!(help.contains(&format!("\n  {} [", variable.name)), "{help}");
        let line = format!("{}={}", variable.name, variable.example);
        let line = if variable.required { format!("\n{line}\n") } else { format!("\n# {line}\n") };
        assert!(sample.contains(&line), "{sample}");
    }
}

proptest! {
    #[test]
    fn no_value_of_a_url_makes_a_panic_or_shows_a_password(rest in "\\PC{0,40}") {
        for scheme in ["postgres", "amqp", "amqps", "ftp"] {
            let text = format!("{scheme}://user:correcthorse@{rest}");
            for fault in [database_url(&text).err(), amqp_url(&text).err()].into_iter().flatten() {
                prop_assert!(!fault.contains("correcthorse"), "{}", fault);
            }
        }
    }
}
