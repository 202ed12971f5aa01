//! `rollcall import`: creates a user for each row of a file, through the API, and says what became of each row.
//!
//! # Why the API and not the database?
//! A user is created by a command: in order, with its event, its audit row and its wait in line. What the API would refuse
//! is refused here by the same code before anything is sent.
//!
//! # Why is it safe to kill it?
//! Each row is sent under an `Idempotency-Key` that is the hash of what it says and of the import's name; sent again, it takes
//! effect once. The journal only saves time. Once the window of the keys is over, a row that was sent and not yet
//! noted meets its own user under the id that its key gives, and counts as imported.

mod check;
mod journal;
mod report;
mod rows;
mod send;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use client::Client;
use common::files::Draft;
use futures_util::{Stream, StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::connection::Api;
use crate::output::say;
use check::Checked;
use journal::{Journal, Owner, Trail};
use report::{Flaw, Rejected};
pub(crate) use rows::Format;
use rows::{Row, Rows};

/// How long a service that is away or overloaded is waited for.
const PATIENCE: Duration = Duration::from_hours(1);
/// How often a line tells how far it is, where nobody looks.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Rows that may be decided while an earlier one is not, for each connection.
const AHEAD: usize = 4;
/// Rejected rows that are shown besides being counted.
const SHOWN: usize = 20;

/// Columns: email and name; status may be active or suspended. What the service decides (id, version and times) and what a report
/// of rejected rows adds (line, field, fault, mend) is read over. Any other column is refused by its name.
///
/// It can be ended at any time, and killed: run again, it goes on. Within `IDEMPOTENCY_WINDOW_HOURS` (24) of a row's first try
/// its outcome stays what it was, a rejection too: give another --name to have rejected rows tried anew. The exit status is 0
/// only if every row is in.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A CSV or NDJSON file, or - for the standard input. The standard input, pipes and devices are copied to a temporary file
    /// first; such an import has no journal
    file: String,
    /// How the file is written; otherwise its name says so
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Rows under way at once
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// What makes this import itself: the same row counts once in each [default: the path of the file]
    #[arg(long)]
    name: Option<String>,
    /// Where to note what is done, until everything is [default: FILE.journal; none for what is copied first]
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    journal: Option<PathBuf>,
    /// Where to write the rejected rows, each with its line, field, fault and mend, as CSV or NDJSON; it can be imported once mended
    #[arg(long, value_name = "FILE")]
    rejected: Option<String>,
    /// Write the rejected rows for a spreadsheet program, as `rollcall export --spreadsheet` does
    #[arg(long, requires = "rejected")]
    spreadsheet: bool,
    /// Check every row, also against the others, without asking the API anything
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    api: Api,
}

/// Whether two paths lead to one file; the report of rejected rows replaces what has its name.
fn same_file(one: impl AsRef<Path>, other: impl AsRef<Path>) -> bool {
    let (one, other) = (one.as_ref(), other.as_ref());
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let format = Format::of(arguments.format, &arguments.file)?;
    let report = arguments.rejected.as_ref().map(|path| Format::of(None, path)).transpose()?;
    if let Some(path) = &arguments.rejected {
        // Only tried, so that a path that cannot be written is known before anything is sent.
        Draft::begin(path.as_ref()).with_context(|| format!("the report {path} cannot be written"))?;
        ensure!(!same_file(path, &arguments.file), "--rejected names the file to import; name another");
        let csv = report == Some(Format::Csv);
        ensure!(
            csv || !arguments.spreadsheet,
            "--spreadsheet is for CSV; leave it out, or name a file such as rejected.csv"
        );
    }
    let source = Source::open(&arguments.file)?;
    if let (Some(path), Some(journal)) = (&arguments.rejected, arguments.journal_path(&source)) {
        ensure!(!same_file(path, &journal), "--rejected names the journal, {}; name another", journal.display());
    }
    let owner = Owner { import: arguments.import(&source)?, url: arguments.api.url.clone() };
    let mut journal = match arguments.journal_path(&source) {
        Some(path) if !arguments.dry_run => Journal::open(&path, &owner)?,
        _ => Journal::temporary()?,
    };
    let (rows, mark) = (source.rows(format)?, journal.mark().clone());
    let checked = Arc::new(tokio::task::spawn_blocking(move || check::check(rows, &mark)).await??);
    if !journal.keep_if(checked.at_mark.as_deref(), &owner)? {
        say("the file has changed where it was imported already; every row is asked for again");
    }
    let done = journal.mark().rows;
    if done > 0 {
        say(format_args!("going on after {done} rows that are done"));
    }
    let rows = read(source.rows(format)?, Arc::clone(&checked), done);
    let progress = Progress::new(checked.rows, done);
    let started = Instant::now();
    if arguments.dry_run {
        collect(rows.map(|item| item.map(|(_, judged)| judged)), &mut journal, &progress).await?;
    } else {
        arguments.api.ready().await?;
        let client = arguments.api.settings()?.retry_for(PATIENCE).client()?;
        let turns = Semaphore::new(arguments.connections.into());
        let ends = rows
            .map(|item| async {
                let (row, judged) = item?;
                let Some(row) = row else { return Ok(judged) };
                let _turn = turns.acquire().await?;
                decide(&client, &owner.import, row, judged).await
            })
            // In the order of the rows, so that a mark can say that all before it are decided.
            .buffered(usize::from(arguments.connections) * AHEAD);
        collect(ends, &mut journal, &progress).await.context("the import has stopped; run it again, and it goes on")?;
    }
    progress.finish();
    conclude(&arguments, report, journal, &checked, done, started.elapsed())
}

