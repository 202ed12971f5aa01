//! Who is served: every operation of the contract against every kind of caller.

mod crowd;
mod issuer;

use std::path::Path;
use std::time::Duration;

use common::access::{ApiKey, Scope};
use jsonwebtoken::Algorithm;
use poem::Body;
use rollcall_api::auth::settings::{AuthSettings, KeySource, TokenSettings, TokenType};
use rollcall_api::problem::ProblemKind;
use serde_json::json;
use sqlx::PgConnection;

use crate::contract::{assert_documented, operations};
use crate::support::{Answer, App, Database, request};
use issuer::{AUDIENCE, ISSUER, Issuer, from_now, unsigned, with_claims};

/// Of a token, in bytes.
const LONGEST: usize = 16_384;

/// What must come of a caller.
#[derive(Debug, Clone)]
enum Expected {
    /// 401, and nothing was sent that could be wrong.
    Missing,
    /// 401.
    Invalid,
    /// Served where one of these is enough, else 403.
    Allowed(Vec<Scope>),
}

struct Operation {
    method: String,
    path: String,
    takes_content: bool,
    scopes: Vec<Scope>,
}

/// As the contract has them, each with a request whose body is not valid.
fn every_operation() -> Vec<Operation> {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let filled = |path: &str| -> Vec<_> {
        path.split('/').map(|part| if part.starts_with('{') { id } else { part }.to_owned()).collect()
    };
    let found = operations().map(|(method, path, operation)| {
        assert_eq!(operation["security"], json!([{"bearer": []}]), "{method} {path}");
        let scopes = operation["x-required-scope"].as_array().expect("scopes").iter();
        let scopes: Vec<Scope> =
            scopes.map(|scope| scope.as_str().expect("a text").parse().expect("a scope")).collect();
        assert!(!scopes.is_empty(), "{method} {path}");
        let described = operation["description"].as_str().unwrap_or_default();
        assert!(scopes.iter().all(|scope| described.contains(scope.as_str())), "{method} {path}: {described}");
        let takes_content = !operation["requestBody"].is_null();
        Operation { method, path: filled(path).join("/"), takes_content, scopes }
    });
    found.collect()
}

impl Operation {
    async fn call(&self, app: &App, authorization: Option<&str>) -> Answer {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(authorization.map(|value| ("authorization", value)));
        let content = if self.takes_content { Body::from("{}") } else { Body::empty() };
        app.send(request(&self.method, &self.path, &headers, content)).await
    }
}

#[track_caller]
fn check(operation: &Operation, answer: &Answer, expected: &Expected, reason: &str) {
    let reason = format!("{} {} as {reason}", operation.method, operation.path);
    assert_documented(&operation.method, &operation.path, answer, &reason);
    let challenge = answer.header("www-authenticate");
    match expected {
        Expected::Missing => {
            answer.assert_problem(ProblemKind::Unauthenticated, &[], &reason);
            assert_eq!(challenge, Some("Bearer realm=\"rollcall\""), "{reason}");
        }
        Expected::Invalid => {
            answer.assert_problem(ProblemKind::Unauthenticated, &[], &reason);
            assert_eq!(challenge, Some("Bearer realm=\"rollcall\", error=\"invalid_token\""), "{reason}");
        }
        Expected::Allowed(scopes) if !scopes.iter().any(|scope| operation.scopes.contains(scope)) => {
            answer.assert_problem(ProblemKind::Forbidden, &[], &reason);
            let scope = operation.scopes[0];
            let expected = format!("Bearer realm=\"rollcall\", error=\"insufficient_scope\", scope=\"{scope}\"");
            assert_eq!(challenge, Some(&*expected), "{reason}");
        }
        Expected::Allowed(_) => {
            // The body is not valid, there is no such user, or the broker is away.
            assert!([200, 400, 404, 503].contains(&answer.status.as_u16()), "{reason}: {}", answer.text());
            assert!(!answer.text().contains("authentication"), "{reason}: {}", answer.text());
            assert_eq!(challenge, None, "{reason}");
        }
    }
}

