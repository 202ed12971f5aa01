//! `rollcall torture bench`, with the workloads that need neither wrk nor Node.js. No figure is looked at: they depend on the
//! machine.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["torture", "bench"])
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("AMQP_URL")
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn each_workload_has_figures_and_the_report_is_written() {
    let workloads = ["waited-paced", "raw-insert", "raw-batches", "raw-publishes"];
    let short = ["--rounds", "2", "--seconds", "1", "--warm-up", "0", "--users", "100", "--connections", "4"];
    let folder = tempfile::tempdir().unwrap();
    let output = bench(&[&short[..], &["--statements", "--only", &workloads.join(",")]].concat(), folder.path());
    let (shown, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}\n{complaint}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join("bench").join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("bench.json")).unwrap();
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    for workload in workloads {
        let samples = report["samples"][workload].as_array().unwrap();
        let rounds: Vec<_> = samples.iter().map(|sample| sample["round"].as_u64()).collect();
        assert_eq!(rounds, [Some(1), Some(2)], "{workload}");
        for sample in samples {
            assert!(sample["per_second"].as_f64() > Some(0.0), "{workload}: {sample}");
            assert!(sample["cpu_us"]["postgresql"].is_number(), "{workload}: {sample}");
            assert!(sample["memory_mib"]["rabbitmq"].as_f64() > Some(0.0), "{workload}: {sample}");
        }
        assert!(report["summary"][workload]["per_second"]["median"].is_number(), "{workload}");
    }
    let waited = &report["samples"]["waited-paced"][0];
    for each in ["transactions", "statements", "wal_bytes"] {
        assert!(waited["database"][each].as_f64() > Some(0.0), "{each}: {waited}");
    }
    assert!(waited["p99_ms"].as_f64() > Some(0.0) && waited["memory_mib"]["worker"].as_f64() > Some(0.0), "{waited}");
    let page = read("bench.md");
    for title in ["Rollcall: waited create, 200 per second", "pgbench: insert one row", "## Targets", "a debug build"] {
        assert!(page.contains(title), "{title}\n{page}");
    }
    for plot in ["rates.svg", "cpu.svg"] {
        assert!(read(plot).ends_with("</svg>\n"), "{plot}");
    }
}

#[test]
fn senseless_flags_are_refused() {
    let faults = [
        (vec!["--rounds", "0"], "0 is not in 1..=100"),
        (vec!["--seconds", "0"], "0 is not in 1..=600"),
        (vec!["--connections", "1"], "1 is not in 2..=10000"),
        (vec!["--users", "0"], "0 is not in 1..=100000000"),
        (vec!["--only", "everything"], "express-read, express-insert"),
        (vec!["--set", "PARTITIONS"], "must be NAME=VALUE, for example PARTITIONS=2"),
        (vec!["--rounds", "2", "growth"], "cannot be used with"),
        (vec!["growth", "--partitions", "0"], "0 is not in 1..=256"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (arguments, reason) in faults {
        let output = bench(&arguments, folder.path());
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(reason), "{arguments:?}: {complaint}");
    }
}
