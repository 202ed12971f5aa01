//! A client of the HTTP API. Its operations and types are generated from the contract; what every program would write around
//! them is here.
//!
//! - [`Settings`] makes a [`Client`]: address, key or token, how long to try.
//! - Each operation is a method of it, with a builder: [`Client::create_user`], [`Client::list_users`], …
//! - A write gives [`Written`]: the user when its outcome was waited for and the key may read users, else the command, whose end
//!   [`Client::outcome`] awaits.
//! - `?` makes an [`Error`] of what went wrong; the service's own are [`types::Problem`]s.
//!
//! ```no_run
//! use rollcall_client::{Error, Settings, Written, types::NewUser};
//!
//! # async fn example() -> Result<(), Error> {
//! let client = Settings::new("http://127.0.0.1:8080").client()?;
//! let ada = NewUser { email: "ada@example.org".into(), name: "Ada".into() };
//! match client.create_user().prefer("wait=5").idempotency_key("ada-1").body(ada).send().await?.into_inner() {
//!     Written::Applied(user) => println!("{} is {}", user.name, user.id),
//!     Written::Accepted(command) => println!("{:?}", client.outcome(command.id).await?.status),
//! }
//! # Ok(())
//! # }
//! ```

mod error;
#[rustfmt::skip]
#[expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::doc_lazy_continuation,
    clippy::pedantic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    unused_imports,
    reason = "it is generated"
)]
mod generated;
mod patience;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

pub use error::Error;
pub use generated::{Client, ResponseValue, builder, types};
pub use patience::Patience;

/// Longer than the service ever waits for an outcome.
const ANSWER_DEADLINE: Duration = Duration::from_mins(1);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that the service takes.
const LONGEST_WAIT: &str = "wait=30";

/// What a client needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    url: String,
    bearer: Option<SecretString>,
    patience: Patience,
}

impl Settings {
    /// The service at this address, like `http://127.0.0.1:8080`.
    pub fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), bearer: None, patience: Patience::default() }
    }

    /// Sends this API key or access token.
    #[must_use]
    pub fn bearer(self, key: SecretString) -> Self {
        Self { bearer: Some(key), ..self }
    }

    /// Tries again for so long, instead of half a minute, what was refused or lost and may be sent again.
    #[must_use]
    pub fn retry_for(self, duration: Duration) -> Self {
        Self { patience: Patience(duration), ..self }
    }

    /// The client. It keeps its connections; clones of it share them.
    pub fn client(self) -> Result<Client, Error> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.bearer {
            let value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()));
            let mut value =
                value.map_err(|_| Error::Request("the key or token has a character outside ASCII".into()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = reqwest::Client::builder().default_headers(headers).no_proxy();
        let client = client.timeout(ANSWER_DEADLINE).connect_timeout(CONNECT_DEADLINE).build()?;
        Ok(Client::new_with_client(&self.url, client, self.patience))
    }
}

/// What a write was answered with.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Written<T> {
    /// The outcome was waited for and came in time.
    Applied(T),
    /// The service has the command for good; its outcome can be asked for. With a key or token that may not read users, its
    /// `status` says when it is decided already.
    Accepted(types::Command),
}

impl<T> Written<T> {
    /// What was applied, if the outcome came in time.
    pub fn applied(self) -> Option<T> {
        match self {
            Self::Applied(applied) => Some(applied),
            Self::Accepted(_) => None,
        }
    }

    /// The command whose outcome can be asked for.
    pub fn accepted(self) -> Option<types::Command> {
        match self {
            Self::Applied(_) => None,
            Self::Accepted(command) => Some(command),
        }
    }
}

/// An instant, in JSON as RFC 3339 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(#[serde(with = "time::serde::rfc3339")] pub OffsetDateTime);

impl Client {
    /// Waits until a command is decided: succeeded, rejected or parked; or unknown, when it was lost: then look at the user and
    /// send the request again, under its idempotency key if it had one.
    pub async fn outcome(&self, command_id: Uuid) -> Result<types::Command, Error> {
        loop {
            let command = self.get_command().command_id(command_id).prefer(LONGEST_WAIT).send().await?.into_inner();
            if command.status != types::CommandStatus::Pending {
                return Ok(command);
            }
        }
    }
}

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
