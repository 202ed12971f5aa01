//! What the API reads from its environment, and refuses.

use std::time::Duration;

use common::config::Reader;
use common::health::ReadyWhen;
use jsonwebtoken::Algorithm;
use rollcall_api::auth::settings::{KeySource, TokenType};
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
        (&[("AUTH", "local")], "0.0.0.0:8080"),
        (&[("AUTH", "none"), ("PORT", "80")], "0.0.0.0:80"),
        (&[("AUTH", "none"), ("HOST", "0.0.0.0")], "0.0.0.0:8080"),
        (&[("AUTH", "none"), ("HOST", "127.0.0.1")], "127.0.0.1:8080"),
        (&[("AUTH", "none"), ("HOST", "::")], "[::]:8080"),
        (&[("AUTH", "keys")], "0.0.0.0:8080"),
        (&[("AUTH", "keys"), ("HOST", "10.0.0.1")], "10.0.0.1:8080"),
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

const TOKENS: &[(&str, &str)] = &[
    ("AUTH", "keys,jwt"),
    ("AUTH_JWT_ISSUER", "https://login.example.org/"),
    ("AUTH_JWT_AUDIENCE", "rollcall"),
    ("AUTH_JWKS", "/etc/rollcall/keys.json"),
];

#[test]
fn who_is_served_is_said_in_so_many_words() {
    let jwt = [&TOKENS[1..], &[("AUTH", "jwt")]].concat();
    let both = [&TOKENS[1..], &[("AUTH", "jwt, keys")]].concat();
    let rows = [
        (&[][..], false, false, true),
        (&[("AUTH", "local")], false, false, true),
        (&[("AUTH", "none")], false, false, false),
        (&[("AUTH", "keys")], true, false, false),
        (TOKENS, true, true, false),
        (&jwt, false, true, false),
        (&both, true, true, false),
    ];
    for (variables, keys, tokens, local) in rows {
        let auth = read(variables).unwrap_or_else(|faults| panic!("{variables:?}: {faults}")).auth;
        assert_eq!((auth.keys, auth.tokens.is_some(), auth.local.is_some()), (keys, tokens, local), "{variables:?}");
    }
    for mixed in ["local,keys", "none,jwt", "keys,keys", "all"] {
        read(&[("AUTH", mixed)]).expect_err(mixed);
    }
    let tokens = read(TOKENS).expect("tokens").auth.tokens.expect("tokens");
    assert_eq!(tokens.algorithms, [Algorithm::RS256, Algorithm::ES256]);
    assert_eq!(tokens.keys, KeySource::File("/etc/rollcall/keys.json".into()));
}

#[test]
fn a_setting_of_tokens_that_is_missing_or_would_be_ignored_is_a_fault() {
    let faults = read(&[("AUTH", "jwt")]).expect_err("nothing of what it needs");
    for name in ["AUTH_JWT_ISSUER", "AUTH_JWT_AUDIENCE", "AUTH_JWKS"] {
        assert!(faults.contains(&format!("\n  {name}: is not set")), "{faults}");
    }
    for auth in [&[][..], &[("AUTH", "none")], &[("AUTH", "keys")]] {
        let faults = read(&[auth, &[("AUTH_JWT_ISSUER", "x"), ("AUTH_JWT_ALGORITHMS", "RS256")]].concat());
        let faults = faults.expect_err("what would be ignored");
        assert!(faults.contains("2 fault(s)") && faults.contains("AUTH_JWT_ISSUER: is set, but AUTH"), "{faults}");
    }
}

#[test]
fn no_algorithm_that_a_verifier_could_sign_with_is_accepted() {
    let with = |algorithms: &str| read(&[TOKENS, &[("AUTH_JWT_ALGORITHMS", algorithms)]].concat());
    let all = "RS256,RS384,RS512,PS256,PS384,PS512,ES256,ES384,EdDSA";
    assert_eq!(with(all).expect("all").auth.tokens.expect("tokens").algorithms.len(), 9);
    for algorithms in ["HS256", "RS256,HS512", "none", "NONE", "rs256", "RS256,", "ES256K", "*"] {
        let faults = with(algorithms).expect_err(algorithms);
        assert!(
            faults.contains("1 fault(s)") && faults.contains("\n  AUTH_JWT_ALGORITHMS: "),
            "{algorithms}: {faults}"
        );
    }
}

#[test]
fn the_issuers_keys_come_over_https_or_from_this_machine() {
    let with = |jwks: &str| read(&[TOKENS, &[("AUTH_JWKS", jwks)]].concat());
    for jwks in [
        "https://login.example.org/keys",
        "http://127.0.0.1:9000/keys",
        "http://[::1]/keys",
        "http://localhost/keys",
        "keys.json",
    ] {
        with(jwks).unwrap_or_else(|faults| panic!("{jwks}: {faults}"));
    }
    for jwks in [
        "http://login.example.org/keys",
        "http://10.0.0.1/keys",
        "http://localhost.example.org/keys",
        "file:///etc/keys.json",
        "ftp://login.example.org/keys",
        "https://ada:hush@login.example.org/keys",
        "https://",
    ] {
        let faults = with(jwks).expect_err(jwks);
        assert!(
            faults.contains("1 fault(s)") && faults.contains("\n  AUTH_JWKS: ") && !faults.contains("hush"),
            "{faults}"
        );
    }
    let open = [("AUTH_JWKS", "http://login.example.org/keys"), ("PLAINTEXT_HOSTS", "login.example.org")];
    let exposures = read(&[TOKENS, &open].concat()).expect("written out").service.exposures;
    assert_eq!(exposures.iter().map(|exposure| exposure.setting).collect::<Vec<_>>(), ["AUTH_JWKS"]);
    for (jwks, problem) in [
        ("https://login.example.org/keys", "names a file that cannot be read"),
        ("keys.json", "AUTH_JWKS is no https URL"),
    ] {
        let own = [("AUTH_JWKS", jwks), ("AUTH_JWKS_CA_FILE", "/none")];
        let faults = read(&[TOKENS, &own].concat()).expect_err(jwks);
        assert!(faults.contains("AUTH_JWKS_CA_FILE: ") && faults.contains(problem), "{faults}");
    }
}