fn tokens(key_set: &Path) -> TokenSettings {
    TokenSettings {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        algorithms: vec![Algorithm::RS256, Algorithm::ES256],
        types: vec![TokenType::parse("at+jwt").expect("a type")],
        keys: KeySource::File(key_set.to_owned()),
        longest: LONGEST,
    }
}

async fn insert(conn: &mut PgConnection, key: &ApiKey, hash: &[u8], scopes: &[Scope], ends: [Option<&str>; 2]) {
    let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    let inserted = sqlx::query(
        "INSERT INTO api_keys (id, client, hash, scopes, expires_at, revoked_at)
         VALUES ($1, 'billing', $2, $3, now() + $4::text::interval, now() + $5::text::interval)",
    )
    .bind(key.id())
    .bind(hash)
    .bind(scopes)
    .bind(ends[0])
    .bind(ends[1])
    .execute(conn)
    .await;
    inserted.expect("a row");
}

pub(crate) async fn inserted(conn: &mut PgConnection, scopes: &[Scope], ends: [Option<&str>; 2]) -> String {
    let key = ApiKey::mint();
    insert(conn, &key, &key.hash(), scopes, ends).await;
    key.expose().to_owned()
}

async fn key_cases(conn: &mut PgConnection) -> Vec<(String, String, Expected)> {
    let mut cases = Vec::new();
    for scope in Scope::ALL {
        let key = inserted(conn, &[scope], [None, None]).await;
        cases.push((format!("a key with {scope}"), key, Expected::Allowed(vec![scope])));
    }
    let all = inserted(conn, &Scope::ALL, [Some("1 hour"), None]).await;
    let mistyped = format!("{}{}", &all[..58], if all.ends_with('0') { '1' } else { '0' });
    let wrong = ApiKey::mint();
    insert(conn, &wrong, &ApiKey::mint().hash(), &Scope::ALL, [None, None]).await;
    let mut invalid = vec![
        ("a mistyped key", mistyped),
        ("half a key", all[..30].to_owned()),
        ("a key that nobody made", ApiKey::mint().expose().to_owned()),
        ("a known id with another secret", wrong.expose().to_owned()),
    ];
    for (what, ends) in [
        ("a key that has expired", [Some("-1 second"), None]),
        ("a key that expired long ago", [Some("-60 days"), None]),
        ("a revoked key", [Some("1 hour"), Some("-1 second")]),
        ("a key that was revoked long ago", [None, Some("-60 days")]),
    ] {
        invalid.push((what, inserted(conn, &Scope::ALL, ends).await));
    }
    cases.push(("a key with every scope".into(), all, Expected::Allowed(Scope::ALL.to_vec())));
    cases.extend(invalid.into_iter().map(|(what, key)| (what.to_owned(), key, Expected::Invalid)));
    cases
}

