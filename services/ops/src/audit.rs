//! Audit lines of operators' commands that change something for everybody: who, from where, what.
//!
//! # Why the log of the database's server?
//! All of these commands change that database, so the line is where the change is, with the server's time and the session's
//! role, collected as that log is, and out of reach of the account that ran the command. It is written before anything is
//! changed: a change without a line cannot be, a line without a change is an attempt. What came of it is in the tables.
//!
//! The account of the operating system is what the client says. What the server knows by itself is the role.

use std::fs;

use anyhow::Context;
use common::config::Reader;
use rustix::process::getuid;
use rustix::system::uname;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

/// A message of level LOG reaches the log with the server's defaults. A statement of this kind takes no parameters; the log
/// repeats it behind the line.
const RAISE: &str = "DO $$ BEGIN RAISE LOG 'rollcall audit: %', current_setting('rollcall.audit')::jsonb || \
                     jsonb_build_object('role', session_user); END $$";

/// Writes the line. `details` must have no personal data in it.
pub(crate) async fn record(conn: &mut PgConnection, action: &str, details: Value) -> anyhow::Result<()> {
    let line = json!({ "action": action, "details": details, "by": operator() }).to_string();
    let context = "nothing was done: the audit line cannot be written";
    let mut tx = conn.begin().await.context(context)?;
    sqlx::query_scalar!("SELECT set_config('rollcall.audit', $1, true)", line)
        .fetch_one(&mut *tx)
        .await
        .context(context)?;
    sqlx::raw_sql(RAISE).execute(&mut *tx).await.context(context)?;
    tx.commit().await.context(context)
}

/// The account that runs this process, and the machine.
fn operator() -> Value {
    let uid = getuid().as_raw();
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let host = uname().nodename().to_string_lossy().into_owned();
    let reader = Reader::from_process();
    json!({ "uid": uid, "user": name(&accounts, uid), "sudo_user": reader.raw("SUDO_USER"), "host": host })
}

/// The name of an account in the text of /etc/passwd; none when another directory has it.
fn name(accounts: &str, uid: u32) -> Option<&str> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn an_account_is_named_by_its_number() {
        let accounts = "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000:,,,:/home/ada:/bin/sh\n";
        assert_eq!((name(accounts, 1000), name(accounts, 0), name(accounts, 10)), (Some("ada"), Some("root"), None));
    }
}
