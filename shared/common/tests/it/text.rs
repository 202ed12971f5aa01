//! E-mail addresses, names and principals: what is accepted and what is refused.

use proptest::prelude::*;
use rollcall_common::command::{Email, Name, Principal};

#[test]
fn valid_addresses_are_kept_as_they_were_written() {
    let longest = format!("{}@{}.org", "a".repeat(64), ["b".repeat(61), "c".repeat(61), "d".repeat(61)].join("."));
    assert_eq!(longest.len(), 254);
    let table = [
        ("plain", "ada@example.org"),
        ("letter case is kept", "Ada.Lovelace@Example.ORG"),
        ("tag", "ada+lists@example.org"),
        ("digits and hyphens", "a-1_2@ex-ample.co.uk"),
        ("all of RFC 5322 atext", "!#$%&'*+-/=?^_`{|}~@example.org"),
        ("an apostrophe", "o'neil@example.org"),
        ("a domain of another script in its ASCII form", "ada@xn--bcher-kva.example"),
        ("hyphens in other places than IDNA's", "ada@a--b.exam--ple.org"),
        ("the longest", &longest),
    ];
    for (reason, text) in table {
        let email = Email::parse(text).map_err(|fault| format!("{reason}: {fault}")).expect("an address");
        assert_eq!(email.as_str(), text, "{reason}");
    }
}

#[test]
fn invalid_addresses_are_refused_without_repeating_them() {
    let long = format!("{}@example.org", "x".repeat(10_000));
    let too_long = format!("{}@{}.org", "a".repeat(64), ["b".repeat(62), "c".repeat(61), "d".repeat(61)].join("."));
    let long_local = format!("{}@example.org", "x".repeat(65));
    let long_label = format!("ada@{}.org", "x".repeat(64));
    let table = [
        ("empty", ""),
        ("10 kB", &long),
        ("one character too many", &too_long),
        ("a local part of 65 characters", &long_local),
        ("a label of 64 characters", &long_label),
        ("no @", "ada.example.org"),
        ("two @", "ada@home@example.org"),
        ("nothing before @", "@lovelace.org"),
        ("nothing behind @", "adalovelace@"),
        ("no dot in the domain", "ada@localhost"),
        ("a brace in the domain", "ada@exa{mple.org"),
        ("an underscore in the domain", "ada@exa_mple.org"),
        ("a slash in the domain", "ada@exa/mple.org"),
        ("a dot at the domain's end", "ada@example."),
        ("a dot at the domain's start", "ada@.example"),
        ("two dots in the domain", "ada@example..org"),
        ("a dot at the local part's end", "ada.@example.org"),
        ("hyphens where IDNA has its prefix", "ada@U1--hvtBJ.example.org"),
        ("a label of another script that does not decode", "ada@xn--0.example.org"),
        ("an address literal", "ada@[192.0.2.1]"),
        ("a display name", "Ada Lovelace <ada@example.org>"),
        ("angle brackets", "<ada@example.org>"),
        ("a space in front", " ada@example.org"),
        ("a space behind", "ada@example.org "),
        ("a space inside", "ada lovelace@example.org"),
        ("a line break behind", "ada@example.org\n"),
        ("a header behind a line break", "ada@example.org\r\nBcc: eve@example.org"),
        ("a tab", "ada\t@example.org"),
        ("NUL", "ada\0@example.org"),
        ("a letter outside ASCII before @", "adä@example.org"),
        ("a letter outside ASCII behind @", "ada@exämple.org"),
        ("a Kelvin sign, which folds to k", "\u{212a}ate@example.org"),
    ];
    for (reason, text) in table {
        let fault = Email::parse(text).err().unwrap_or_else(|| panic!("accepted: {reason}")).to_string();
        let fault = fault.replace("ada@example.org", "(the example)");
        assert!(text.is_empty() || !fault.contains(text), "{reason} is repeated: {fault}");
        assert!(!fault.contains("lovelace") && !fault.contains("eve"), "{reason} is repeated: {fault}");
        assert!(fault.len() < 200, "{reason}: {fault}");
    }
}

#[test]
fn valid_names_are_kept_as_they_were_written() {
    let longest = "é".repeat(Name::MAX_CHARS);
    let table = [
        ("plain", "Ada Lovelace"),
        ("one character", "A"),
        ("another script", "增田 雅美"),
        ("right to left", "عائشة"),
        ("an emoji joined of several characters", "👩\u{200d}💻"),
        ("an emoji with a selector before the joiner", "❤\u{fe0f}\u{200d}🔥"),
        ("a Persian name with a non-joiner", "علی\u{200c}رضا"),
        ("a half form of Devanagari", "क्\u{200d}षमा"),
        ("an ideographic variant", "葛\u{e0100}城"),
        ("quotes and a semicolon", "Robert'); DROP TABLE users;--"),
        ("the longest, counted in characters", &longest),
    ];
    for (reason, text) in table {
        let name = Name::parse(text).map_err(|fault| format!("{reason}: {fault}")).expect("a name");
        assert_eq!(name.as_str(), text, "{reason}");
    }
}