fn token_cases(issuer: &Issuer) -> Vec<(String, String, Expected)> {
    let allowed = [
        ("a token", json!({}), Scope::ALL.to_vec()),
        ("a token that may read", json!({"scope": "users:read"}), vec![Scope::UsersRead]),
        ("a token that may write", json!({"scope": null, "scp": ["users:write"]}), vec![Scope::UsersWrite]),
        ("a token for history", json!({"scope": "openid history:read"}), vec![Scope::HistoryRead]),
        ("scopes as a text in scp", json!({"scope": null, "scp": "users:read x"}), vec![Scope::UsersRead]),
        ("no scopes", json!({"scope": null}), vec![]),
        ("unknown scopes", json!({"scope": "users users:admin USERS:READ users:reader"}), vec![]),
        ("one audience of several", json!({"aud": ["https://else.example.org", AUDIENCE]}), Scope::ALL.to_vec()),
        ("expired within the leeway", json!({"exp": from_now(-5)}), Scope::ALL.to_vec()),
        ("valid soon, within the leeway", json!({"nbf": from_now(10)}), Scope::ALL.to_vec()),
        ("valid since", json!({"nbf": from_now(-10)}), Scope::ALL.to_vec()),
        // As many as make 8,651 bytes with one known issuer.
        (
            "a member of 150 groups",
            json!({"groups": vec!["9c5b94b1-35ad-49bb-b118-8e8fc24abf80"; 150]}),
            Scope::ALL.to_vec(),
        ),
        ("a fraction of a second", json!({"exp": 9_999_999_999.5, "nbf": 1.5}), Scope::ALL.to_vec()),
        ("a subject of the greatest length", json!({"sub": "x".repeat(195)}), Scope::ALL.to_vec()),
    ];
    let refused = [
        ("expired", json!({"exp": from_now(-60)})),
        ("not yet valid", json!({"nbf": from_now(3600)})),
        ("without an end", json!({"exp": null})),
        ("with a text as its end", json!({"exp": "never"})),
        ("with a text as its beginning", json!({"nbf": "tomorrow"})),
        ("of another issuer", json!({"iss": "https://issuer.example.org"})),
        ("of two issuers", json!({"iss": [ISSUER, "https://else.example.org"]})),
        ("of no issuer", json!({"iss": null})),
        ("for another audience", json!({"aud": "https://else.example.org"})),
        ("for nobody", json!({"aud": []})),
        ("without an audience", json!({"aud": null})),
        ("of nobody", json!({"sub": null})),
        ("of an empty subject", json!({"sub": ""})),
        ("of a subject that is too long", json!({"sub": "x".repeat(196)})),
        ("of a subject with a line break", json!({"sub": "ada\nroot"})),
        ("of a subject with a character that nobody sees", json!({"sub": "ad\u{200b}a"})),
        ("of a number", json!({"sub": 1})),
        ("with scopes that are no words", json!({"scope": 7})),
        ("that is too long", json!({"filler": "x".repeat(LONGEST)})),
        ("that ended in 1969", json!({"exp": -1})),
    ];
    let mut cases: Vec<_> = allowed
        .iter()
        .map(|(what, claims, scopes)| ((*what).to_owned(), issuer.token(claims), Expected::Allowed(scopes.clone())))
        .collect();
    let read = json!({"scope": "users:read"});
    cases.push(("signed with the other key".into(), issuer.ec_token(&read), Expected::Allowed(vec![Scope::UsersRead])));
    cases.extend(
        refused.iter().map(|(what, claims)| (format!("a token {what}"), issuer.token(claims), Expected::Invalid)),
    );
    let good =
        json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": from_now(300), "scope": "users:read users:write"});
    let headers = [
        ("of an unknown key", json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa-2"})),
        ("that names the EC key", json!({"typ": "at+jwt", "alg": "RS256", "kid": "ec"})),
        ("with an algorithm that is not on the list", json!({"typ": "at+jwt", "alg": "RS512", "kid": "rsa"})),
        (
            "with something critical",
            json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": true}),
        ),
        ("with nothing critical", json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa", "crit": []})),
        ("with null for what is critical", json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa", "crit": null})),
        ("with a number for its key", json!({"typ": "at+jwt", "alg": "RS256", "kid": 1})),
        ("with a number for its algorithm", json!({"typ": "at+jwt", "alg": 256, "kid": "rsa"})),
        ("with no algorithm", json!({"typ": "at+jwt", "kid": "rsa"})),
    ];
    cases.extend(
        headers.iter().map(|(what, header)| (format!("a token {what}"), issuer.sign(header, &good), Expected::Invalid)),
    );
    let honest = issuer.token(&read);
    let mut forged = vec![
        ("a token with more scopes than were signed", with_claims(&honest, &json!({}))),
        ("a token without its signature", honest[..=honest.rfind('.').expect("a dot")].to_owned()),
        ("a token of another issuer with the same key id", Issuer::new().token(&json!({}))),
        ("no signature at all", unsigned(&json!({"alg": "none"}))),
        ("no signature for a known key", unsigned(&json!({"alg": "none", "kid": "rsa"}))),
        ("an algorithm in other letters", unsigned(&json!({"alg": "nOnE", "kid": "rsa"}))),
        ("an empty signature", unsigned(&json!({"typ": "at+jwt", "alg": "RS256", "kid": "rsa"}))),
        ("no token", "abc".to_owned()),
        ("dots", "..".to_owned()),
    ];
    forged.extend(issuer.forged_with_the_public_key().map(|token| ("the public key as a secret", token)));
    cases.extend(forged.into_iter().map(|(what, token)| (what.to_owned(), token, Expected::Invalid)));
    // An issuer may add members at any time, and change the type of those that nothing here looks at.
    let odd = json!({
        "alg": "RS256", "kid": "rsa", "typ": "at+jwt", "cty": [], "jku": {}, "jwk": "x", "x5u": 1, "x5c": "a", "x5t": true, "url": 5,
        "nonce": 9, "enc": 1, "zip": {}, "eap": 1, "gty": ["authorization_code"], "v": true,
    });
    cases.push((
        "a token with members of any type in its header".into(),
        issuer.sign(&odd, &good),
        Expected::Allowed(vec![Scope::UsersRead, Scope::UsersWrite]),
    ));
    // All keys for its algorithm are tried.
    let unnamed = issuer.sign(&json!({"typ": "at+jwt", "alg": "RS256"}), &good);
    cases.push((
        "a token without a key id".into(),
        unnamed,
        Expected::Allowed(vec![Scope::UsersRead, Scope::UsersWrite]),
    ));
    cases
}

struct Case {
    what: String,
    authorization: Option<String>,
    expected: Expected,
}

async fn every_case(conn: &mut PgConnection, issuer: &Issuer) -> Vec<Case> {
    let case = |what: &str, authorization: Option<&str>, expected| Case {
        what: what.to_owned(),
        authorization: authorization.map(str::to_owned),
        expected,
    };
    let mut cases = vec![
        case("nobody", None, Expected::Missing),
        case("another scheme", Some("Basic YWRhOmh1c2g="), Expected::Missing),
        case("garbage", Some("Bearer garbage"), Expected::Invalid),
        case("no token", Some("Bearer"), Expected::Invalid),
    ];
    let bearers = [key_cases(conn).await, token_cases(issuer)].concat();
    cases.extend(
        bearers.into_iter().map(|(what, bearer, expected)| case(&what, Some(&format!("Bearer {bearer}")), expected)),
    );
    cases
}

#[tokio::test]
async fn every_operation_serves_only_whom_it_may() {
    let mut database = Database::create().await;
    let (issuer, folder) = (Issuer::new(), tempfile::tempdir().expect("a folder"));
    let key_set = folder.path().join("keys.json");
    // Another key has the same id, and some are of no use here.
    let mut keys = Issuer::new().key_set();
    let useless = [
        json!({"kty": "AKP", "kid": "rsa", "alg": "ML-DSA-44", "pub": "AA"}),
        json!({"kty": "oct", "kid": "rsa", "k": "AA"}),
    ];
    let keys_there = keys["keys"].as_array_mut().expect("keys");
    keys_there.extend(useless);
    keys_there.extend(issuer.key_set()["keys"].as_array().expect("keys").clone());
    std::fs::write(&key_set, keys.to_string()).expect("a key set");
    let cases = every_case(&mut database.conn, &issuer).await;
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: Some(tokens(&key_set)), local: None });
    let operations = every_operation();
    for case in &cases {
        for operation in &operations {
            let answer = operation.call(&app, case.authorization.as_deref()).await;
            check(operation, &answer, &case.expected, &case.what);
            if let (Some(bearer), 401) =
                (case.authorization.as_deref().map(|line| &line[line.len().min(7)..]), answer.status.as_u16())
            {
                let told = [answer.text(), answer.header("www-authenticate").unwrap_or_default()].concat();
                let secret = bearer.len() > 7 && told.contains(bearer);
                let telling = ["revoked", "expired", "unknown", "exist"].into_iter().find(|word| told.contains(word));
                assert!(!secret && telling.is_none(), "{}: {telling:?} in {told}", case.what);
            }
        }
    }
    assert!(cases.len() > 50, "{}", cases.len());
    let metrics = app.get("/metrics").await;
    for reason in
        ["missing", "mistyped", "unknown_key", "wrong_secret", "revoked_key", "expired_key", "insufficient_scope"]
    {
        assert!(metrics.text().contains(&format!("rollcall_api_refusals_total{{reason=\"{reason}\"")), "{reason}");
    }
    for reason in [
        "token_too_long",
        "algorithm",
        "unknown_signer",
        "signature",
        "expired_token",
        "early_token",
        "issuer",
        "audience",
        "claims",
    ] {
        assert!(metrics.text().contains(&format!("rollcall_api_refusals_total{{reason=\"{reason}\"")), "{reason}");
    }
    for state in ["known", "type", "algorithm", "purpose", "malformed"] {
        assert!(metrics.text().contains(&format!("rollcall_api_token_keys{{state=\"{state}\"")), "{state}");
    }
}

/// Signed by the issuer for this service: what makes it no access token is its type alone.
#[tokio::test]
async fn a_token_of_another_type_is_refused_unless_it_is_allowed() {
    let database = Database::create().await;
    let (issuer, folder) = (Issuer::new(), tempfile::tempdir().expect("a folder"));
    let key_set = folder.path().join("keys.json");
    std::fs::write(&key_set, issuer.key_set().to_string()).expect("a key set");
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": from_now(300), "scope": "users:read", "nonce": "n", "at_hash": "x",
    });
    let app = |types: &[&str]| {
        let types = types.iter().map(|text| TokenType::parse(text).expect("a type")).collect();
        let tokens = Some(TokenSettings { types, ..tokens(&key_set) });
        App::guarded(database.url(), AuthSettings { keys: false, tokens, local: None })
    };
    let (strict, lax) = (app(&["at+jwt"]), app(&["application/at+jwt", "jwt", "none"]));
    for (typ, strictly, laxly) in [
        (Some("at+jwt"), 200, 200),
        (Some("AT+JWT"), 200, 200),
        (Some("application/at+jwt"), 200, 200),
        (Some("JWT"), 401, 200),
        (None, 401, 200),
        (Some("none"), 401, 401),
        (Some(""), 401, 401),
        (Some("id_token"), 401, 401),
        (Some("logout+jwt"), 401, 401),
        (Some("secevent+jwt"), 401, 401),
        (Some("dpop+jwt"), 401, 401),
    ] {
        let mut header = json!({"alg": "RS256", "kid": "rsa"});
        if let Some(typ) = typ {
            header["typ"] = json!(typ);
        }
        let bearer = format!("Bearer {}", issuer.sign(&header, &claims));
        for (app, expected) in [(&strict, strictly), (&lax, laxly)] {
            let answer = app.get_with("/v1/users", &[("authorization", &bearer)]).await;
            assert_eq!(answer.status.as_u16(), expected, "{typ:?}: {}", answer.text());
        }
    }
    let metrics = strict.get("/metrics").await;
    assert!(metrics.text().contains("rollcall_api_refusals_total{reason=\"token_type\""));
}

