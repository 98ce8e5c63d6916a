//! The checks that the generated validation calls. A path is a chain of borrows, so that a valid message costs no
//! allocation.

use crate::fault;
use std::fmt;
use tonic::Status;
use tonic_types::FieldViolation;

/// Maximum number of violations that are described; further ones are only counted.
const MAX_VIOLATIONS: usize = 32;
pub(crate) const DEFAULT_MAX_LEN: usize = 1024;
pub(crate) const DEFAULT_MAX_ITEMS: usize = 1000;
/// Maximum depth of values in a `google.protobuf.Struct`.
pub const MAX_STRUCT_DEPTH: usize = 8;
/// Maximum number of bytes of a name, chosen by the caller, that are shown.
const MAX_SHOWN: usize = 64;

/// A message whose fields can be validated.
pub trait Validate {
    /// Adds each violation of this message, which is found at the path `at`, to `out`.
    fn validate(&self, at: &Path<'_>, out: &mut Violations);
}

/// The position of a value in a message, as in `study.params[gamma]`.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The position of the message itself.
    pub const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    /// Returns the position of a field of the value at this position.
    pub fn field(&'a self, name: &'a str) -> Self {
        Path {
            parent: Some(self),
            step: Step::Field(name),
        }
    }

    /// Returns the position of an item of the list at this position.
    pub fn index(&'a self, index: usize) -> Self {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// Returns the position of a value in the map at this position.
    pub fn key(&'a self, key: &'a str) -> Self {
        Path {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    fn is_root(&self) -> bool {
        matches!(self.step, Step::Root)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if !is_word(name) => write!(f, "[{}]", Quoted(name)),
            Step::Field(name) if self.parent.is_none_or(Path::is_root) => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(i) => write!(f, "[{i}]"),
            Step::Key(key) if is_word(key) => write!(f, "[{key}]"),
            Step::Key(key) => write!(f, "[{}]", Quoted(key)),
        }
    }
}

/// Whether a name cannot be mistaken for anything else in a path.
fn is_word(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=MAX_SHOWN).contains(&name.len()) && name.bytes().all(plain)
}

/// A name that the caller chose: quoted, shortened, and without anything that could be mistaken for the path, the
/// end of a line or a terminal command.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.floor_char_boundary(MAX_SHOWN)];
        let more = if shown.len() < self.0.len() {
            "…"
        } else {
            ""
        };
        write!(f, "\"{}{more}\"", shown.escape_debug())
    }
}

/// The violations of a message.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<FieldViolation>,
    more: usize,
}

impl Violations {
    /// Adds a violation; beyond 32 they are only counted.
    pub fn add(&mut self, at: &Path<'_>, description: impl Into<String>) {
        if self.found.len() < MAX_VIOLATIONS {
            self.found
                .push(FieldViolation::new(at.to_string(), description));
        } else {
            self.more += 1;
        }
    }

    /// Returns whether there is no violation.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns INVALID_ARGUMENT with the violations, or `None` when there are none.
    pub fn into_status(self) -> Option<Status> {
        let some = !self.found.is_empty();
        some.then(|| fault::invalid_and_more(self.found, self.more))
    }
}

/// The constraints of a string. Zero means the default of a length, and no format.
#[derive(Debug)]
pub struct TextRule {
    /// Whether it must not be empty.
    pub required: bool,
    /// The number of the format in `tars.policy.v1.field`.
    pub format: i32,
    /// Minimum length in characters.
    pub min_len: usize,
    /// Maximum length in characters.
    pub max_len: usize,
}

impl TextRule {
    /// The constraints of a map's keys.
    pub const KEY: Self = Self {
        required: true,
        format: 0,
        min_len: 0,
        max_len: 128,
    };
}

/// Whether a text consists of at most 64 lower-case letters, digits, `-`, `_` and `.`, and starts with a letter or
/// digit.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 64
        && bytes.next().is_some_and(plain)
        && bytes.all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.'))
}

/// Whether a text is a UUID in its canonical form, in upper or lower case.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

pub(crate) mod check {
    use super::{DEFAULT_MAX_ITEMS, DEFAULT_MAX_LEN, Path, TextRule, Validate, Violations};

    const FORMAT_UUID: i32 = 1;
    const FORMAT_NAME: i32 = 2;

    fn or(value: usize, default: usize) -> usize {
        if value == 0 { default } else { value }
    }

    pub(crate) fn text(at: &Path<'_>, value: &str, rule: &TextRule, out: &mut Violations) {
        if value.is_empty() {
            if rule.required {
                out.add(at, "is required");
            }
            return;
        }
        let max = or(rule.max_len, DEFAULT_MAX_LEN);
        let length = value.chars().count();
        if length < rule.min_len {
            out.add(
                at,
                format!("must have at least {} characters", rule.min_len),
            );
        } else if length > max {
            out.add(at, format!("must have at most {max} characters"));
        } else if value.contains('\0') {
            out.add(at, "must not contain NUL");
        } else if rule.format == FORMAT_UUID && !super::is_uuid(value) {
            out.add(at, "must be a UUID");
        } else if rule.format == FORMAT_NAME && !super::is_name(value) {
            out.add(at, "must be a name: a-z, 0-9, '-', '_', '.', at most 64, starting with a letter or digit");
        }
    }

