//! The worker's own settings.

use common::config::Reader;
use rollcall_worker::settings::{OWN, WorkerSettings, help};

fn read(variables: &[(&str, &str)]) -> Result<WorkerSettings, String> {
    let shared = [
        ("DATABASE_URL", "postgres://rollcall:hunter2@127.0.0.1:5432/rollcall"),
        ("AMQP_URL", "amqp://rollcall:hunter2@127.0.0.1:5672/%2f"),
    ];
    let all = shared.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    WorkerSettings::read(Reader::new(all)).map_err(|faults| faults.to_string())
}

#[test]
fn the_worker_has_defaults_for_its_own() {
    let settings = read(&[]).expect("settings");
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(settings.batch, 200);
    // Nothing is sent to a worker that would have to be sent elsewhere first.
    assert_eq!(settings.service.graces.drain, std::time::Duration::ZERO);
    assert!(!help().contains("DRAIN_DELAY_MS"));
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn faults_of_shared_and_own_variables_are_reported_together() {
    let faults =
        read(&[("WORKER_LISTEN", "localhost"), ("WORKER_BATCH", "0"), ("PARTITIONS", "0")]).expect_err("faults");
    for name in ["WORKER_LISTEN", "WORKER_BATCH", "PARTITIONS"] {
        assert!(faults.contains(name), "{name} in {faults}");
    }
}

#[test]
fn every_own_example_is_valid_and_in_the_help() {
    let variables: Vec<(&str, &str)> = OWN.iter().map(|variable| (variable.name, variable.example)).collect();
    read(&variables).expect("settings");
    for variable in OWN {
        assert!(help().contains(variable.name));
    }
}
