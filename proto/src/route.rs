//! Path templates of `google.api.http`, and a router over them.
//!
//! Literals take precedence over `*`, and `*` over `**`. A variable of one segment is percent-decoded
//! completely; one of several keeps `%2F`, so that a slash in a value cannot move it to another segment.

use std::{collections::BTreeMap, fmt};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    One,
    Many,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    /// Field path, outermost first.
    field: Vec<String>,
    start: usize,
    /// The number of segments; `None` for all up to the end.
    len: Option<usize>,
}

/// A parsed path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
    verb: Option<String>,
    variables: Vec<Variable>,
}

/// A path template is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path template {template:?}: {problem}")]
pub struct TemplateError {
    template: String,
    problem: &'static str,
}

impl Template {
    /// Parses a path template.
    ///
    /// # Errors
    ///
    /// The first problem of the template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let fail = |problem| TemplateError {
            template: text.to_owned(),
            problem,
        };
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| fail("must start with '/'"))?;
        let mut template = Self {
            text: text.to_owned(),
            segments: Vec::new(),
            verb: None,
            variables: Vec::new(),
        };
        let rest = template.split_verb(rest).map_err(fail)?;
        for part in split_segments(rest) {
            template.push(part).map_err(fail)?;
        }
        let many = template.segments.iter().position(|s| *s == Segment::Many);
        if many.is_some_and(|at| at + 1 != template.segments.len()) {
            return Err(fail("'**' must be the last segment"));
        }
        Ok(template)
    }

    fn split_verb<'a>(&mut self, rest: &'a str) -> Result<&'a str, &'static str> {
        let tail = rest.rfind(['/', '}']).map_or(0, |i| i + 1);
        let Some(colon) = rest[tail..].find(':') else {
            return Ok(rest);
        };
        let verb = &rest[tail + colon + 1..];
        if !is_literal(verb) {
            return Err("the verb is not a literal");
        }
        self.verb = Some(verb.to_owned());
        Ok(&rest[..tail + colon])
    }

    fn push(&mut self, part: &str) -> Result<(), &'static str> {
        let Some(inner) = part.strip_prefix('{') else {
            self.segments.push(segment(part)?);
            return Ok(());
        };
        let inner = inner.strip_suffix('}').ok_or("'{' without '}'")?;
        let (field, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
        let field: Vec<String> = field.split('.').map(str::to_owned).collect();
        if !field.iter().all(|f| is_identifier(f)) {
            return Err("a variable's name is not a field path");
        }
        if self.variables.iter().any(|v| v.field == field) {
            return Err("a variable is bound twice");
        }
        let start = self.segments.len();
        for part in pattern.split('/') {
            self.segments.push(segment(part)?);
        }
        let open = self.segments.last() == Some(&Segment::Many);
        let len = (!open).then_some(self.segments.len() - start);
        self.variables.push(Variable { field, start, len });
        Ok(())
    }

    /// Returns the field paths that the path binds, outermost field first.
    pub fn variables(&self) -> impl Iterator<Item = &[String]> {
        self.variables.iter().map(|v| v.field.as_slice())
    }

    fn bind(&self, parts: &[&str]) -> Option<Vec<Binding>> {
        self.variables
            .iter()
            .map(|v| {
                let end = v.len.map_or(parts.len(), |len| v.start + len);
                let single = v.len == Some(1);
                let text = parts[v.start..end]
                    .iter()
                    .map(|p| decode(p, single))
                    .collect::<Option<Vec<_>>>()?
                    .join("/");
                Some(Binding {
                    field: v.field.clone(),
                    value: text,
                })
            })
            .collect()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn split_segments(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '/' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn segment(part: &str) -> Result<Segment, &'static str> {
    match part {
        "*" => Ok(Segment::One),
        "**" => Ok(Segment::Many),
        "" => Err("a segment is empty"),
        _ if is_literal(part) => Ok(Segment::Literal(part.to_owned())),
        _ => Err("a segment has a character that a path cannot hold"),
    }
}

fn is_literal(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    !text.is_empty() && text.bytes().all(plain)
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Percent-decodes; returns `None` for a broken escape, invalid UTF-8 or NUL.
fn decode(text: &str, slash: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let (high, low) = (bytes.next()?, bytes.next()?);
        let byte = hex(high)? << 4 | hex(low)?;
        if byte == b'/' && !slash {
            out.extend([b'%', high, low]);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().filter(|s| !s.contains('\0'))
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

/// A field with the text that the path gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The field path, outermost field first.
    pub field: Vec<String>,
    /// The decoded text.
    pub value: String,
}

#[derive(Debug)]
struct Node<T> {
    literals: BTreeMap<String, Self>,
    one: Option<Box<Self>>,
    many: Option<Box<Self>>,
    /// Keyed by verb, then by HTTP method.
    ends: BTreeMap<Option<String>, BTreeMap<String, (Template, T)>>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            literals: BTreeMap::new(),
            one: None,
            many: None,
            ends: BTreeMap::new(),
        }
    }
}

/// Finds the target of an HTTP method and path.
#[derive(Debug)]
pub struct Router<T> {
    root: Node<T>,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self {
            root: Node::default(),
        }
    }
}

