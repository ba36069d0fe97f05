//! The language of the object tree. A string may refer to settings as `${name}`; one that is nothing but a
//! reference takes the setting's own kind, and `${name:text}` makes a text of it. Further:
//! [`when`] keeps a value only while a setting holds, [`each`] puts a setting's list into a list.

use serde_json::{Value, json};

/// Key of a condition.
pub(super) const IF: &str = "$if";
/// Key of what it guards.
pub(super) const THEN: &str = "$then";
/// Key of a list that is put into another one.
pub(super) const EACH: &str = "$each";

/// `value`, in a list or as an entry of an object, only while the setting holds.
pub fn when(setting: &str, value: Value) -> Value {
    json!({IF: setting, THEN: value})
}

/// The items of a setting's list, in a list.
pub fn each(setting: &str) -> Value {
    json!({EACH: setting})
}

/// A piece of a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it is.
    Literal(String),
    /// A setting, and whether it becomes a text.
    Reference { path: String, text: bool },
}

/// The pieces of a string, in order. `${` without its end is a literal.
pub(super) fn pieces(text: &str) -> Vec<Piece> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inside, behind)) = after.split_once('}') else { break };
        if !before.is_empty() {
            pieces.push(Piece::Literal(before.to_owned()));
        }
        let (path, text) = match inside.strip_suffix(":text") {
            Some(path) => (path, true),
            None => (inside, false),
        };
        pieces.push(Piece::Reference { path: path.to_owned(), text });
        rest = behind;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest.to_owned()));
    }
    pieces
}

/// The condition and what it guards, if this is such a value.
pub(super) fn condition(value: &Value) -> Option<(&str, &Value)> {
    Some((value.get(IF)?.as_str()?, value.get(THEN)?))
}

/// The setting whose list is put here, if this is such a value.
pub(super) fn splice(value: &Value) -> Option<&str> {
    value.get(EACH)?.as_str()
}
