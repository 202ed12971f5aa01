//! `rollcall health`: a container has no curl.

use std::time::Duration;

use anyhow::{Context, ensure};
use common::config::Reader;

use crate::connection::http_url;
use crate::output::say;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to ask; the API's /readyz on PORT when left out
    #[arg(value_parser = plain_http_url)]
    url: Option<String>,
}

fn plain_http_url(text: &str) -> Result<String, String> {
    let url = http_url(text)?;
    if url.starts_with("https:") {
        Err("only http:// is asked, such as http://127.0.0.1:8080/readyz".to_owned())
    } else {
        Ok(url)
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let reader = Reader::from_process();
    let own = || format!("http://127.0.0.1:{}/readyz", reader.raw("PORT").unwrap_or("8080"));
    let url = arguments.url.unwrap_or_else(own);
    // Plain HTTP, from a container that may have no certificate authorities.
    let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).no_proxy().tls_certs_only([]).build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    let status = response.status();
    say(response.text().await.unwrap_or_default().trim_end());
    ensure!(status.is_success(), "{url} answered {status}");
    Ok(())
}
