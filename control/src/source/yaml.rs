//! One YAML document as a value. Where YAML would let one thing hide another (a key that is there twice,
//! a second document) it is an error: what is hidden may be a policy.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// The only document of a text.
///
/// # Errors
/// It is no YAML, has a key twice, or holds more than one document.
pub fn parse(text: &str) -> Result<Value, serde_norway::Error> {
    let mut documents = serde_norway::Deserializer::from_str(text);
    let Some(first) = documents.next() else { return Ok(Value::Null) };
    let value = Strict::deserialize(first)?.0;
    match documents.next() {
        None => Ok(value),
        Some(_) => Err(serde_norway::Error::custom("a second document begins without a line of its own")),
    }
}

/// A value whose mappings have no key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any).map(Self)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let reason = format!("{key} is there twice and only one would count; is a --- missing?");
                return Err(A::Error::custom(reason));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_is_read_as_it_is_written() {
        let text = "a: 1\nb: [true, 1.5, x, null, -3]\n80: {c: '7'}\nd: &d {e: f}\ng: *d\n";
        let want = json!({"a": 1, "b": [true, 1.5, "x", null, -3], "80": {"c": "7"}, "d": {"e": "f"}, "g": {"e": "f"}});
        assert_eq!(parse(text).unwrap_or_default(), want);
        assert_eq!(parse("~\n").ok(), Some(Value::Null));
    }

    #[test]
    fn a_key_that_is_there_twice_and_a_second_document_are_errors() {
        for text in
            ["a: 1\nb: 2\na: 3\n", "a: {b: 1, b: 2}\n", "a: 1\n--- {b: 2}\n", "a: 1\n...\n--- {b: 2}\n"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
