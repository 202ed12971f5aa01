//! Why a call gave nothing.

use std::fmt;

use reqwest::StatusCode;

use crate::generated;
use crate::types::Problem;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused, and says why.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// No answer came, or it broke off.
    #[error("the service did not answer")]
    Transport(#[from] reqwest::Error),
    /// The request was not sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
    /// Something answered that is not this service.
    #[error("the answer, with status {0}, is none of the contract; is this the address of the service?")]
    Foreign(String),
}

impl Error {
    /// The problem, if the service refused.
    pub fn problem(&self) -> Option<&Problem> {
        if let Self::Problem(problem) = self { Some(problem) } else { None }
    }
}

impl From<generated::Error<Problem>> for Error {
    fn from(error: generated::Error<Problem>) -> Self {
        use generated::Error as Of;
        match error {
            Of::ErrorResponse(problem) => Self::Problem(Box::new(problem.into_inner())),
            Of::CommunicationError(error) | Of::ResponseBodyError(error) | Of::InvalidUpgrade(error) => {
                Self::Transport(error)
            }
            Of::InvalidRequest(fault) | Of::Custom(fault) => Self::Request(fault),
            Of::UnexpectedResponse(response) => Self::Foreign(response.status().to_string()),
            Of::InvalidResponsePayload(_, fault) => Self::Foreign(format!("unknown ({fault})")),
        }
    }
}

impl Problem {
    /// Which problem it is: the last segment of its type, like `email-taken`.
    pub fn kind(&self) -> &str {
        self.type_.rsplit('/').next().unwrap_or_default()
    }

    /// The HTTP status.
    pub fn status_code(&self) -> StatusCode {
        let status = u16::try_from(self.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.title, self.kind())?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        for fault in &self.errors {
            write!(f, "; {} {}", fault.field, fault.detail)?;
        }
        write!(f, "; trace {}", self.trace_id)
    }
}

impl std::error::Error for Problem {}
