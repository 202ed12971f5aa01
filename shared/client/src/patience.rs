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
/// A day.
const MOST_RETRY_AFTER_SECONDS: u64 = 24 * 60 * 60;

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
    let seconds: u64 = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    // More than an instant can be moved on by would panic.
    Some(Duration::from_secs(seconds.min(MOST_RETRY_AFTER_SECONDS)))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    use crate::Settings;

    const BY_THE_SERVICE: &str = "application/problem+json";
    const BY_A_PROXY: &str = "text/html";

    /// How often a write is sent that is answered so; the third time it is refused for good.
    async fn sent(status: u16, kind: &str, with_key: bool) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut requests = 0;
        let answering = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let _ = stream.read(&mut [0; 4096]).await.expect("a request");
                requests += 1;
                let status = if requests < 3 { status } else { 409 };
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\nconnection: close\r\nretry-after: 0\r\n");
                let answer = format!("{head}content-length: 2\r\n\r\n{{}}");
                stream.write_all(answer.as_bytes()).await.expect("an answer");
            }
        };
        let client = Settings::new(&url).client().expect("a client");
        let write = client.suspend_user().user_id(Uuid::nil());
        let write = if with_key { write.idempotency_key("k") } else { write };
        tokio::select! {
            () = answering => {}
            _ = write.send() => {}
        }
        requests
    }

    #[tokio::test]
    async fn a_write_without_a_key_is_sent_again_only_when_the_service_refused_it() {
        for (status, kind, with_key, again) in [
            (503, BY_THE_SERVICE, false, true),
            (503, BY_A_PROXY, false, false),
            (503, BY_A_PROXY, true, true),
            (502, BY_A_PROXY, false, false),
            (504, BY_THE_SERVICE, false, false),
            (504, BY_THE_SERVICE, true, true),
            (429, BY_A_PROXY, false, true),
            (409, BY_THE_SERVICE, true, false),
        ] {
            let requests = sent(status, kind, with_key).await;
            assert_eq!(requests > 1, again, "{status} {kind}, with a key: {with_key}; sent {requests} times");
        }
    }
}
