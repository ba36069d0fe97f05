//! A running mesh: where its admin endpoints are, and asking them.

pub mod client;
pub mod discover;
pub mod pods;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a query value keeps as it is (RFC 3986, unreserved).
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Path and query of the question what would happen to a connection.
pub fn explain_path(source: &str, destination: &str) -> String {
    let encoded = |text| utf8_percent_encode(text, VALUE);
    format!("/debug/explain?source={}&destination={}", encoded(source), encoded(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_in_the_query() {
        let path = explain_path("default/cli ent", "[fd00::1]:80");
        assert_eq!(path, "/debug/explain?source=default%2Fcli%20ent&destination=%5Bfd00%3A%3A1%5D%3A80");
    }
}
