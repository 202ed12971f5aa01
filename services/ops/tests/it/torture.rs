//! `rollcall torture`, for less than a minute.

use std::process::{Command, Output};

fn torture(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("torture")
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("AMQP_URL")
        .output()
        .unwrap()
}

#[test]
fn every_promise_is_kept_under_torture() {
    let output = torture(&["--minutes", "0.75", "--seed", "7", "--workers", "3", "--clients", "8"]);
    let report = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{complaint}");
    assert!(report.contains("every promise was kept"), "{report}");
    let figure = |name: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|figure| figure.parse::<u64>().ok())
    };
    assert!(figure("accepted") > Some(100) && figure("faults") > Some(5), "{report}");
    assert!(figure("letters").is_some(), "{report}");
    for kind in ["lost", "twice", "reordered", "wrong", "unfenced", "stuck"] {
        assert_eq!(figure(kind), Some(0), "{kind}\n{report}");
    }
}

#[test]
fn senseless_flags_are_refused() {
    let faults = [
        (["--minutes", "0"], "above 0"),
        (["--minutes", "soon"], "not a number of minutes"),
        (["--minutes", "NaN"], "above 0"),
        (["--apis", "0"], "0 is not in 1..=100"),
        (["--workers", "0"], "0 is not in 1..=100"),
        (["--clients", "101"], "101 is not in 1..=100"),
        (["--seed", "-1"], "unexpected argument"),
        #[cfg(not(feature = "mutants"))]
        (["--mutant", "fence"], "unexpected argument"),
    ];
    for (arguments, reason) in faults {
        let output = torture(&arguments);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains(reason), "{arguments:?}: {complaint}");
    }
}
