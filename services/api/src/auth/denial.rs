//! Why somebody is not served: for the log and the metrics in full, for the client only as much as helps who is honest.

use common::access::Scope;

use crate::problem::{Problem, ProblemKind};

/// Says that a bearer is wanted (RFC 6750 §3).
pub(crate) const CHALLENGE: &str = "Bearer realm=\"rollcall\"";

/// Says that this scope is.
pub(crate) fn scope_challenge(scope: &str) -> String {
    format!("{CHALLENGE}, error=\"insufficient_scope\", scope=\"{scope}\"")
}

/// Why, as a label: the list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A page of another site may have had it sent.
    CrossSite,
    /// No bearer came.
    Missing,
    /// What came is neither a key nor a token that is accepted here.
    Malformed,
    /// A token of more bytes than this.
    TokenTooLong(usize),
    /// A key with a typing error.
    Mistyped,
    /// A key that nobody made, or that ended long ago.
    UnknownKey,
    /// A known id with another secret.
    WrongSecret,
    /// A key that was revoked.
    RevokedKey,
    /// A key that has ended.
    ExpiredKey,
    /// A token whose algorithm is not on the list.
    Algorithm,
    /// A token that none of the issuer's keys can have signed.
    UnknownSigner,
    /// A token that was changed, or signed by somebody else.
    Signature,
    /// A token that has ended.
    ExpiredToken,
    /// A token whose time has not come.
    EarlyToken,
    /// A token of another issuer.
    Issuer,
    /// A token for another service.
    Audience,
    /// A token of another type, such as an ID token.
    TokenType,
    /// A token without what it must say.
    Claims,
    /// Who asks is known and may not.
    InsufficientScope,
    /// Whether it is valid cannot be found out now.
    Unavailable,
}

/// Why, and who is known to be concerned.
#[derive(Debug)]
pub(super) struct Denial {
    pub(super) reason: Reason,
    /// The id of a known key, or a principal that was proved, as logs may name it.
    pub(super) who: Option<String>,
    /// More for the operator, without any part of what came.
    pub(super) detail: Option<String>,
}

impl Denial {
    /// With who is concerned.
    pub(super) fn of(reason: Reason, who: &str) -> Self {
        Self { reason, who: Some(who.to_owned()), detail: None }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, who: None, detail: None }
    }
}

impl Reason {
    /// As metrics and logs call it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::CrossSite => "cross_site",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TokenTooLong(_) => "token_too_long",
            Self::Mistyped => "mistyped",
            Self::UnknownKey => "unknown_key",
            Self::WrongSecret => "wrong_secret",
            Self::RevokedKey => "revoked_key",
            Self::ExpiredKey => "expired_key",
            Self::Algorithm => "algorithm",
            Self::UnknownSigner => "unknown_signer",
            Self::Signature => "signature",
            Self::ExpiredToken => "expired_token",
            Self::EarlyToken => "early_token",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::TokenType => "token_type",
            Self::Claims => "claims",
            Self::InsufficientScope => "insufficient_scope",
            Self::Unavailable => "unavailable",
        }
    }

    /// What the client is told.
    pub(super) fn problem(self, any_of: &[Scope]) -> Problem {
        let invalid = || format!("{CHALLENGE}, error=\"invalid_token\"");
        let unauthenticated = |detail: &str| Problem::new(ProblemKind::Unauthenticated).detail(detail);
        match self {
            Self::CrossSite => Problem::new(ProblemKind::CrossSite),
            Self::Missing => {
                unauthenticated("no bearer came; send Authorization: Bearer with an API key or an access token")
                    .challenge(CHALLENGE.to_owned())
            }
            Self::Mistyped => {
                unauthenticated("the API key has a typing error or was cut; copy the whole key").challenge(invalid())
            }
            Self::TokenTooLong(longest) => unauthenticated(&format!(
                "the access token has more than the {longest} bytes that are accepted here; get one with fewer claims, or \
                 have AUTH_JWT_MAX_BYTES raised"
            ))
            .challenge(invalid()),
            // Nobody learns from the answer whether a key exists.
            Self::Malformed | Self::UnknownKey | Self::WrongSecret | Self::RevokedKey | Self::ExpiredKey => {
                unauthenticated("the API key or access token is not valid; get a valid one from who runs this service")
                    .challenge(invalid())
            }
            Self::Algorithm
            | Self::UnknownSigner
            | Self::Signature
            | Self::ExpiredToken
            | Self::EarlyToken
            | Self::Issuer
            | Self::Audience
            | Self::TokenType
            | Self::Claims => {
                unauthenticated("the access token is not valid here and now; get a fresh one for this service")
                    .challenge(invalid())
            }
            Self::InsufficientScope => {
                let names: Vec<_> = any_of.iter().map(|scope| scope.as_str()).collect();
                let first = names.first().copied().unwrap_or_default();
                Problem::new(ProblemKind::Forbidden)
                    .detail(format_args!("the scope {} is missing; use a key or token that has it", names.join(" or ")))
                    .challenge(scope_challenge(first))
            }
            Self::Unavailable => Problem::new(ProblemKind::AuthenticationUnavailable),
        }
    }
}
