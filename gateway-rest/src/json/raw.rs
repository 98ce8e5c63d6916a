//! JSON text split by one level: the values inside stay as they are written.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

#[derive(Debug)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// The digits as they are written.
    Number(&'a str),
    Text(String),
    List(Vec<&'a RawValue>),
    /// In order, with every repetition.
    Object(Vec<Member<'a>>),
}

pub(super) type Member<'a> = (String, &'a RawValue);

impl<'a> Json<'a> {
    /// Fails only for strings and names that are not Unicode: the rest was checked with the whole body.
    pub(super) fn of(raw: &'a RawValue) -> Result<Self, serde_json::Error> {
        let text = raw.get();
        Ok(match text.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'"') => Self::Text(serde_json::from_str(text)?),
            Some(b'[') => Self::List(serde_json::from_str(text)?),
            Some(b'{') => Self::Object(serde_json::from_str::<Members<'_>>(text)?.0),
            _ => Self::Number(text),
        })
    }
}

struct Members<'a>(Vec<Member<'a>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collect)
    }
}

struct Collect;

impl<'de> Visitor<'de> for Collect {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}