/// What a router finds.
#[derive(Debug)]
pub enum Found<'a, T> {
    /// The target of the route, with the values of its variables.
    Route(&'a T, Vec<Binding>),
    /// The path exists for these methods only.
    OtherMethods(Vec<String>),
    /// The path does not exist.
    Nothing,
    /// The path exists, but its escapes do not decode.
    BadPath,
}

impl<T> Router<T> {
    /// Adds a route.
    ///
    /// # Errors
    ///
    /// The existing template that matches the same paths with the same method.
    pub fn insert(&mut self, method: &str, template: Template, target: T) -> Result<(), Template> {
        let mut node = &mut self.root;
        for segment in &template.segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::One => node.one.get_or_insert_default(),
                Segment::Many => node.many.get_or_insert_default(),
            };
        }
        let methods = node.ends.entry(template.verb.clone()).or_default();
        if let Some((taken, _)) = methods.get(method) {
            return Err(taken.clone());
        }
        methods.insert(method.to_owned(), (template, target));
        Ok(())
    }

    /// Finds the target of a request.
    pub fn find(&self, method: &str, path: &str) -> Found<'_, T> {
        let Some(rest) = path.strip_prefix('/') else {
            return Found::Nothing;
        };
        let parts: Vec<&str> = rest.split('/').collect();
        let mut others = Vec::new();
        let mut found = find(&self.root, &parts, 0, &None, method, &mut others);
        let mut bound = parts.clone();
        if found.is_none()
            && let Some((last, verb)) = parts.last().and_then(|l| l.rsplit_once(':'))
        {
            let end = bound.len() - 1;
            bound[end] = last;
            found = find(
                &self.root,
                &bound,
                0,
                &Some(verb.to_owned()),
                method,
                &mut others,
            );
        }
        match found {
            Some((template, target)) => match template.bind(&bound) {
                Some(bindings) => Found::Route(target, bindings),
                None => Found::BadPath,
            },
            None if others.is_empty() => Found::Nothing,
            None => {
                others.sort();
                others.dedup();
                Found::OtherMethods(others)
            }
        }
    }
}

fn find<'a, T>(
    node: &'a Node<T>,
    parts: &[&str],
    at: usize,
    verb: &Option<String>,
    method: &str,
    others: &mut Vec<String>,
) -> Option<&'a (Template, T)> {
    let Some(part) = parts.get(at) else {
        return end(node, verb, method, others);
    };
    let literal = node
        .literals
        .get(*part)
        .and_then(|n| find(n, parts, at + 1, verb, method, others));
    let one = || node.one.as_deref().filter(|_| !part.is_empty());
    literal
        .or_else(|| one().and_then(|n| find(n, parts, at + 1, verb, method, others)))
        .or_else(|| {
            node.many
                .as_deref()
                .and_then(|n| end(n, verb, method, others))
        })
}

