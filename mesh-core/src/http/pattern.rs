//! Matchers of routes, compiled once.

use std::{borrow::Cow, sync::Arc};

use regex::{Regex, RegexBuilder};

use crate::model::l7::RouteMatch;

/// Largest compiled program of one expression: hostile or careless patterns are refused, not run.
const REGEX_LIMIT: usize = 1 << 20;

/// An expression that does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: route {route}: {field}: bad regular expression {pattern:?}: {cause}")]
pub struct PatternError {
    /// Object that it stands in.
    pub object: String,
    /// Route.
    pub route: String,
    /// Field of the route.
    pub field: &'static str,
    /// The expression.
    pub pattern: String,
    /// What is wrong, in one line.
    pub cause: String,
}

/// A compiled [`RouteMatch`].
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Box<Regex>),
    Presence,
}

impl Pattern {
    pub(super) fn compile(source: &RouteMatch) -> Result<Self, (String, String)> {
        Ok(match source {
            RouteMatch::Exact(text) => Self::Exact(text.clone()),
            RouteMatch::Prefix(text) => Self::Prefix(text.clone()),
            RouteMatch::Regex(text) if **text == *"*" => Self::Presence,
            RouteMatch::Regex(text) => Self::Regex(Box::new(full(text)?)),
            RouteMatch::Presence => Self::Presence,
        })
    }

    pub(super) fn is_match(&self, value: &str, ignore_case: bool) -> bool {
        match self {
            Self::Exact(want) if ignore_case => value.eq_ignore_ascii_case(want),
            Self::Exact(want) => value == &**want,
            Self::Prefix(want) if ignore_case => value
                .as_bytes()
                .get(..want.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(want.as_bytes())),
            Self::Prefix(want) => value.starts_with(&**want),
            Self::Regex(regex) => regex.is_match(value),
            Self::Presence => true,
        }
    }

    /// An absent value matches nothing.
    pub(super) fn is_match_opt(&self, value: Option<Cow<'_, str>>) -> bool {
        value.is_some_and(|v| self.is_match(&v, false))
    }
}

/// Why a matcher does not compile as waypoints compile it, in one line.
pub fn match_error(source: &RouteMatch) -> Option<String> {
    Pattern::compile(source).err().map(|(_, cause)| cause)
}

/// Why a substitution (`rewrite.uriRegexRewrite`) cannot be done as waypoints do it, in one line.
pub fn substitution_error(pattern: &str, by: &str) -> Option<String> {
    let regex = match anywhere(pattern) {
        Ok(regex) => regex,
        Err((_, cause)) => return Some(cause),
    };
    let mut named = by.split('\\').skip(1).filter_map(|rest| rest.chars().next()?.to_digit(10));
    let missing = named.find(|group| *group as usize >= regex.captures_len())?;
    Some(format!("\\{missing} names a group that the expression does not have"))
}

/// A full match, as RE2 in Envoy: the expression must cover the whole value.
pub(super) fn full(text: &str) -> Result<Regex, (String, String)> {
    anywhere(text)?;
    anywhere(&format!("^(?:{text})$"))
}

/// A match anywhere, for substitutions.
pub(super) fn anywhere(text: &str) -> Result<Regex, (String, String)> {
    RegexBuilder::new(text).size_limit(REGEX_LIMIT).dfa_size_limit(REGEX_LIMIT).build().map_err(|error| {
        let cause = error.to_string();
        let last = cause.lines().last().unwrap_or("invalid").trim_start_matches("error: ");
        (text.to_owned(), last.to_owned())
    })
}
