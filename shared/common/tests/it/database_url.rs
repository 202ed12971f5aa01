//! What a database URL may say: accepted, or refused by name and without its values.

use std::path::Path;

use proptest::prelude::*;
use rollcall_common::config::database_url;
use secrecy::ExposeSecret;

/// Files that hold what their names say.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, holds) in [("ca.pem", "CERTIFICATE"), ("cert.pem", "CERTIFICATE"), ("key.pem", "PRIVATE KEY")] {
        let text = format!("-----BEGIN {holds}-----\nAA==\n-----END {holds}-----\n");
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    std::fs::write(folder.path().join("empty.pem"), "").expect("a file");
    folder
}

fn filled(folder: &Path, url: &str) -> String {
    url.replace("DIR", folder.to_str().expect("UTF-8"))
}

#[test]
fn what_is_known_is_accepted() {
    let folder = folder();
    for (reason, url) in [
        ("the usual", "postgres://u:p@h:5432/d"),
        ("the other scheme", "postgresql://h/d"),
        ("a public authority", "postgres://u@h/d?sslmode=verify-full"),
        ("an authority of one's own", "postgres://u@h/d?sslmode=verify-full&sslrootcert=DIR/ca.pem"),
        ("an authority means verify-full", "postgres://u@h/d?sslrootcert=DIR/ca.pem"),
        ("a client's certificate", "postgres://u@h/d?sslmode=require&sslcert=DIR/cert.pem&sslkey=DIR/key.pem"),
        ("the system's authorities", "postgres://u@h/d?sslrootcert=system"),
        ("no proof, written out", "postgres://u@h/d?sslmode=require"),
        ("no TLS, written out", "postgres://u@h/d?sslmode=disable"),
        ("no TLS on loopback", "postgres://u@127.3.2.1/d?sslmode=disable"),
        ("no TLS on loopback by name", "postgres://u@localhost/d?sslmode=prefer"),
        ("no TLS on loopback of IPv6", "postgres://u@[::1]:5433/d?sslmode=disable"),
        ("a socket", "postgres://u@%2Fvar%2Frun%2Fpostgresql/d"),
        ("a socket as a parameter", "postgres:///d?host=/var/run/postgresql"),
        ("what is ours to decide", "postgres://h/d?application_name=x&connect_timeout=3&keepalives_idle=9"),
        ("what asks for nothing", "postgres://h/d?channel_binding=prefer&target_session_attrs=any&gssencmode=disable"),
        ("options of the session", "postgres://h/d?options=-c%20geqo%3Doff"),
    ] {
        let url = filled(folder.path(), url);
        assert_eq!(database_url(&url).unwrap_or_else(|fault| panic!("{reason}: {fault}")).expose(), url);
    }
}

#[test]
fn what_is_not_is_refused_by_name_and_without_values() {
    let folder = folder();
    for (reason, url, part) in [
        ("no URL", "hunter2", "is no URL"),
        ("another scheme", "http://u:hunter2@h/d", r#"the scheme "http""#),
        ("no database", "postgres://u:hunter2@h:5432", "names no database"),
        ("no database behind the slash", "postgres://u:hunter2@h:5432/", "names no database"),
        ("no port number", "postgres://u:hunter2@h:port/d", "is no URL"),
        ("no host", "postgres:///hunter2", "names no host"),
        ("several hosts", "postgres://u:hunter2@a,b/d", "several hosts"),
        ("two hosts", "postgres://h/d?host=hunter2", r#""host""#),
        ("a host as a parameter", "postgres:///d?host=hunter2", r#""host""#),
        ("a misspelt parameter", "postgres://u:hunter2@h/d?sslmod=hunter2", r#"unknown parameter "sslmod""#),
        ("a password as a parameter", "postgres://u@h/d?password=hunter2", r#"unknown parameter "password""#),
        ("one of two parameters", "postgres://h/d?sslmode=require&ssl=hunter2", r#"unknown parameter "ssl""#),
        ("a password with a question mark", "postgres://h/d?hunter2=1", "unknown parameter"),
        ("a parameter twice", "postgres://h/d?sslmode=require&sslmode=hunter2", r#""sslmode" twice"#),
        ("an unknown mode", "postgres://h/d?sslmode=hunter2", r#"unknown value in "sslmode""#),
        ("the system's authorities, not asked", "postgres://h/d?sslmode=require&sslrootcert=system", "sslrootcert"),
        ("perhaps TLS to elsewhere", "postgres://u:hunter2@10.0.0.1/d?sslmode=prefer", "not this machine"),
        ("a name that only begins like loopback", "postgres://127.0.0.1.h/d?sslmode=allow", "not this machine"),
        ("any authority, any name", "postgres://h/d?sslmode=verify-ca&sslrootcert=DIR/ca.pem", "verify-full"),
        ("an authority that nobody asks", "postgres://h/d?sslmode=require&sslrootcert=DIR/ca.pem", "sslrootcert"),
        ("an authority that is not there", "postgres://h/d?sslrootcert=DIR/hunter2", "cannot be read"),
        ("an authority without a certificate", "postgres://h/d?sslrootcert=DIR/empty.pem", "no CERTIFICATE"),
        ("half a client's certificate", "postgres://h/d?sslkey=DIR/hunter2", "sslcert"),
        ("a certificate for a key", "postgres://h/d?sslcert=DIR/cert.pem&sslkey=DIR/ca.pem", r#""sslkey""#),
        ("TLS on a socket", "postgres://%2Frun/d?sslmode=require", "socket"),
        ("what nobody here can do", "postgres://h/d?channel_binding=require", r#""channel_binding""#),
        ("what nobody here can do either", "postgres://h/d?gssencmode=require", r#""gssencmode""#),
    ] {
        let url = filled(folder.path(), url);
        let fault = database_url(&url).err().unwrap_or_else(|| panic!("accepted: {reason}"));
        assert!(fault.contains(part), "{reason}: {fault}");
        let secret = folder.path().to_str().expect("UTF-8");
        assert!(!fault.contains("hunter2") && !fault.contains(secret), "{reason}: {fault}");
    }
}

#[test]
fn another_role_has_a_url_of_its_own() {
    let url = database_url("postgres://admin:hunter2@h:5433/d?sslmode=verify-full").expect("a URL");
    let other = url.with_role("rollcall_api", "a b").expect("a URL");
    assert_eq!(other.expose_secret(), "postgres://rollcall_api:a%20b@h:5433/d?sslmode=verify-full");
    let read = database_url(other.expose_secret()).expect("a URL");
    assert_eq!(read.password().map(ExposeSecret::expose_secret), Some("a b"));
    let shown = format!("{read:?} {read:#?}");
    assert!(!shown.contains("a b") && !shown.contains("a%20b"), "{shown}");
}

proptest! {
    #[test]
    fn a_password_comes_through_whatever_is_in_it(password in "\\PC{1,20}") {
        let url = database_url("postgres://u@h/d").expect("a URL");
        let with_it = url.with_role("u", &password).expect("a URL");
        let read = database_url(with_it.expose_secret()).expect("a URL");
        prop_assert_eq!(read.password().map(ExposeSecret::expose_secret), Some(password.as_str()));
    }
}
