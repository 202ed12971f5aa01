//! Where the API is and what it is asked with, for the commands that are its clients.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use client::Settings;
use common::config::{Reader, plaintext_hosts};
use common::transport::{Authorities, Exposure};
use secrecy::SecretString;

use crate::output::note;

#[derive(clap::Args)]
pub(crate) struct Api {
    /// Where the API is: https://, or http:// on this machine and to hosts in `PLAINTEXT_HOSTS`
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub(crate) url: String,
    /// A file with the authorities that the API's certificate must come from, in PEM [default: those of the system]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
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
        self.exposure()?;
        let mut settings = Settings::new(&self.url);
        if let Some(pem) = self.authorities()?.pem() {
            settings = settings.authorities(pem);
        }
        let Some(path) = &self.bearer_file else { return Ok(settings) };
        let key = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        ensure!(!key.trim().is_empty(), "{} is empty; write the API key or the token into it", path.display());
        Ok(settings.bearer(SecretString::from(key.trim_end())))
    }

    /// Says at once what would otherwise be said of each request, and warns of a connection without protection.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        if let Some(exposure) = self.exposure()? {
            note(format_args!("Warning: {exposure}"));
        }
        let mut client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = self.authorities()?.pem() {
            client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        let client = client.timeout(std::time::Duration::from_secs(30)).build()?;
        let ready = client.get(format!("{}/readyz", self.url.trim_end_matches('/'))).send().await;
        let ready = ready.with_context(|| format!("nothing answers at {}; give --url", self.url))?;
        ensure!(ready.status().is_success(), "the API is not ready:\n{}", ready.text().await.unwrap_or_default());
        Ok(())
    }

    /// Whether the requests go to another machine in the clear, as the operator allows it.
    fn exposure(&self) -> anyhow::Result<Option<Exposure>> {
        let url = reqwest::Url::parse(&self.url)?;
        if url.scheme() == "https" {
            return Ok(None);
        }
        let mut reader = Reader::from_process();
        let plaintext = plaintext_hosts(&mut reader);
        reader.finish(Some(()))?;
        let hosts = plaintext.check(url.host_str(), "https://").map_err(|fault| anyhow!("--url {fault}"))?;
        let stakes = "read the key or token and every user that is sent, and act with that key";
        Ok(Exposure::plaintext("--url", &hosts, stakes))
    }

    fn authorities(&self) -> anyhow::Result<Authorities> {
        let authorities = self.ca.as_ref().map(Authorities::in_file).transpose();
        authorities.map(Option::unwrap_or_default).map_err(|fault| anyhow!("--ca {fault}"))
    }
}
