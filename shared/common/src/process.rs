//! The order in which a service begins and ends, the same for both: telemetry first and last, the pool last but one.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use tracing::{info, warn};

use crate::config::ServiceSettings;
use crate::db::Pool;
use crate::shutdown::{Shutdown, Signals, StopError, chain};
use crate::telemetry::{Telemetry, TelemetryError};

/// Why a service ended with exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not log or trace.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// It could not start.
    #[error("failed to start {0}")]
    Start(&'static str, #[source] Box<dyn Error + Send + Sync>),
    /// It started, and did not end well.
    #[error(transparent)]
    Stop(#[from] StopError),
}

/// The end of an executable: what went wrong goes to standard error, with its causes in one line. A
/// mistyped setting needs no backtrace.
pub fn exit_code<E: Into<Box<dyn Error + Send + Sync>>>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever closed it wants to hear nothing.
            let _ = writeln!(std::io::stderr(), "Error: {}", chain(&*error.into()));
            ExitCode::FAILURE
        }
    }
}

/// Runs a service until a signal or a failure. `start` begins every part and gives the pool, which closes when all parts
/// have ended; telemetry is flushed after that.
///
/// # Errors
/// See [`ProcessError`].
pub async fn run<E: Into<Box<dyn Error + Send + Sync>>>(
    name: &'static str,
    settings: &ServiceSettings,
    start: impl AsyncFnOnce(&Shutdown) -> Result<Pool, E>,
) -> Result<(), ProcessError> {
    let telemetry = Telemetry::start(&settings.telemetry, name)?;
    for exposure in &settings.exposures {
        warn!(setting = exposure.setting, "a connection is not protected: {}", exposure.risk);
    }
    // First of all: it may be told to stop while it starts.
    let signals = Signals::listen()?;
    let shutdown = Shutdown::default();
    let graces = settings.graces;
    let outcome = match start(&shutdown).await {
        Ok(pool) => {
            let end = shutdown.run_on(signals, graces).await;
            pool.close().await;
            info!("stopped");
            end.map_err(ProcessError::Stop)
        }
        Err(error) => Err(ProcessError::Start(name, error.into())),
    };
    telemetry.flush().await;
    outcome
}
