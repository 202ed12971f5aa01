//! Logs, traces and metrics, and the trace context that travels over HTTP and AMQP.
//!
//! Traces are recorded only when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; without it no layer exists that could cost
//! anything. A trace id exists either way ([`TraceId`]), so that a client's problem document and the log share one.

mod filter;
mod propagation;

use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use prometheus::{Encoder, Registry, TextEncoder};
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry as Subscriber};

pub use filter::log_filter;
pub use propagation::{TraceHeaders, TraceId, amqp_context, amqp_trace_headers, continue_trace, inject, inject_amqp};

use crate::config::TelemetrySettings;

/// Bucket boundaries for durations in seconds.
pub const SECONDS: [f64; 14] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// How long the last spans may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// The span target of everything that becomes a trace.
pub const TRACE_TARGET: &str = "rollcall_trace";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
#[error("failed to start telemetry: {0}")]
pub struct TelemetryError(String);

/// What must be flushed at the end of the process.
#[derive(Debug)]
pub struct Telemetry {
    tracer: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs the log and trace layers for this process. Needs a running tokio runtime.
    ///
    /// # Errors
    /// When the exporter cannot be built or a subscriber exists already.
    pub fn start(settings: &TelemetrySettings, service: &'static str) -> Result<Self, TelemetryError> {
        let fault = |fault: &dyn std::fmt::Display| TelemetryError(fault.to_string());
        let filter = log_filter(&settings.filter).map_err(|error| fault(&error))?;
        let json = match settings.format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stdout().is_terminal(),
        };
        // A log without a reader must not end the process: the library would complain on standard error, and panic where that
        // is closed as well.
        let log: Box<dyn Layer<Subscriber> + Send + Sync> = if json {
            let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_span_list(false);
            Box::new(lines.log_internal_errors(false).with_filter(filter))
        } else {
            let lines = tracing_subscriber::fmt::layer().with_target(false);
            Box::new(lines.log_internal_errors(false).with_filter(filter))
        };
        let tracer = match &settings.otlp_endpoint {
            None => None,
            Some(endpoint) => {
                let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
                if endpoint.starts_with("https:") {
                    exporter = exporter.with_tls_config(match settings.otlp_authorities.pem() {
                        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                        None => ClientTlsConfig::new().with_native_roots(),
                    });
                }
                let exporter = exporter.build().map_err(|error| fault(&error))?;
                let name = settings.service_name.clone().unwrap_or_else(|| service.to_owned());
                let resource = Resource::builder().with_service_name(name).build();
                Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
            }
        };
        let otel = tracer.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("rollcall"))
                .with_location(false)
                .with_threads(false)
                .with_filter(Targets::new().with_target(TRACE_TARGET, tracing::Level::INFO))
        });
        // An absent layer would count as one that wants every span: then each would be made and dropped again.
        let installed = match otel {
            Some(otel) => tracing_subscriber::registry().with(log).with(otel).try_init(),
            None => tracing_subscriber::registry().with(log).try_init(),
        };
        installed.map_err(|error| fault(&error))?;
        Ok(Self { tracer })
    }

    /// Sends what is left. Blocks in the library, so it runs beside the runtime and under a deadline.
    pub async fn flush(self) {
        let Some(tracer) = self.tracer else { return };
        let flush = tokio::task::spawn_blocking(move || tracer.shutdown_with_timeout(FLUSH_DEADLINE));
        let flushed = tokio::time::timeout(FLUSH_DEADLINE * 2, flush).await;
        if !matches!(flushed, Ok(Ok(Ok(())))) {
            tracing::warn!("the last spans were not delivered");
        }
    }
}

struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
}

fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let registry = Registry::new();
        let exporter =
            opentelemetry_prometheus::exporter().with_registry(registry.clone()).without_target_info().build();
        let builder = SdkMeterProvider::builder();
        // Registering in a fresh registry cannot collide.
        let provider = match exporter {
            Ok(exporter) => builder.with_reader(exporter).build(),
            Err(_) => builder.build(),
        };
        Metrics { registry, provider }
    })
}

/// The meter that every instrument of the process comes from.
pub fn meter() -> Meter {
    metrics().provider.meter("rollcall")
}

/// All metrics as Prometheus text.
pub fn prometheus_text() -> String {
    let mut text = Vec::new();
    // Writing to memory cannot fail, and instruments carry valid names.
    let _ = TextEncoder::new().encode(&metrics().registry.gather(), &mut text);
    String::from_utf8(text).unwrap_or_default()
}
