//! One trace shows a request through the queue to its transaction.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::harness::{System, eventually, free_port};

/// An OTLP receiver that keeps every span with the name of its service.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    pub(crate) spans: Arc<Mutex<Vec<(String, Span)>>>,
}

impl Receiver {
    /// Receives, and gives the address for exporters.
    pub(crate) fn start() -> (Self, String) {
        let (receiver, port) = (Self::default(), free_port());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(receiver.clone()));
        tokio::spawn(server.serve((Ipv4Addr::LOCALHOST, port).into()));
        (receiver, format!("http://127.0.0.1:{port}"))
    }

    /// Whether there was a span yet.
    pub(crate) fn received(&self) -> bool {
        !self.spans.lock().unwrap().is_empty()
    }
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.spans.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let service = resource.resource.iter().flat_map(|r| &r.attributes).find(|a| a.key == "service.name");
            let service = format!("{:?}", service.unwrap().value);
            let received = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(received.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_shows_a_request_through_the_queue_to_its_transaction() {
    let (receiver, collector) = Receiver::start();
    let mut system = System::prepare().await;
    system.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector);
    let (api, worker) = tokio::join!(system.api(), system.worker());

    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let created = system
        .client
        .post(api.url("/v1/users"))
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .header("prefer", "wait=20")
        .json(&json!({"email": "traced@example.org", "name": "Traced"}))
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 201);
    // What is left is sent at the end.
    assert!(api.terminate().await.success() && worker.terminate().await.success());

    let span = async |start: &str| {
        eventually(&format!("the span {start}"), async || {
            let spans = receiver.spans.lock().unwrap();
            spans.iter().find(|(_, s)| hex(&s.trace_id) == trace_id && s.name.starts_with(start)).cloned()
        })
        .await
    };
    let (service, request) = span("POST").await;
    assert!(service.contains("rollcall-api"));
    assert!(format!("{:?}", request.attributes).contains("create_user"));
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    let (_, send) = span("send ").await;
    assert_eq!(send.parent_span_id, request.span_id);
    let (service, process) = span("process ").await;
    assert!(service.contains("rollcall-worker"));
    assert_eq!(process.parent_span_id, send.span_id);
    let (_, transaction) = span("transaction").await;
    assert_eq!(transaction.parent_span_id, process.span_id);

    let spans = receiver.spans.lock().unwrap();
    let (_, batch) = spans.iter().find(|(_, s)| s.name == "apply batch" && !s.links.is_empty()).unwrap();
    assert!(batch.links.iter().any(|link| link.span_id == send.span_id), "the batch links the command");
    let text = format!("{spans:?}");
    assert!(!text.contains("traced@example.org") && !text.contains("Traced"), "no personal data in spans");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_carries_the_trace_id_of_the_caller_or_a_fresh_one() {
    let system = System::prepare().await;
    let api = system.api().await;
    let ask = async |traceparent: &str| -> serde_json::Value {
        let request = system.client.get(api.url("/nowhere")).header("traceparent", traceparent);
        request.send().await.unwrap().json().await.unwrap()
    };
    let known = ask("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await;
    assert_eq!(known["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    let fresh = ask("nonsense").await;
    assert_eq!(fresh["trace_id"].as_str().unwrap().len(), 32);
    assert_ne!(fresh["trace_id"], ask("nonsense").await["trace_id"]);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
