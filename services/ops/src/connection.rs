//! Where the API is and what it is asked with, for the commands that are its clients.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use client::Settings;
use secrecy::SecretString;

#[derive(clap::Args)]
pub(crate) struct Api {
    /// Where the API is
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub(crate) url: String,
    /// A file that holds the API key or the token to send; it needs the scope users:write
    #[arg(long, value_name = "FILE")]
    bearer_file: Option<PathBuf>,
}

/// A URL that a request can be sent to.
pub(crate) fn http_url(text: &str) -> Result<String, &'static str> {
    let fits = reqwest::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if fits { Ok(text.to_owned()) } else { Err("no URL like http://127.0.0.1:8080") }
}

impl Api {
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let settings = Settings::new(&self.url);
        let Some(path) = &self.bearer_file else { return Ok(settings) };
        let key = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        ensure!(!key.trim().is_empty(), "{} is empty; write the API key or the token into it", path.display());
        Ok(settings.bearer(SecretString::from(key.trim_end())))
    }

    /// Says at once what would otherwise be said of each request.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(30)).build()?;
        let ready = client.get(format!("{}/readyz", self.url.trim_end_matches('/'))).send().await;
        let ready = ready.with_context(|| format!("nothing answers at {}; give --url", self.url))?;
        ensure!(ready.status().is_success(), "the API is not ready:\n{}", ready.text().await.unwrap_or_default());
        Ok(())
    }
}