fn end<'a, T>(
    node: &'a Node<T>,
    verb: &Option<String>,
    method: &str,
    others: &mut Vec<String>,
) -> Option<&'a (Template, T)> {
    let methods = node.ends.get(verb)?;
    let found = methods.get(method);
    if found.is_none() {
        others.extend(methods.keys().cloned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(routes: &[(&str, &str, u32)]) -> Router<u32> {
        let mut router = Router::default();
        for (method, path, target) in routes {
            router
                .insert(method, Template::parse(path).unwrap(), *target)
                .unwrap();
        }
        router
    }

    fn target(router: &Router<u32>, method: &str, path: &str) -> Option<(u32, Vec<String>)> {
        match router.find(method, path) {
            Found::Route(t, b) => Some((*t, b.into_iter().map(|b| b.value).collect())),
            _ => None,
        }
    }

    #[test]
    fn refuses_broken_templates() {
        for bad in [
            "",
            "a",
            "/",
            "/a//b",
            "/{",
            "/{a",
            "/{a}/{a}",
            "/{1}",
            "/**/a",
            "/a b",
            "/{a=**}/b",
            "/a:",
            "/a:b:c",
            "/{a=}",
            "/%20",
            "/{a.}",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn literals_take_precedence_over_wildcards() {
        let r = router(&[
            ("GET", "/a/{x}", 1),
            ("GET", "/a/b", 2),
            ("GET", "/{x=**}", 3),
            ("GET", "/a/{x}/c", 4),
        ]);
        assert_eq!(target(&r, "GET", "/a/b").unwrap().0, 2);
        assert_eq!(target(&r, "GET", "/a/z").unwrap(), (1, vec!["z".into()]));
        assert_eq!(target(&r, "GET", "/a/b/c").unwrap(), (4, vec!["b".into()]));
        assert_eq!(
            target(&r, "GET", "/q/r/s").unwrap(),
            (3, vec!["q/r/s".into()])
        );
    }

    #[test]
    fn verbs_are_told_from_colons_in_values() {
        let r = router(&[
            ("POST", "/v1/{name=agents/*}:reload", 1),
            ("GET", "/v1/{id}", 2),
        ]);
        assert_eq!(
            target(&r, "POST", "/v1/agents/a:reload").unwrap(),
            (1, vec!["agents/a".into()])
        );
        assert_eq!(
            target(&r, "GET", "/v1/a:b").unwrap(),
            (2, vec!["a:b".into()])
        );
    }

    #[test]
    fn slashes_in_escapes_stay_in_their_segment() {
        let r = router(&[("GET", "/one/{x}", 1), ("GET", "/many/{x=**}", 2)]);
        assert_eq!(target(&r, "GET", "/one/a%2Fb").unwrap().1, ["a/b"]);
        assert_eq!(
            target(&r, "GET", "/many/a%2Fb/c%20d").unwrap().1,
            ["a%2Fb/c d"]
        );
    }

    #[test]
    fn broken_escapes_do_not_route() {
        let r = router(&[("GET", "/{x}", 1)]);
        for bad in ["/%", "/%2", "/%zz", "/%ff", "/%00"] {
            assert!(matches!(r.find("GET", bad), Found::BadPath), "{bad}");
        }
    }

    #[test]
    fn an_unknown_path_differs_from_an_unsupported_method() {
        let r = router(&[("GET", "/a", 1), ("PUT", "/a", 2)]);
        assert!(matches!(r.find("GET", "/b"), Found::Nothing));
        assert!(matches!(r.find("GET", "/a/"), Found::Nothing));
        assert!(matches!(r.find("GET", "//a"), Found::Nothing));
        match r.find("DELETE", "/a") {
            Found::OtherMethods(allowed) => assert_eq!(allowed, ["GET", "PUT"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_path_twice_is_ambiguous() {
        let mut r = router(&[("GET", "/a/{x}", 1)]);
        assert!(
            r.insert("GET", Template::parse("/a/{y}").unwrap(), 2)
                .is_err()
        );
    }
}
