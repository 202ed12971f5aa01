//! The parameter by which an operation says whom it serves.

use std::marker::PhantomData;

use common::access::Scope;
use common::command::Principal;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use super::{Guard, Identity};
use crate::problem::{Failed, Problem, ProblemKind};
use crate::query;

/// The name of the security scheme in the contract.
pub(crate) const SCHEME: &str = "bearer";

/// Who asks. One of the scopes of `N` was proved, or nobody has to prove anything.
#[derive(Debug)]
pub(crate) struct Caller<N> {
    /// What commands are recorded under.
    pub(crate) principal: Principal,
    /// The caller has the scope `users:read`, too.
    pub(crate) reads_users: bool,
    needs: PhantomData<N>,
}

/// The scopes of which an operation asks for one.
pub(crate) trait Needs: Send {
    /// The first is what a caller without any of them is told to get.
    const ANY_OF: &'static [Scope];
}

/// `users:read`.
#[derive(Debug)]
pub struct UsersRead;

/// `users:write`.
#[derive(Debug)]
pub struct UsersWrite;

/// `history:read`.
#[derive(Debug)]
pub struct HistoryRead;

impl Needs for UsersRead {
    const ANY_OF: &'static [Scope] = &[Scope::UsersRead];
}

impl Needs for UsersWrite {
    const ANY_OF: &'static [Scope] = &[Scope::UsersWrite];
}

impl Needs for HistoryRead {
    const ANY_OF: &'static [Scope] = &[Scope::HistoryRead];
}

/// Who may write must learn what came of it.
impl Needs for (UsersRead, UsersWrite) {
    const ANY_OF: &'static [Scope] = &[Scope::UsersRead, Scope::UsersWrite];
}

impl<'a, N: Needs> ApiExtractor<'a> for Caller<N> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let scheme = MetaSecurityScheme {
            ty: "http",
            description: Some(
                "An API key (`rollcall keys create`), or an access token (JWT) of the configured issuer. \
                 `x-required-scope` names the scopes of which an operation needs one. An instance that was told to let \
                 everybody in needs neither.",
            ),
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: Some("API key or JWT"),
            flows: None,
            openid_connect_url: None,
        };
        registry.create_security_scheme(SCHEME, scheme);
    }

    /// One per scope, each an alternative: the document says it as OpenAPI 3.0 can.
    fn security_schemes() -> Vec<&'static str> {
        N::ANY_OF.iter().map(|scope| scope.as_str()).collect()
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let admitted = match request.data::<Guard>() {
            Some(guard) => guard.admit(request, N::ANY_OF).await,
            // Routes without a guard let nobody in.
            None => Err(Problem::new(ProblemKind::Internal)),
        };
        let refuse = |problem: Problem| poem::Error::from(Failed::<()>::from(problem));
        let Identity { principal, scopes } = admitted.map_err(refuse)?;
        query::check(request, body).await.map_err(refuse)?;
        Ok(Self { principal, reads_users: scopes.contains(&Scope::UsersRead), needs: PhantomData })
    }
}
