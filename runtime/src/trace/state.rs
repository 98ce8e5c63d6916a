//! W3C `tracestate`: what other tracing systems want passed on. It is passed on unchanged and never
//! interpreted; what does not parse is dropped as a whole, as the recommendation requires.

use http::HeaderValue;
use std::{collections::HashSet, sync::Arc};

const MAX_MEMBERS: usize = 32;
/// Maximum length that is passed on. Longer lists lose their long members first, then their last ones.
const MAX_LEN: usize = 512;
const LONG_MEMBER: usize = 128;

/// A validated `tracestate`. Clones share the text; an empty one allocates nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceState(Option<Arc<str>>);

impl TraceState {
    /// Reads the headers of one message, in their order.
    pub fn read<'a>(headers: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut members = Vec::new();
        for header in headers {
            let Some(found) = header.to_str().ok().and_then(parse) else {
                return Self::default();
            };
            members.extend(found);
        }
        let keys: HashSet<&str> = members.iter().map(|(key, _)| *key).collect();
        if members.len() > MAX_MEMBERS || keys.len() < members.len() {
            return Self::default();
        }
        let texts = bounded(members.iter().map(|(_, text)| *text).collect());
        Self((!texts.is_empty()).then(|| texts.join(",").into()))
    }

    /// Returns the value of the header; `None` when there is nothing to pass on.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    pub(super) fn otel(&self) -> opentelemetry::trace::TraceState {
        let parsed = self.as_str().and_then(|text| text.parse().ok());
        parsed.unwrap_or_default()
    }
}

/// Parses the members of one header, each with its key.
fn parse(text: &str) -> Option<Vec<(&str, &str)>> {
    text.split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
        .map(|member| {
            let (key, value) = member.split_once('=')?;
            (is_key(key) && is_value(value)).then_some((key, member))
        })
        .collect()
}

fn is_key(key: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: u8| first(b) || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@');
    key.len() <= 256 && key.bytes().next().is_some_and(first) && key.bytes().all(rest)
}

fn is_value(value: &str) -> bool {
    let plain = |b: u8| matches!(b, 0x20..=0x7e) && b != b',' && b != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(plain)
}

fn bounded(mut members: Vec<&str>) -> Vec<&str> {
    let total = |members: &[&str]| members.iter().map(|m| m.len() + 1).sum::<usize>();
    while total(&members) > MAX_LEN + 1 {
        let long = members.iter().rposition(|m| m.len() > LONG_MEMBER);
        members.remove(long.unwrap_or(members.len() - 1));
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[&str]) -> Option<String> {
        let values: Vec<HeaderValue> = headers
            .iter()
            .map(|h| HeaderValue::from_bytes(h.as_bytes()).unwrap())
            .collect();
        TraceState::read(&values).as_str().map(str::to_owned)
    }

    #[test]
    fn members_are_passed_on_unchanged() {
        assert_eq!(read(&["a=1"]).unwrap(), "a=1");
        assert_eq!(
            read(&["a=1 , b=x y", "", "t@v=2"]).unwrap(),
            "a=1,b=x y,t@v=2"
        );
        assert_eq!(read(&["0a_-*/=~!"]).unwrap(), "0a_-*/=~!");
        assert_eq!(read(&[", ,"]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_state_that_does_not_parse_is_dropped_as_a_whole() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        for bad in [
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1,b",
            "a=1=2",
            "a b=1",
            "a=1,a=2",
            "_a=1",
            "a=\u{e9}",
            &many.join(","),
            &format!("{}=1", "k".repeat(257)),
            &format!("a={}", "v".repeat(257)),
        ] {
            assert_eq!(read(&["good=1", bad]), None, "{bad}");
        }
        assert_eq!(
            read(&["a=1", "a=2"]),
            None,
            "one key twice over two headers"
        );
    }

    #[test]
    fn long_lists_lose_long_members_first_and_then_the_last() {
        let long = format!("long={}", "v".repeat(200));
        let short: Vec<String> = (0..31)
            .map(|n| format!("k{n:02}={}", "v".repeat(12)))
            .collect();
        let kept = read(&[&long, &short.join(",")]).unwrap();
        assert!(kept.len() <= MAX_LEN && !kept.contains("long"), "{kept}");
        assert!(kept.starts_with("k00=") && !kept.contains("k30="), "{kept}");
        let whole = read(&[&long, "a=1"]).unwrap();
        assert!(whole.starts_with("long="), "what fits stays");
    }
}