#[test]
fn invalid_names_are_refused_without_repeating_them() {
    let (ten_kb, long, one_over) = ("x".repeat(10_000), "x".repeat(300), "é".repeat(Name::MAX_CHARS + 1));
    let table = [
        ("empty", ""),
        ("10 kB", ten_kb.as_str()),
        ("300 characters", &long),
        ("one character too many", &one_over),
        ("a line break", "Ada\nLovelace"),
        ("NUL", "Ada\0Lovelace"),
        ("a control character of Latin-1", "Ada\u{85}Lovelace"),
        ("an escape sequence", "\u{1b}[31mLovelace"),
        ("a space in front", " Lovelace"),
        ("a space behind", "Lovelace "),
        ("only a space", " "),
        ("an ideographic space behind", "Lovelace\u{3000}"),
        ("a no-break space in front", "\u{a0}Lovelace"),
        ("a right-to-left override", "Ada\u{202e}Lovelace"),
        ("an isolate", "Ada\u{2066}Lovelace"),
        ("a zero width space", "Ada\u{200b}Lovelace"),
        ("a byte order mark", "\u{feff}Lovelace"),
        ("a word joiner", "Ada\u{2060}Lovelace"),
        ("a soft hyphen", "Ada\u{ad}Lovelace"),
        ("a Hangul filler", "\u{3164}"),
        ("a halfwidth Hangul filler", "Lovelace\u{ffa0}"),
        ("a blank Braille pattern", "\u{2800}"),
        ("a line separator", "Ada\u{2028}Lovelace"),
        ("a tag character", "Lovelace\u{e0041}"),
        ("a joiner between letters that need none", "Ad\u{200d}a Lovelace"),
        ("a non-joiner behind a letter with a case", "Љ\u{200c}Lovelace"),
        ("a joiner in front", "\u{200d}Lovelace"),
        ("a joiner behind", "Lovelace 👩\u{200d}"),
        ("two joiners", "👩\u{200d}\u{200d}💻 Lovelace"),
    ];
    for (reason, text) in table {
        let fault = Name::parse(text).err().unwrap_or_else(|| panic!("accepted: {reason}")).to_string();
        assert!(!fault.contains("Lovelace") && !fault.contains("xxx"), "{reason} is repeated: {fault}");
        assert!(fault.len() < 200, "{reason}: {fault}");
    }
}

#[test]
fn principals_are_bounded_and_without_what_nobody_sees() {
    assert_eq!(Principal::parse("svc:billing").expect("a principal").as_str(), "svc:billing");
    assert_eq!(Principal::parse("oidc:عائشة 7").expect("a principal").as_str(), "oidc:عائشة 7");
    assert!(Principal::anonymous().is_anonymous() && Principal::anonymous().as_str() == "anonymous");
    let long = "x".repeat(201);
    for (reason, text) in [
        ("empty", ""),
        ("a line break", "a\nb"),
        ("NUL", "a\0"),
        ("201 characters", &long),
        ("a zero width space", "oidc:ali\u{200b}ce"),
        ("a joiner, even where a name may have one", "oidc:علی\u{200c}رضا"),
        ("a right-to-left override", "oidc:\u{202e}ecila"),
        ("a Hangul filler", "oidc:alice\u{3164}"),
        ("a selector", "oidc:alice\u{fe0f}"),
        ("a space that is none", "oidc:alice\u{2003}b"),
        ("a space behind", "oidc:alice "),
    ] {
        assert!(Principal::parse(text).is_err(), "accepted: {reason}");
    }
    assert!(Principal::of_subject(" alice").is_err(), "a space in front of the subject");
}

#[test]
fn a_log_has_no_subject_of_a_token() {
    let ada = Principal::of_subject("ada@example.org").expect("a principal");
    // printf oidc:ada@example.org | sha256sum
    assert_eq!(ada.logged(), "oidc:sha256:a7955a9ffbfc16b2");
    assert_eq!(format!("{ada:?}"), format!("Principal({})", ada.logged()));
    assert_eq!(Principal::parse("key:billing").expect("a principal").logged(), "key:billing");
}

proptest! {
    #[test]
    fn nothing_that_is_accepted_has_a_control_character(text in "\\PC{0,20}|.{0,20}|[a-c@. \\n\\r\\t\0]{0,12}") {
        for accepted in [Email::parse(&text).is_ok(), Name::parse(&text).is_ok(), Principal::parse(&text).is_ok()] {
            prop_assert!(!accepted || !text.chars().any(char::is_control));
        }
    }

    #[test]
    fn an_accepted_address_survives_json(local in "[a-zA-Z0-9+_-]{1,20}", domain in "[a-z]{1,10}\\.[a-z]{2,5}") {
        let email = Email::parse(&format!("{local}@{domain}")).expect("an address");
        let json = serde_json::to_string(&email).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Email>(&json).expect("an address"), email);
    }

    #[test]
    fn an_accepted_name_survives_json(text in "\\PC{1,50}") {
        if let Ok(name) = Name::parse(&text) {
            let json = serde_json::to_string(&name).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Name>(&json).expect("a name"), name);
        }
    }
}
