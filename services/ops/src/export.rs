//! `rollcall export`: every user, as they all were at one moment.
//!
//! # Why the database and not the API?
//! Its pages are read one after the other while users change: a user can be missed or listed as it never was beside another.
//! One statement of the database sees one state, however long its rows take to be read, and keeps nobody waiting. It reads
//! one table, so the role for backups is enough. The rows are streamed; nothing holds them all.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, ensure};
use common::config::{DatabaseSettings, Reader};
use common::db;
use common::files::Draft;
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::import::Format;
use crate::output::note;
use crate::spreadsheet::{self, guard};

/// Nothing is written here; it takes as long as it takes; and whoever reads a pipe may pause longer than a server that vanished.
const SESSION: &str = "SET default_transaction_read_only = on; SET statement_timeout = 0; SET tcp_user_timeout = 0";

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`; the role for backups may do it.
///
/// The users come in the order of their addresses, so that two exports can be compared. `rollcall import` takes the file.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file to write, whole or not at all, or - for the standard output
    file: String,
    /// How to write it; otherwise the name of the file says so
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write CSV for a spreadsheet program, which runs a name such as =1+1: an apostrophe stands before cells that begin with
    /// = + - @ or an apostrophe. A last column, `spreadsheet`, marks the file, and an import takes them off
    #[arg(long)]
    spreadsheet: bool,
}

#[derive(Serialize)]
struct Row {
    email: String,
    name: String,
    status: String,
    id: Uuid,
    version: i64,
    #[serde(serialize_with = "instant")]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "instant")]
    updated_at: OffsetDateTime,
}

fn instant<S: serde::Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let format = Format::of(arguments.format, &arguments.file)?;
    let csv = format == Format::Csv;
    ensure!(csv || !arguments.spreadsheet, "--spreadsheet is for CSV; leave it out, or add --format csv");
    let mut reader = Reader::from_process();
    let database = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(database)?;
    let mut conn = db::connect(&settings, "rollcall-export").await?;
    sqlx::raw_sql(SESSION).execute(&mut conn).await?;
    let count = if arguments.file == "-" {
        let output = write(&mut conn, io::stdout().lock(), format, arguments.spreadsheet).await;
        output.context("the standard output holds no whole export")?
    } else {
        // Under its name only when it is whole.
        let context = || format!("{} is not written", arguments.file);
        let draft = Draft::begin(arguments.file.as_ref()).with_context(context)?;
        let written = write(&mut conn, draft.file(), format, arguments.spreadsheet).await;
        let count = written.with_context(context)?;
        draft.keep().with_context(context)?;
        count
    };
    conn.close().await?;
    // Beside the output, which may be the export.
    note(format_args!("{count} users exported"));
    Ok(())
}

async fn write(conn: &mut PgConnection, output: impl Write, format: Format, spreadsheet: bool) -> anyhow::Result<u64> {
    let mut rows = sqlx::query_as!(
        Row,
        r#"
        SELECT email, name, status, id, version, created_at, updated_at
        FROM users
        ORDER BY lower(email COLLATE "C")
        "#,
    )
    .fetch(conn);
    let mut output = BufWriter::new(output);
    let mut count = 0;
    match format {
        Format::Csv => {
            let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(&mut output);
            // Also when there is no user.
            let header = ["email", "name", "status", "id", "version", "created_at", "updated_at"];
            csv.write_record(header.into_iter().chain(spreadsheet.then_some(spreadsheet::COLUMN)))?;
            while let Some(mut row) = rows.try_next().await? {
                if spreadsheet {
                    row.email = guard(&row.email).into_owned();
                    row.name = guard(&row.name).into_owned();
                    csv.serialize((row, ""))?;
                } else {
                    csv.serialize(row)?;
                }
                count += 1;
            }
            csv.flush()?;
        }
        Format::Ndjson => {
            while let Some(row) = rows.try_next().await? {
                serde_json::to_writer(&mut output, &row)?;
                output.write_all(b"\n")?;
                count += 1;
            }
        }
    }
    output.flush()?;
    Ok(count)
}
