//! Invisible characters: what nobody sees in a name or principal, and so makes one look like another.
//!
//! # Which ones?
//! Format characters (the general category Cf of Unicode: zero-width, bidirectional, tags), line and paragraph separators, and
//! characters of other categories without a shape: fillers, the blank Braille pattern and selectors that no name needs. The
//! selectors of emoji and of ideographic variants (U+FE00 to U+FE0F, U+E0100 to U+E01EF) are allowed in names.
//!
//! # Why two joiners in names?
//! Persian, the scripts of India and emoji are misspelt without U+200C and U+200D. No script with upper and lower case needs
//! them, so behind a letter of such a script, where they would only hide, they are refused.

use unicode_general_category::{GeneralCategory, get_general_category};

use super::text::InvalidText;

/// The zero width non-joiner and the zero width joiner.
const JOINERS: [char; 2] = ['\u{200c}', '\u{200d}'];
/// Characters without a shape that are no format characters.
const BLANKS: [char; 14] = [
    '\u{034f}', '\u{115f}', '\u{1160}', '\u{17b4}', '\u{17b5}', '\u{180b}', '\u{180c}', '\u{180d}', '\u{180f}',
    '\u{2028}', '\u{2029}', '\u{2800}', '\u{3164}', '\u{ffa0}',
];

fn invisible(c: char) -> bool {
    get_general_category(c) == GeneralCategory::Format || BLANKS.contains(&c)
}

/// Refuses what nobody sees, except joiners where a script needs them.
pub(super) fn check_name(text: &str) -> Result<(), InvalidText> {
    let mut before = None;
    for c in text.chars() {
        let joins = JOINERS.contains(&c) && before.is_some_and(joinable);
        if invisible(c) && !joins {
            return Err(refusal(c));
        }
        before = Some(c);
    }
    // Nothing follows to be joined.
    before.filter(|c| JOINERS.contains(c)).map_or(Ok(()), |c| Err(refusal(c)))
}

/// Whether a joiner behind this character changes how the text looks.
fn joinable(c: char) -> bool {
    !(c.is_ascii() || c.is_whitespace() || c.is_lowercase() || c.is_uppercase() || JOINERS.contains(&c))
}

/// Refuses what nobody sees or takes for a space: a principal is compared by people who look for one.
pub(super) fn check_principal(text: &str) -> Result<(), InvalidText> {
    let selector = |c: char| matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}');
    let unclear = |c: &char| invisible(*c) || selector(*c) || (c.is_whitespace() && *c != ' ');
    text.chars().find(unclear).map_or(Ok(()), |c| Err(refusal(c)))
}

fn refusal(c: char) -> InvalidText {
    InvalidText::new(format!("has the invisible character U+{:04X}; remove it", u32::from(c)))
}