#[tokio::test]
async fn a_token_that_is_too_long_is_refused_with_the_limit() {
    let database = Database::create().await;
    let (issuer, folder) = (Issuer::new(), tempfile::tempdir().expect("a folder"));
    let key_set = folder.path().join("keys.json");
    std::fs::write(&key_set, issuer.key_set().to_string()).expect("a key set");
    let app = App::guarded(database.url(), AuthSettings { keys: false, tokens: Some(tokens(&key_set)), local: None });
    let token = issuer.token(&json!({"filler": "x".repeat(LONGEST)}));
    let answer = app.get_with("/v1/users", &[("authorization", &format!("Bearer {token}"))]).await;
    let document = answer.assert_problem(ProblemKind::Unauthenticated, &[], "a token that is too long");
    let detail = document["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("16384 bytes") && detail.contains("AUTH_JWT_MAX_BYTES"), "{detail}");
}

#[tokio::test]
async fn only_the_proofs_that_are_configured_are_accepted() {
    let mut database = Database::create().await;
    let (issuer, folder) = (Issuer::new(), tempfile::tempdir().expect("a folder"));
    let key_set = folder.path().join("keys.json");
    std::fs::write(&key_set, issuer.key_set().to_string()).expect("a key set");
    let key = format!("Bearer {}", inserted(&mut database.conn, &Scope::ALL, [None, None]).await);
    let token = format!("Bearer {}", issuer.token(&json!({})));
    let all = Expected::Allowed(Scope::ALL.to_vec());
    let keys_only = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    let tokens_only =
        App::guarded(database.url(), AuthSettings { keys: false, tokens: Some(tokens(&key_set)), local: None });
    let open = App::over(database.url());
    for operation in every_operation() {
        for (app, key_expected, token_expected, none_expected) in [
            (&keys_only, &all, &Expected::Invalid, &Expected::Missing),
            (&tokens_only, &Expected::Invalid, &all, &Expected::Missing),
            (&open, &all, &all, &all),
        ] {
            check(&operation, &operation.call(app, Some(&key)).await, key_expected, "a key");
            check(&operation, &operation.call(app, Some(&token)).await, token_expected, "a token");
            check(&operation, &operation.call(app, None).await, none_expected, "nobody");
        }
    }
}

#[tokio::test]
async fn nothing_of_a_request_is_looked_at_before_who_sent_it() {
    let database = Database::create().await;
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    let faulty =
        [("prefer", "wait=soon"), ("if-match", "x"), ("idempotency-key", "a b"), ("content-type", "text/plain")];
    for operation in operations() {
        let (method, path, _) = operation;
        let path = path.replace("{user_id}", "me").replace("{command_id}", "it");
        let body = Body::from_async_read(tokio::io::repeat(b'x'));
        let answer = app.send(request(&method, &format!("{path}?limit=x"), &faulty, body)).await;
        answer.assert_problem(ProblemKind::Unauthenticated, &[], &format!("{method} {path}"));
    }
}

#[tokio::test]
async fn what_is_no_operation_is_open_to_everybody() {
    let database = Database::create().await;
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    for path in ["/healthz", "/metrics", "/docs", "/openapi.json", "/problems", "/problems/forbidden"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    let answer = app.get("/readyz").await;
    assert!(answer.text().contains("\"keys\":"), "{}", answer.text());
    app.get("/nothing").await.assert_problem(ProblemKind::NoSuchRoute, &[], "a path that is none");
}

#[tokio::test]
async fn a_key_works_as_soon_as_it_is_made_and_not_much_longer_than_it_is_valid() {
    let mut database = Database::create().await;
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    let list = async |key: &str| app.get_with("/v1/users", &[("authorization", &format!("Bearer {key}"))]).await;
    assert_eq!(list(ApiKey::mint().expose()).await.status, 401, "the keys are loaded");
    for _ in 0..2 {
        let key = inserted(&mut database.conn, &[Scope::UsersRead], [Some("4 seconds"), None]).await;
        assert_eq!(list(&key).await.status, 200, "at once");
        let waiting = async {
            while list(&key).await.status == 200 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it expires by the clock");
        list(&key).await.assert_problem(ProblemKind::Unauthenticated, &[], "expired");
    }
}

#[tokio::test]
async fn while_it_cannot_be_known_who_is_valid_nobody_is_told_that_they_are_not() {
    let app =
        App::guarded("postgres://nobody@127.0.0.1:1/nothing", AuthSettings { keys: true, tokens: None, local: None });
    let key = format!("Bearer {}", ApiKey::mint().expose());
    let missing = tempfile::tempdir().expect("a folder").path().join("keys.json");
    let without_signers = App::guarded(
        "postgres://nobody@127.0.0.1:1/nothing",
        AuthSettings { keys: false, tokens: Some(tokens(&missing)), local: None },
    );
    let token = format!("Bearer {}", Issuer::new().token(&json!({})));
    for (app, check, bearer) in [(&app, "keys", &key), (&without_signers, "token-keys", &token)] {
        for operation in every_operation() {
            let answer = operation.call(app, Some(bearer)).await;
            answer.assert_problem(ProblemKind::AuthenticationUnavailable, &[], check);
            assert_eq!(answer.header("retry-after"), Some("1"));
            assert_documented(&operation.method, &operation.path, &answer, check);
        }
        let nobody = app.get("/v1/users").await;
        nobody.assert_problem(ProblemKind::Unauthenticated, &[], "what is missing is missing");
        let line = app.health.report().checks[check].clone();
        assert!(!app.health.report().ready && line.starts_with("failed: "), "{line}");
    }
    assert!(without_signers.health.report().checks["token-keys"].contains("AUTH_JWKS: "));
}
