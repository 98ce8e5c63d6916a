//! The constraints of a field, for documentation: the same options from which the validation is generated, with
//! their defaults.

use crate::{
    table::pool,
    validate::{DEFAULT_MAX_ITEMS, DEFAULT_MAX_LEN},
};
use prost_reflect::{DynamicMessage, ExtensionDescriptor, FieldDescriptor};
use std::sync::OnceLock;

/// A format that a string must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A UUID in its canonical form.
    Uuid,
    /// Lower-case letters, digits, `-`, `_` and `.`, starting with a letter or digit; at most 64.
    Name,
}

/// What a field accepts. Lengths are in characters, or in bytes for a `bytes` field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Whether the field must be present and neither empty nor unspecified.
    pub required: bool,
    /// The format of a string.
    pub format: Option<Format>,
    /// Minimum length.
    pub min_len: u32,
    /// Maximum length.
    pub max_len: u32,
    /// The smallest number.
    pub least: Option<f64>,
    /// The largest number.
    pub most: Option<f64>,
    /// Maximum number of items of a list, a map or a Struct.
    pub max_items: u32,
}

impl Bounds {
    /// Returns the bounds of a field: its own, and the defaults for what it does not declare.
    pub fn of(field: &FieldDescriptor) -> Self {
        let options = field.options();
        let rule = extension()
            .filter(|e| options.has_extension(e))
            .and_then(|e| options.get_extension(e).as_message().cloned());
        rule.as_ref().map_or(Self::DEFAULT, Self::read)
    }

    const DEFAULT: Self = Self {
        required: false,
        format: None,
        min_len: 0,
        max_len: DEFAULT_MAX_LEN as u32,
        least: None,
        most: None,
        max_items: DEFAULT_MAX_ITEMS as u32,
    };

    fn read(rule: &DynamicMessage) -> Self {
        let length = |name| value(rule, name).and_then(|v| v.as_u32());
        let number = |name| value(rule, name).and_then(|v| v.as_f64());
        let format = value(rule, "format").and_then(|v| v.as_enum_number());
        Self {
            required: value(rule, "required")
                .and_then(|v| v.as_bool())
                .unwrap_or_default(),
            format: match format {
                Some(1) => Some(Format::Uuid),
                Some(2) => Some(Format::Name),
                _ => None,
            },
            min_len: length("min_len").unwrap_or_default(),
            max_len: length("max_len").unwrap_or(Self::DEFAULT.max_len),
            least: number("gte"),
            most: number("lte"),
            max_items: length("max_items").unwrap_or(Self::DEFAULT.max_items),
        }
    }
}

fn extension() -> Option<&'static ExtensionDescriptor> {
    static FIELD: OnceLock<Option<ExtensionDescriptor>> = OnceLock::new();
    FIELD
        .get_or_init(|| pool().get_extension_by_name("tars.policy.v1.field"))
        .as_ref()
}

/// Returns `None` where the option declares nothing.
fn value(rule: &DynamicMessage, name: &str) -> Option<prost_reflect::Value> {
    let given = rule.has_field_by_name(name);
    given
        .then(|| rule.get_field_by_name(name).map(|v| v.into_owned()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(message: &str, field: &str) -> Bounds {
        let message = pool().get_message_by_name(message).unwrap();
        Bounds::of(&message.get_field_by_name(field).unwrap())
    }

    #[test]
    fn options_are_read_and_have_defaults() {
        let username = bounds("tars.auth.v1.LoginRequest", "username");
        assert!(username.required);
        let token = bounds("tars.auth.v1.ListUsersRequest", "page_token");
        assert!(!token.required);
        let plain = bounds("tars.auth.v1.LoginResponse", "access_token");
        assert_eq!((plain.required, plain.max_items), (false, 1000));
    }
}
