//! Redaction: error texts of the database and of the JSON parser without the input that they quote.
//!
//! Logs, readiness checks and lists of dead letters are read by people who may not see personal data. An error text of a
//! library is repeated there only as far as it is known to name objects of the schema or of the format. The whole
//! text stays where its data is: in the server's log, and in the payload that `rollcall dead-letters show` prints.

use serde_json::error::Category;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

/// SQLSTATE classes whose messages name objects of the schema, limits and settings, never a value. Not among them: data
/// exceptions (22), which quote the value, what a function raised (P0), and internal errors (XX).
const NAMING_OBJECTS: [&str; 17] =
    ["08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "RC", "2D"];
/// Class of what the functions of our own migrations raise: settings and counts.
const OWN: &str = "RC";
/// Routine of the server that raises what a function was written to say, under any SQLSTATE.
const RAISE: &str = "exec_stmt_raise";

/// An error of the database as a log may show it: its message where that quotes no value, and the SQLSTATE.
pub fn database(error: &dyn DatabaseError) -> String {
    let code = error.code().unwrap_or_default();
    let class = code.get(..2).unwrap_or_default();
    let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    let raised = routine == Some(RAISE) && class != OWN;
    if NAMING_OBJECTS.contains(&class) && !raised {
        return format!("{} (SQLSTATE {code})", error.message());
    }
    format!("the database refused it (SQLSTATE {code}; the message can quote data, see the server's log)")
}

/// An error of the JSON parser as a log may show it: what was expected, and where.
pub fn json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match error.classify() {
        // Fixed texts about the syntax.
        Category::Io | Category::Syntax | Category::Eof => text,
        // The names are those of our own types.
        Category::Data if text.starts_with("missing field `") || text.starts_with("duplicate field `") => text,
        Category::Data => {
            let what = match text.split([' ', ':']).take(2).collect::<Vec<_>>()[..] {
                ["unknown", "variant"] => "an unknown variant",
                ["unknown", "field"] => "an unknown member",
                ["invalid", "type"] => "a value of the wrong type",
                _ => "an invalid value",
            };
            format!("{what} at line {} column {}", error.line(), error.column())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::json;

    const MARKER: &str = "marker@example.org";

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Sample {
        kind: Kind,
        #[serde(default)]
        count: u32,
        #[serde(default)]
        id: Option<uuid::Uuid>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        One,
    }

    #[test]
    fn json_errors_name_the_fault_and_the_place_and_quote_nothing() {
        for (text, expected) in [
            (format!(r#"{{"kind":"{MARKER}"}}"#), "an unknown variant at line 1 column 28"),
            (format!(r#"{{"kind":"one","{MARKER}":1}}"#), "an unknown member at line 1 column 34"),
            (format!(r#"{{"kind":"one","count":"{MARKER}"}}"#), "a value of the wrong type at line 1 column 42"),
            (format!(r#"{{"kind":"one","id":"{MARKER}"}}"#), "an invalid value at line 1 column 39"),
            ("{}".to_owned(), "missing field `kind` at line 1 column 2"),
            (format!(r#"{{"kind":"one"}} {MARKER}"#), "trailing characters at line 1 column 16"),
            (MARKER.to_owned(), "expected value at line 1 column 1"),
        ] {
            let error = serde_json::from_str::<Sample>(&text).expect_err("a fault");
            assert_eq!(json(&error), expected, "{text}");
        }
    }
}
