//! Settings from the environment: read once, at the start, here and nowhere else.
//!
//! A [`Reader`] collects every fault before it gives up, so that one failed start shows them all. A fault names the
//! variable, what is wrong with the value and an example; the value of a secret never appears in it.

mod amqp_url;
mod database;
mod reserved;
mod secret_file;
mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::transport::Exposure;

pub(crate) use amqp_url::Endpoint;
pub use amqp_url::amqp_url;
pub use database::{DatabaseUrl, database_url};
pub(crate) use database::{Reached, Server, Tls};
pub use secret_file::SecretFile;
pub use shared::{
    BrokerSettings, DatabaseSettings, IdempotencyWindow, Retention, SHARED, ServiceSettings, TelemetrySettings,
    given_amqp_url, given_database_url, given_direct_url, plaintext_hosts,
};

/// One environment variable, as `--help` and the sample file document it.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it does, with its unit.
    pub help: &'static str,
    /// A valid value.
    pub example: &'static str,
    /// The value when it is not set; `None` when nothing stands in for it.
    pub default: Option<&'static str>,
    /// Whether the service refuses to start without it.
    pub required: bool,
}

impl Variable {
    /// A variable that must be set.
    pub const fn required(name: &'static str, example: &'static str, help: &'static str) -> Self {
        Self { name, help, example, default: None, required: true }
    }

    /// A variable that may be left out, with what stands in for it.
    pub const fn with_default(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, help, example: default, default: Some(default), required: false }
    }

    /// A variable that may be left out for nothing.
    pub const fn optional(name: &'static str, example: &'static str, help: &'static str) -> Self {
        Self { name, help, example, default: None, required: false }
    }
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    variable: &'static str,
    example: &'static str,
    problem: String,
}