#[test]
fn the_types_of_tokens_are_access_tokens_unless_others_are_written() {
    let with = |types: &str| read(&[TOKENS, &[("AUTH_JWT_TYPES", types)]].concat());
    let types = |settings: ApiSettings| settings.auth.tokens.expect("tokens").types;
    let named = |text: &str| TokenType::parse(text).expect("a type");
    assert_eq!(types(read(TOKENS).expect("tokens")), [named("at+jwt")]);
    let several = types(with("application/at+jwt, JWT,none").expect("three"));
    assert_eq!(several, [named("at+jwt"), named("jwt"), named("none")]);
    for wrong in ["at+jwt,", "at jwt", "at+jwt;x=1", "\"JWT\""] {
        let faults = with(wrong).expect_err(wrong);
        assert!(faults.contains("1 fault(s)") && faults.contains("\n  AUTH_JWT_TYPES: "), "{wrong}: {faults}");
    }
    let ignored = read(&[("AUTH", "keys"), ("AUTH_JWT_TYPES", "JWT")]).expect_err("no tokens");
    assert!(ignored.contains("AUTH_JWT_TYPES: is set, but AUTH"), "{ignored}");
}

/// The attack: any page of the web read and changed the directory.
#[test]
fn every_page_is_let_in_only_where_somebody_has_to_log_in() {
    const EVERY: (&str, &str) = ("CORS_ORIGINS", "*");
    for auth in [&[][..], &[("AUTH", "local")]] {
        let faults = read(&[auth, &[EVERY]].concat()).expect_err("every page");
        assert!(faults.contains("1 fault(s)") && faults.contains("\n  CORS_ORIGINS: is *, and nobody"), "{faults}");
        read(&[auth, &[("CORS_ORIGINS", "https://desk.example.org")]].concat()).expect("a page that is listed");
    }
    read(&[("AUTH", "keys"), EVERY]).expect("a page has no key");
    read(&[("AUTH", "none"), EVERY]).expect("everybody from everywhere, as it says");
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
        ("AUTH", "none,keys"),
        ("AUTH", "keys,keys"),
        ("AUTH", "keys,"),
        ("READY_WHEN", "some"),
        ("LOG", "inof"),
        ("LOG", "info,rollcall_wroker=debug"),
        ("KEEP_ALIVE_SECONDS", "0"),
        ("LISTEN_DELAY_MS", "300001"),
        ("DRAIN_DELAY_MS", "300001"),
    ];
    for (name, value) in rows {
        let faults = read(&[(name, value)]).expect_err(name);
        assert!(faults.contains("1 fault(s)") && faults.contains(&format!("\n  {name}: ")), "{name}={value}: {faults}");
        let wrong = value.trim_start_matches('-').trim_start_matches("info,").trim_end_matches("=debug");
        assert!(faults.contains(wrong), "{name}={value}: {faults}");
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
fn idle_connections_and_stops_outlast_the_load_balancer() {
    let settings = read(&[]).expect("settings");
    assert_eq!(settings.limits.keep_alive, Duration::from_secs(620));
    assert_eq!(
        (settings.service.graces.drain, settings.listen_delay),
        (Duration::from_secs(10), Duration::from_secs(10))
    );
    let settings = read(&[("KEEP_ALIVE_SECONDS", "5"), ("DRAIN_DELAY_MS", "0"), ("LISTEN_DELAY_MS", "7")]);
    let settings = settings.expect("settings");
    assert_eq!(settings.limits.keep_alive, Duration::from_secs(5));
    assert_eq!((settings.service.graces.drain, settings.listen_delay), (Duration::ZERO, Duration::from_millis(7)));
    assert!(rollcall_api::settings::help().contains("\n  DRAIN_DELAY_MS [default 10000]"));
}

#[test]
fn a_token_may_be_as_long_as_is_said() {
    let with = |bytes: &str| read(&[TOKENS, &[("AUTH_JWT_MAX_BYTES", bytes)]].concat());
    assert_eq!(read(TOKENS).expect("tokens").auth.tokens.expect("tokens").longest, 16_384);
    assert_eq!(with("65536").expect("tokens").auth.tokens.expect("tokens").longest, 65_536);
    for bytes in ["1023", "65537", "x"] {
        assert!(with(bytes).expect_err(bytes).contains("\n  AUTH_JWT_MAX_BYTES: "), "{bytes}");
    }
}

#[test]
fn the_help_names_every_variable_once() {
    let help = rollcall_api::settings::help();
    for name in ["DATABASE_URL", "AMQP_URL", "HOST", "PORT", "AUTH", "AUTH_JWKS", "READY_WHEN"] {
        assert_eq!(help.matches(&format!("\n  {name} [")).count(), 1, "{name}");
    }
}
