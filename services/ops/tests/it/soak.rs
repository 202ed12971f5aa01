//! `rollcall torture budget`, for less than a minute. Times are not looked at: they depend on the machine.

use std::process::{Command, Output};

fn soak(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["torture", "budget"])
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("AMQP_URL")
        .output()
        .unwrap()
}

#[test]
fn the_budget_holds_while_instances_come_go_and_fail() {
    let output = soak(&["--events", "24", "--seed", "3", "--instances", "8"]);
    let report = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{complaint}");
    assert!(report.contains("the budget held"), "{report}");
    let figure = |name: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start().split([' ', ',']).next().and_then(|figure| figure.parse::<u64>().ok())
    };
    assert_eq!(figure("events"), Some(24), "{report}");
    assert!(figure("samples") > Some(500) && figure("requests") > Some(100), "{report}");
    for finding in ["over", "refused", "unwell"] {
        assert_eq!(figure(finding), Some(0), "{finding}\n{report}");
    }
}

#[test]
fn senseless_flags_are_refused() {
    let faults = [
        (vec!["--events", "0"], "0 is not in 1..=1000000"),
        (vec!["--instances", "3"], "3 is not in 4..=40"),
        (vec!["--instances", "41"], "41 is not in 4..=40"),
        (vec!["--minutes", "1"], "unexpected argument"),
        #[cfg(not(feature = "mutants"))]
        (vec!["--mutant", "blind"], "unexpected argument"),
    ];
    for (arguments, reason) in faults {
        let output = soak(&arguments);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(reason), "{arguments:?}: {complaint}");
    }
}