/// Every fault of one environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment has {} fault(s):", self.0.len())?;
        for fault in &self.0 {
            write!(f, "\n  {}: {}", fault.variable, fault.problem)?;
            if !fault.example.is_empty() {
                write!(f, "; for example {}={}", fault.variable, fault.example)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Reads variables and remembers what was wrong with them.
#[derive(Debug)]
pub struct Reader {
    environment: BTreeMap<String, String>,
    /// The names of variables whose values are not UTF-8.
    unreadable: BTreeSet<String>,
    faults: Vec<Fault>,
    /// What the operator left open, until it was taken for the log.
    exposures: Vec<Exposure>,
}

impl Reader {
    /// Reads this process's environment.
    pub fn from_process() -> Self {
        Self::of_os(std::env::vars_os())
    }

    /// Reads variables as the system has them; one of ours that is not UTF-8 is a fault.
    pub fn of_os(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let (mut readable, mut unreadable) = (Vec::new(), BTreeSet::new());
        for (name, value) in variables {
            // A name that is not UTF-8 cannot be one of ours.
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => readable.push((name, value)),
                Err(_) => drop(unreadable.insert(name)),
            }
        }
        Self { unreadable, ..Self::new(readable) }
    }

    /// Reads the given variables; an empty value counts as not set.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let environment = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Self { environment, unreadable: BTreeSet::new(), faults: Vec::new(), exposures: Vec::new() }
    }

    /// The value of any variable, without a check.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// The value as it stands, or its default.
    pub fn text(&self, variable: &Variable) -> Option<&str> {
        self.environment.get(variable.name).map(String::as_str).or(variable.default)
    }

    /// The parsed value or its default; `None` when it is absent or faulty, with the fault noted.
    pub fn parse<T, E: fmt::Display>(
        &mut self,
        variable: &Variable,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if self.is_unreadable(variable) {
            return None;
        }
        let Some(text) = self.text(variable) else {
            if variable.required {
                self.fault(variable, "is not set");
            }
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fault(variable, problem);
                None
            }
        }
    }

    /// The file that holds a secret, if the variable names one that can be read again; a pipe cannot.
    pub fn secret_file(&self, file: &Variable) -> Option<SecretFile> {
        let path = PathBuf::from(self.raw(file.name)?);
        if !path.is_file() {
            return None;
        }
        let text = secret_file::read(&path).ok()?;
        Some(SecretFile::new(file.name, path, &text))
    }

    /// The parsed value of a secret, which stands in its variable, or in the file that the other variable names; line ends
    /// at the file's end do not count.
    pub fn secret<T, E: fmt::Display>(
        &mut self,
        variable: &Variable,
        file: &Variable,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        // Both are looked at, so that both faults are noted.
        if [self.is_unreadable(variable), self.is_unreadable(file)].contains(&true) {
            return None;
        }
        let path = self.raw(file.name).map(str::to_owned);
        let (named, read) = match (self.raw(variable.name).map(str::to_owned), path) {
            (Some(_), Some(_)) => {
                self.fault(variable, format_args!("is set, and so is {}; unset one of them", file.name));
                return None;
            }
            (None, None) => {
                if variable.required {
                    self.fault(variable, format_args!("is not set, and neither is {}", file.name));
                }
                return None;
            }
            (Some(text), None) => (variable, Ok(text)),
            (None, Some(path)) => (file, secret_file::read(Path::new(&path))),
        };
        match read.and_then(|text| parse(&text).map_err(|problem| problem.to_string())) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fault(named, problem);
                None
            }
        }
    }

    fn is_unreadable(&mut self, variable: &Variable) -> bool {
        let found = self.unreadable.contains(variable.name);
        if found {
            self.fault(variable, "is not UTF-8");
        }
        found
    }

    /// A whole number within bounds.
    pub fn number<T>(&mut self, variable: &Variable, bounds: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + fmt::Display + Copy,
    {
        self.parse(variable, |text| {
            let expected = || format!("expected a whole number from {} to {}", bounds.start(), bounds.end());
            let number = text.parse().map_err(|_| format!("{text:?} is no number; {}", expected()))?;
            if bounds.contains(&number) { Ok(number) } else { Err(format!("{number} is out of range; {}", expected())) }
        })
    }

    /// A number of milliseconds within bounds.
    pub fn millis(&mut self, variable: &Variable, bounds: std::ops::RangeInclusive<u64>) -> Option<Duration> {
        self.number(variable, bounds).map(Duration::from_millis)
    }

    /// One of a closed list of words.
    pub fn choice<T: Copy>(&mut self, variable: &Variable, choices: &[(&str, T)]) -> Option<T> {
        self.parse(variable, |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                format!("{text:?} is unknown; expected one of {}", words.join(", "))
            })
        })
    }

    /// Notes a fault that concerns more than one variable.
    pub fn fault(&mut self, variable: &Variable, problem: impl fmt::Display) {
        let fault = Fault { variable: variable.name, example: variable.example, problem: problem.to_string() };
        // One that several settings depend on is read more than once.
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// Notes a connection that the operator left open.
    pub fn expose(&mut self, exposure: Option<Exposure>) {
        self.exposures.extend(exposure);
    }

    /// What was noted so far, for a log that does not exist yet; otherwise [`finish`](Self::finish) warns on standard error.
    pub fn take_exposures(&mut self) -> Vec<Exposure> {
        std::mem::take(&mut self.exposures)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All faults; then `settings` is absent too, because every faulty value was read as `None`.
    pub fn finish<T>(self, settings: Option<T>) -> Result<T, Faults> {
        match settings {
            Some(settings) if self.faults.is_empty() => {
                for exposure in self.exposures {
                    // Nobody can be warned where it is closed.
                    let _ = writeln!(io::stderr(), "Warning: {exposure}");
                }
                Ok(settings)
            }
            _ => Err(Faults(self.faults)),
        }
    }
}

/// The variables as `--help` shows them.
pub fn help(variables: &[&Variable]) -> String {
    let mut text = "Environment:\n".to_owned();
    for v in variables {
        let note = match v.default {
            Some(default) => format!("default {default}"),
            None if v.required => "required".to_owned(),
            None => "optional".to_owned(),
        };
        let _ = writeln!(text, "  {} [{note}]\n      {}", v.name, v.help);
    }
    text
}

/// A sample file with every variable; those that may be left out are commented out.
pub fn sample(variables: &[&Variable]) -> String {
    let mut text = "# Every setting of Rollcall. Written by `rollcall generate`; load a copy of it with your\n# service manager or with `set -a; . ./FILE; set +a`: no command reads a file by itself.\n".to_owned();
    for v in variables {
        let mark = if v.required { "" } else { "# " };
        let _ = write!(text, "\n# {}\n{mark}{}={}\n", v.help, v.name, v.example);
    }
    text
}
