//! How long a token is still valid. Only read after the API server accepted the token: its signature is
//! not looked at here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// Time until a token ends by its `exp`; zero when it has ended or does not say.
pub(super) fn left(token: &str) -> Duration {
    let end = ends(token).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default()
}

/// `exp`, seconds since 1970; at most the year 9999, so that no sum overflows.
fn ends(token: &str) -> Option<u64> {
    let claims = token.split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    claims["exp"].as_u64().filter(|seconds| *seconds < 253_402_300_800)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("head.{}.signature", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn the_end_of_a_token_is_read_and_what_is_no_token_has_none() {
        assert_eq!(ends(&token(r#"{"exp": 1700000000}"#)), Some(1_700_000_000));
        assert_eq!(left(&token(r#"{"exp": 1700000000}"#)), Duration::ZERO, "it has ended");
        let far = left(&token(r#"{"exp": 253402300799}"#));
        assert!(far > Duration::from_secs(3600), "{far:?}");
        for odd in [
            "",
            "a",
            "a.b",
            "a.!.c",
            &token("[]"),
            &token(r#"{"exp": -1}"#),
            &token(r#"{"exp": 18446744073709551615}"#),
        ] {
            assert_eq!(left(odd), Duration::ZERO, "{odd}");
        }
    }
}
