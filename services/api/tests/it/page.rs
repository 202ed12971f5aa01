//! The page of the contract: cached by its tag, and nothing in it comes from elsewhere.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use poem::Body;

use crate::support::{App, request};

#[tokio::test]
async fn fixed_documents_are_sent_once_and_then_confirmed() {
    let app = App::unconnected();
    for path in ["/", "/docs", "/openapi.json"] {
        let answer = app.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let tag = answer.header("etag").expect("a tag").to_owned();
        let current = [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()];
        for sent in &current {
            let again = app.get_with(path, &[("if-none-match", sent)]).await;
            assert_eq!((again.status.as_u16(), again.body.len()), (304, 0), "{path} {sent}");
            assert_eq!(again.header("etag"), Some(tag.as_str()), "{path} {sent}");
            assert_eq!(again.header("cache-control"), answer.header("cache-control"), "{path} {sent}");
        }
        let lines = [("if-none-match", "\"other\""), ("if-none-match", tag.as_str())];
        assert_eq!(app.send(request("GET", path, &lines, Body::empty())).await.status, 304, "{path}: two lines");
        assert_eq!(app.get_with(path, &[("if-none-match", "\"other\"")]).await.status, 200, "{path}: another tag");
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let page = App::unconnected().get("/docs").await;
    assert!(page.header("content-type").is_some_and(|t| t.starts_with("text/html")));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(!policy.contains("http") && !policy.contains('*'), "no other host is allowed: {policy}");
    // The scripts hold links for people, which load nothing; markup and styles are what a browser acts on by itself.
    let mut rest = page.text();
    let mut markup = String::new();
    while let Some((before, script)) = rest.split_once("<script") {
        let (attributes, script) = script.split_once('>').expect("a whole tag");
        markup.push_str(before);
        markup.push_str(attributes);
        rest = script.split_once("</script>").expect("an end of the script").1;
    }
    markup.push_str(rest);
    let squeezed: String =
        markup.to_lowercase().chars().filter(|c| !c.is_whitespace() && !"\"'".contains(*c)).collect();
    for loading in ["src=", "href=", "url(", "@import"] {
        for (at, _) in squeezed.match_indices(loading) {
            let target = &squeezed[at + loading.len()..];
            assert!(
                target.starts_with("data:") || target.starts_with('#'),
                "{}",
                &squeezed[at..(at + 80).min(squeezed.len())]
            );
        }
    }
}

/// Markup that got into a page could not run.
#[tokio::test]
async fn only_the_scripts_of_a_page_run_there() {
    let app = App::unconnected();
    for (path, scripts) in [("/", 1), ("/docs", 2)] {
        let page = app.get(path).await;
        let policy = page.header("content-security-policy").expect("a policy");
        let sources = policy.split("script-src ").nth(1).and_then(|rest| rest.split(';').next()).expect("sources");
        let (mut hashes, mut rest) = (Vec::new(), page.text());
        while let Some((_, tag)) = rest.split_once("<script") {
            let (script, after) =
                tag.split_once('>').and_then(|(_, text)| text.split_once("</script>")).expect("a script");
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, script.as_bytes());
            hashes.push(format!("'sha256-{}'", STANDARD.encode(digest)));
            rest = after;
        }
        assert_eq!((sources, hashes.len()), (hashes.join(" ").as_str(), scripts), "{path}");
        assert!(!page.text().contains('\r'), "{path}: a browser would hash another text");
        assert_eq!(policy.contains("'unsafe-inline'"), path == "/docs", "{path}: {policy}");
    }
}

#[tokio::test]
async fn the_page_shows_the_contract_as_it_is_served() {
    let app = App::unconnected();
    let (page, contract) = (app.get("/docs").await, app.get("/openapi.json").await);
    assert!(page.text().contains(contract.text()));
}