impl Arguments {
    /// What makes the import itself.
    fn import(&self, source: &Source) -> anyhow::Result<String> {
        match &self.name {
            Some(name) => {
                ensure!(
                    !name.is_empty() && !name.contains('\0'),
                    "--name is empty, or has the character zero; change it"
                );
                Ok(format!("name {name}"))
            }
            None => match source {
                // It cannot be run again.
                Source::Copied(_) => Ok(format!("run {}", Uuid::now_v7())),
                Source::Path(path) => {
                    let path = path.canonicalize().with_context(|| format!("{} cannot be read", self.file))?;
                    Ok(format!("file {}", path.display()))
                }
            },
        }
    }

    fn journal_path(&self, source: &Source) -> Option<PathBuf> {
        let beside = match source {
            Source::Copied(_) => None,
            Source::Path(_) => Some(PathBuf::from(format!("{}.journal", self.file))),
        };
        self.journal.clone().or(beside)
    }
}

/// A file that is read twice.
enum Source {
    Path(PathBuf),
    Copied(File),
}

impl Source {
    fn open(file: &str) -> anyhow::Result<Self> {
        if file == "-" {
            return Self::copy(&mut io::stdin().lock(), "the standard input");
        }
        let context = || format!("{file} cannot be read");
        let found = fs::metadata(file).with_context(context)?;
        ensure!(!found.is_dir(), "{file} is a folder; give a CSV or NDJSON file");
        // No journal can lie beside a device.
        let special = ["/dev/", "/proc/"].iter().any(|folder| file.starts_with(folder));
        if found.is_file() && !special {
            return Ok(Self::Path(PathBuf::from(file)));
        }
        Self::copy(&mut File::open(file).with_context(context)?, file)
    }

    /// A pipe can be read only once.
    fn copy(input: &mut impl Read, name: &str) -> anyhow::Result<Self> {
        let context = || format!("{name} cannot be copied to a temporary file; set TMPDIR to a folder with room");
        let mut copy = tempfile::tempfile().with_context(context)?;
        io::copy(input, &mut copy).with_context(context)?;
        Ok(Self::Copied(copy))
    }

    fn rows(&self, format: Format) -> anyhow::Result<Rows> {
        match self {
            Self::Path(path) => {
                let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
                Rows::open(file, format).with_context(|| path.display().to_string())
            }
            Self::Copied(copy) => {
                let mut file = copy.try_clone()?;
                file.rewind()?;
                Rows::open(file, format)
            }
        }
    }
}

/// Whether a row is in, and the hash of all up to it where a mark can be.
struct Judged {
    rejected: Option<Rejected>,
    hash: Option<String>,
}

/// A row to send, unless it is rejected already.
type Item = (Option<Row>, Judged);

