//! What is sent again: whatever the service refused for now, and what may have been lost, if it may come twice.

use std::time::Duration;

use http::Method;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use progenitor_client::{ClientHooks, OperationInfo};
use reqwest::{Request, Response, StatusCode};
use tokio::time::{Instant, sleep};

use crate::Client;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// For how long a request is sent again before its failure is told.
#[derive(Debug, Clone, Copy)]
pub struct Patience(pub(crate) Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl ClientHooks<Patience> for Client {
    async fn exec(&self, mut request: Request, _: &OperationInfo) -> reqwest::Result<Response> {
        // A read, or a write that takes effect once under its key.
        let repeatable = request.method() == Method::GET || request.headers().contains_key("idempotency-key");
        let deadline = Instant::now() + self.inner.0;
        let mut pause = FIRST_PAUSE;
        loop {
            let again = request.try_clone();
            let result = self.client.execute(request).await;
            let wait = match &result {
                // Nothing was accepted, if it is the service that says so.
                Ok(answer) if refused(answer) => retry_after(answer).unwrap_or(pause),
                // Something may have been.
                Ok(answer) if repeatable && matches!(answer.status().as_u16(), 502..=504) => {
                    retry_after(answer).unwrap_or(pause)
                }
                Err(error) if repeatable && !error.is_builder() => pause,
                _ => return result.map(with_body),
            };
            match again {
                Some(again) if Instant::now() + wait < deadline => request = again,
                _ => return result,
            }
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A proxy that loses its connection to the service may answer 503, too, when the service has the request already.
fn refused(answer: &Response) -> bool {
    let problem = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    match answer.status() {
        StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::SERVICE_UNAVAILABLE => problem,
        _ => false,
    }
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The generated code reads JSON from every answer; 204 has none.
fn with_body(answer: Response) -> Response {
    if answer.status() != StatusCode::NO_CONTENT {
        return answer;
    }
    let mut nothing = http::Response::new("null");
    *nothing.status_mut() = answer.status();
    answer.headers().clone_into(nothing.headers_mut());
    nothing.into()
}
