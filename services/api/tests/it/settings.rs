//! What the API reads from its environment, and refuses.

use common::config::Reader;
use common::health::ReadyWhen;
use rollcall_api::settings::ApiSettings;

const NEEDED: &[(&str, &str)] =
    &[("DATABASE_URL", "postgres://rollcall:hush@127.0.0.1/rollcall"), ("AMQP_URL", "amqp://rollcall:hush@127.0.0.1")];

fn read(variables: &[(&str, &str)]) -> Result<ApiSettings, String> {
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    ApiSettings::read(Reader::new([own(NEEDED), own(variables)].concat())).map_err(|faults| faults.to_string())
}

#[test]
fn it_listens_where_it_is_told_and_on_loopback_otherwise() {
    let rows: &[(&[(&str, &str)], &str)] = &[
        (&[], "127.0.0.1:8080"),
        (&[("PORT", "9000")], "127.0.0.1:9000"),
        (&[("PORT", "0")], "127.0.0.1:0"),
        (&[("HOST", "127.0.0.2")], "127.0.0.2:8080"),
        (&[("HOST", "::1")], "[::1]:8080"),
        (&[("HOST", "")], "127.0.0.1:8080"),
        (&[("AUTH", "none")], "0.0.0.0:8080"),
        (&[("AUTH", "none"), ("PORT", "80")], "0.0.0.0:80"),
        (&[("AUTH", "none"), ("HOST", "0.0.0.0")], "0.0.0.0:8080"),
        (&[("AUTH", "none"), ("HOST", "127.0.0.1")], "127.0.0.1:8080"),
        (&[("AUTH", "none"), ("HOST", "::")], "[::]:8080"),
    ];
    for (variables, expected) in rows {
        let listen = read(variables).map(|settings| settings.listen.to_string());
        assert_eq!(listen, Ok((*expected).to_owned()), "{variables:?}");
    }
}

#[test]
fn other_machines_are_served_only_when_that_is_meant() {
    for host in ["0.0.0.0", "::", "10.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"] {
        let faults = read(&[("HOST", host)]).expect_err(host);
        assert!(faults.contains("HOST: ") && faults.contains("AUTH=none"), "{faults}");
    }
}

#[test]
fn a_value_that_cannot_be_used_is_named() {
    let rows = [
        ("HOST", "localhost"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("AUTH", "None"),
        ("AUTH", "basic"),
        ("READY_WHEN", "some"),
    ];
    for (name, value) in rows {
        let faults = read(&[(name, value)]).expect_err(name);
        assert!(faults.contains("1 fault(s)") && faults.contains(&format!("\n  {name}: ")), "{name}={value}: {faults}");
        assert!(faults.contains(value.trim_start_matches('-')), "{name}={value}: {faults}");
    }
}

#[test]
fn all_faults_are_told_at_once_and_no_secret_with_them() {
    let variables = [
        ("DATABASE_URL", "mysql://rollcall:hush@127.0.0.1/rollcall"),
        ("AMQP_URL", "http://rollcall:hush@127.0.0.1"),
        ("HOST", "0.0.0.0"),
        ("PORT", "x"),
        ("AUTH", "yes"),
        ("READY_WHEN", "never"),
        ("PARTITIONS", "0"),
    ];
    let faults = read(&variables).expect_err("seven faults");
    assert!(faults.contains("7 fault(s)"), "{faults}");
    for (name, _) in variables {
        assert!(faults.contains(&format!("\n  {name}: ")), "{name} in {faults}");
    }
    assert!(!faults.contains("hush"), "{faults}");
}

#[test]
fn it_is_ready_when_all_holds_unless_told_otherwise() {
    for (variables, expected) in [
        (&[][..], ReadyWhen::All),
        (&[("READY_WHEN", "all")], ReadyWhen::All),
        (&[("READY_WHEN", "any")], ReadyWhen::Any),
    ] {
        assert_eq!(read(variables).map(|settings| settings.ready_when), Ok(expected));
    }
}

#[test]
fn the_help_names_every_variable_once() {
    let help = rollcall_api::settings::help();
    for name in ["DATABASE_URL", "AMQP_URL", "HOST", "PORT", "AUTH", "READY_WHEN"] {
        assert_eq!(help.matches(&format!("\n  {name} [")).count(), 1, "{name}");
    }
}
