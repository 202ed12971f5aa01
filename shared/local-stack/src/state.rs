//! What one server keeps from start to start: ports, password, names. One `key=value` a line, readable by its
//! owner only.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use common::files;
use rand::RngExt;
use rand::distr::Alphanumeric;

use crate::error::{Error, IoStep};

pub(crate) struct State {
    path: PathBuf,
    values: BTreeMap<String, String>,
}

impl State {
    pub(crate) fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self { values: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(), path }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// The values whose keys begin with `prefix`, by the rest of their keys.
    pub(crate) fn prefixed(&self, prefix: &str) -> Vec<(String, String)> {
        let values = self.values.iter();
        values.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))).collect()
    }

    pub(crate) fn port(&self, key: &str) -> Option<u16> {
        self.get(key)?.parse().ok()
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.values.insert(key.to_owned(), value.into());
    }

    /// The value, or what `make` gives from now on.
    pub(crate) fn get_or_set(&mut self, key: &str, make: impl FnOnce() -> String) -> String {
        self.values.entry(key.to_owned()).or_insert_with(make).clone()
    }

    pub(crate) fn write(&self) -> Result<(), Error> {
        let lines: Vec<String> = self.values.iter().map(|(key, value)| format!("{key}={value}")).collect();
        files::write(&self.path, lines.join("\n") + "\n").step(|| format!("write {}", self.path.display()))
    }
}

/// A password that needs no quoting in a URL, in SQL or in `rabbitmq.conf`.
pub(crate) fn password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect()
}