    pub(crate) fn bytes(
        at: &Path<'_>,
        value: &[u8],
        required: bool,
        max: usize,
        out: &mut Violations,
    ) {
        let max = or(max, DEFAULT_MAX_LEN);
        if required && value.is_empty() {
            out.add(at, "is required");
        } else if value.len() > max {
            out.add(at, format!("must have at most {max} bytes"));
        }
    }

    pub(crate) fn number(
        at: &Path<'_>,
        value: f64,
        required: bool,
        gte: Option<f64>,
        lte: Option<f64>,
        out: &mut Violations,
    ) {
        if !value.is_finite() {
            out.add(at, "must be a finite number");
        } else if required && value == 0.0 {
            out.add(at, "is required");
        } else if gte.is_some_and(|low| value < low) {
            out.add(at, format!("must be at least {}", gte.unwrap_or_default()));
        } else if lte.is_some_and(|high| value > high) {
            out.add(at, format!("must be at most {}", lte.unwrap_or_default()));
        }
    }

    pub(crate) fn enumeration(
        at: &Path<'_>,
        value: i32,
        required: bool,
        known: bool,
        out: &mut Violations,
    ) {
        if !known {
            out.add(at, format!("has no value {value}"));
        } else if required && value == 0 {
            out.add(at, "is required");
        }
    }

    pub(crate) fn count(
        at: &Path<'_>,
        items: usize,
        required: bool,
        max: usize,
        out: &mut Violations,
    ) {
        let max = or(max, DEFAULT_MAX_ITEMS);
        if required && items == 0 {
            out.add(at, "is required");
        } else if items > max {
            out.add(at, format!("must have at most {max} items"));
        }
    }

    pub(crate) fn message<M: Validate>(
        at: &Path<'_>,
        value: Option<&M>,
        required: bool,
        out: &mut Violations,
    ) {
        match value {
            Some(message) => message.validate(at, out),
            None if required => out.add(at, "is required"),
            None => {}
        }
    }
}

impl Validate for prost_types::Timestamp {
    fn validate(&self, at: &Path<'_>, out: &mut Violations) {
        // The years that RFC 3339 can write.
        let seconds = (-62_135_596_800..=253_402_300_799).contains(&self.seconds);
        if !seconds || !(0..1_000_000_000).contains(&self.nanos) {
            out.add(at, "must be a time between the years 1 and 9999");
        }
    }
}

impl Validate for prost_types::Duration {
    fn validate(&self, at: &Path<'_>, out: &mut Violations) {
        // The range of the well-known type; both parts have the same sign.
        let seconds = (-315_576_000_000..=315_576_000_000).contains(&self.seconds);
        let nanos = (-999_999_999..=999_999_999).contains(&self.nanos);
        let signs = self.seconds == 0 || self.nanos == 0 || (self.seconds < 0) == (self.nanos < 0);
        if !seconds || !nanos || !signs {
            out.add(at, "must be a duration of at most ten thousand years");
        }
    }
}

impl Validate for prost_types::Struct {
    fn validate(&self, at: &Path<'_>, out: &mut Violations) {
        validate_struct(self, at, out, 0);
    }
}

impl Validate for prost_types::Value {
    fn validate(&self, at: &Path<'_>, out: &mut Violations) {
        validate_value(self, at, out, 0);
    }
}

fn validate_struct(value: &prost_types::Struct, at: &Path<'_>, out: &mut Violations, depth: usize) {
    check::count(at, value.fields.len(), false, 0, out);
    for (key, value) in &value.fields {
        let here = at.key(key);
        check::text(&here, key, &TextRule::KEY, out);
        validate_value(value, &here, out, depth + 1);
    }
}

fn validate_value(value: &prost_types::Value, at: &Path<'_>, out: &mut Violations, depth: usize) {
    use prost_types::value::Kind;
    if depth > MAX_STRUCT_DEPTH {
        return out.add(at, "is nested too deeply");
    }
    match &value.kind {
        Some(Kind::NumberValue(n)) => check::number(at, *n, false, None, None, out),
        Some(Kind::StringValue(s)) => {
            let rule = TextRule {
                required: false,
                format: 0,
                min_len: 0,
                max_len: 0,
            };
            check::text(at, s, &rule, out);
        }
        Some(Kind::StructValue(s)) => validate_struct(s, at, out, depth),
        Some(Kind::ListValue(l)) => {
            for (i, v) in l.values.iter().enumerate() {
                validate_value(v, &at.index(i), out, depth + 1);
            }
        }
        Some(Kind::BoolValue(_) | Kind::NullValue(_)) => {}
        None => out.add(at, "has no value"),
    }
}

mod generated {
    #![allow(clippy::all, clippy::pedantic, unused_parens)]
    use super::{Path, TextRule, Validate, Violations, check};

    include!(concat!(env!("OUT_DIR"), "/validation.rs"));
}
