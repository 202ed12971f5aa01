//! Secret in a file (`*_FILE`), which may get another content while the process runs: a rotated password counts from the next
//! connection on, without a restart.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

/// The file, and the last content that could be used; clones share it.
#[derive(Debug, Clone)]
pub struct SecretFile {
    variable: &'static str,
    path: PathBuf,
    last: Arc<Mutex<LastContent>>,
}

#[derive(Debug)]
struct LastContent {
    text: SecretString,
    /// Why it is not the present one, as the log has it already.
    fault: Option<String>,
}

impl SecretFile {
    /// For the file that `variable` names and whose content was `text`.
    pub(super) fn new(variable: &'static str, path: PathBuf, text: &str) -> Self {
        Self { variable, path, last: Arc::new(Mutex::new(LastContent { text: text.into(), fault: None })) }
    }

    /// The present value; the last one, while the file cannot be read or does not hold one.
    pub(crate) fn current<T, E: fmt::Display>(&self, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let present = read(&self.path).and_then(|text| {
            let value = parse(&text).map_err(|fault| fault.to_string())?;
            Ok((text, value))
        });
        match present {
            Ok((text, value)) => {
                if text != last.text.expose_secret() {
                    info!(variable = self.variable, "the file has another content: new connections use it");
                    last.text = text.into();
                }
                last.fault = None;
                Some(value)
            }
            Err(fault) => {
                if last.fault.as_ref() != Some(&fault) {
                    warn!(
                        variable = self.variable,
                        fault, "the file is of no use: new connections use its last content"
                    );
                    last.fault = Some(fault);
                }
                parse(last.text.expose_secret()).ok()
            }
        }
    }
}

/// The content of a secret's file; line ends at its end do not count.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut text = std::fs::read_to_string(path)
        .map_err(|fault| format!("names a file that cannot be read ({})", fault.kind()))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() { Err("names a file that is empty".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_usable_content_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        let secret = SecretFile::new("NUMBER_FILE", path.clone(), "1");
        let current = || secret.clone().current(str::parse::<u8>);
        for (content, expected) in [("1\n", 1), ("2\r\n", 2), ("", 2), ("no number", 2), ("3", 3)] {
            fs::write(&path, content).expect("written");
            assert_eq!(current(), Some(expected), "{content:?}");
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(current(), Some(3));
    }
}