/// The rows after those that are done, read by a thread no faster than they are taken.
fn read(rows: Rows, checked: Arc<Checked>, done: u64) -> impl Stream<Item = anyhow::Result<Item>> {
    let (sender, receiver) = mpsc::channel(1024);
    std::thread::spawn(move || {
        let mut trail = Trail::default();
        let mut number = 0;
        for row in rows {
            let item = row.map(|row| {
                let hash = trail.step(&row);
                judge(row, &checked, hash)
            });
            number += 1;
            if number > done && sender.blocking_send(item).is_err() {
                return;
            }
        }
    });
    stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}

fn judge(row: Row, checked: &Checked, hash: Option<String>) -> Item {
    let mut faults = row.faults.clone();
    if let Some(first) = checked.first_of(&row) {
        let text = format!("is the address of line {first}, in whatever letter case; change it, or remove one of them");
        faults.push(Flaw::new("email", &text));
    }
    if faults.is_empty() {
        return (Some(row), Judged { rejected: None, hash });
    }
    (None, Judged { rejected: Some(Rejected::new(row, &faults)), hash })
}

async fn decide(client: &Client, import: &str, row: Row, judged: Judged) -> anyhow::Result<Judged> {
    let fault = send::send(client, import, &row).await.with_context(|| format!("line {}", row.line))?;
    Ok(Judged { rejected: fault.map(|fault| Rejected::new(row, &[fault])), ..judged })
}

async fn collect(
    ends: impl Stream<Item = anyhow::Result<Judged>>,
    journal: &mut Journal,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut ends = std::pin::pin!(ends);
    let mut told = Instant::now();
    while let Some(end) = ends.next().await {
        let end = end?;
        journal.decided(end.rejected.as_ref(), end.hash)?;
        progress.step();
        if told.elapsed() >= TOLD_EVERY {
            progress.tell();
            told = Instant::now();
        }
    }
    Ok(())
}

fn conclude(
    arguments: &Arguments,
    report: Option<Format>,
    mut journal: Journal,
    checked: &Checked,
    done: u64,
    took: Duration,
) -> anyhow::Result<()> {
    let mark = journal.mark().clone();
    ensure!(mark.rows == checked.rows, "the file has changed while it was read; run the import again");
    let rejected = mark.rejected;
    for line in report::rejects(journal.lines()?).take(SHOWN) {
        say(format_args!("line {}: {}: {}; {}", line.line, line.field, line.fault, line.mend));
    }
    if let (Some(path), Some(format)) = (&arguments.rejected, report) {
        report::write(journal.lines()?, path, format, arguments.spreadsheet)?;
    }
    journal.finish()?;
    let (good, all, rate) = (mark.rows - rejected, mark.rows, rate(mark.rows - done, took));
    if arguments.dry_run {
        say(format_args!("{good} of {all} rows would be sent, {rejected} rejected"));
    } else {
        say(format_args!("{good} of {all} rows are in, {rejected} rejected; {rate:.0} rows/s"));
    }
    if rejected > 0 {
        let told = arguments.rejected.as_ref().map_or_else(
            || "--rejected FILE writes them all to a file".to_owned(),
            |path| format!("mend them in {path} and import that"),
        );
        bail!("rejected {rejected} row(s); {told}");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows is far below 2^52")]
fn rate(rows: u64, took: Duration) -> f64 {
    rows as f64 / took.as_secs_f64().max(0.001)
}

/// A bar on a terminal, and elsewhere a line now and then.
struct Progress {
    bar: ProgressBar,
    since: Instant,
    from: u64,
}

impl Progress {
    fn new(rows: u64, done: u64) -> Self {
        let bar = if io::stderr().is_terminal() { ProgressBar::new(rows) } else { ProgressBar::hidden() };
        bar.set_length(rows);
        // The template is fixed and valid; without it the bar still shows, only plainer.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} rows, {per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, since: Instant::now(), from: done }
    }

    fn step(&self) {
        self.bar.inc(1);
    }

    fn tell(&self) {
        if !self.bar.is_hidden() {
            return;
        }
        let (position, rows) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let rate = rate(position - self.from, self.since.elapsed());
        let left = if rate > 0.0 { rate_seconds(rows - position, rate) } else { "unknown time".to_owned() };
        say(format_args!("{position} of {rows} rows, {rate:.0} rows/s, {left} left"));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows is far below 2^52")]
fn rate_seconds(rows: u64, rate: f64) -> String {
    format!("{:.0} s", rows as f64 / rate)
}
