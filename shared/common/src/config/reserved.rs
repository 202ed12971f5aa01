//! Reserved characters that a URL's user name or password holds unencoded.
//!
//! A `/`, `?` or `#` ends the part of a URL that holds the credentials and the host. What stands before it would be taken
//! for a host and a port, looked up, and shown; what stands behind it, for a path.

/// What is wrong with a URL whose credentials seem to hold such a character, without any part of it.
pub(super) fn unencoded(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("://")?;
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#'])?);
    // An address in a parameter's value is none of ours, once the credentials are known to be in their place.
    let checked = match behind.find('?') {
        Some(query) if query > 0 && authority.contains('@') => &behind[..query],
        _ => behind,
    };
    if checked.contains('@') {
        return Some(
            "has an \"@\" behind its first \"/\", \"?\" or \"#\"; in a user name or password write / as %2F, ? as %3F, \
             # as %23 and @ as %40"
                .to_owned(),
        );
    }
    behind.contains('#').then(|| "has a \"#\", which would cut it off; write # as %23".to_owned())
}
