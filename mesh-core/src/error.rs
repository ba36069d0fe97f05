//! How errors are said.

use std::error::Error;

/// An error with its causes in one line; a cause that is part of what was said is not said again.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Failed {
        text: &'static str,
        source: Option<Box<Failed>>,
    }

    fn failed(texts: &[&'static str]) -> Option<Box<Failed>> {
        let (text, rest) = texts.split_first()?;
        Some(Box::new(Failed { text, source: failed(rest) }))
    }

    #[test]
    fn causes_follow_in_order_and_none_is_said_twice() {
        let said = |texts: &[&'static str]| chain(&*failed(texts).unwrap());
        assert_eq!(said(&["no list", "no connection", "refused"]), "no list: no connection: refused");
        assert_eq!(
            said(&["no list: no connection", "no connection", "refused"]),
            "no list: no connection: refused"
        );
        assert_eq!(said(&["alone"]), "alone");
    }
}
