//! `rollcall torture`, for about a minute each time.

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

/// Nothing was broken; gives a look at the figures of the report.
fn kept(output: &Output) -> impl Fn(&str) -> Option<u64> {
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}\n{complaint}");
    assert!(report.contains("every promise was kept"), "{report}");
    let figure = move |name: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|figure| figure.parse::<u64>().ok())
    };
    for kind in ["lost", "twice", "reordered", "wrong", "unfenced", "stuck", "admitted"] {
        assert_eq!(figure(kind), Some(0), "{kind}");
    }
    figure
}

#[test]
fn every_promise_is_kept_under_torture() {
    let faults = "processes,servers,network,messages";
    let output = torture(&["--minutes", "0.75", "--seed", "7", "--workers", "3", "--clients", "8", "--faults", faults]);
    let figure = kept(&output);
    assert!(figure("accepted") > Some(100) && figure("faults") > Some(5));
    assert!(figure("letters").is_some());
}

/// Each of these faults comes, however slow the machine is.
#[test]
fn settings_clocks_policies_and_promotions_break_no_promise() {
    let faults = "settings,clocks,policies,standby";
    let output = torture(&["--rounds", "1", "--seed", "5", "--clients", "4", "--faults", faults]);
    let figure = kept(&output);
    assert_eq!(figure("faults"), Some(10));
    let report = String::from_utf8_lossy(&output.stdout);
    let line = report.lines().find(|line| line.starts_with("faults ")).unwrap_or_default();
    for name in ["settings differed 3", "commands expired 1", "commands expired to dead letters 1", "standby lost 1"] {
        assert!(line.contains(name), "{name}\n{report}");
    }
    assert!(line.contains("standby promoted 1") && line.contains("standby promoted that was behind 1"), "{report}");
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
        (["--rounds", "0"], "0 is not in 1..=1000"),
        (["--faults", "floods"], "processes, servers, network, messages, settings, clocks, policies, standby"),
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
