//! Files that reach each other through what they import: the strongly connected components of the
//! import graph.

use super::{imports::Tree, source::Source};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Files that import each other, directly or through others, with the imports among them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Circle(Vec<(String, Vec<String>)>);

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let imports = self.0.iter();
        imports.enumerate().try_for_each(|(at, (file, imported))| {
            let bullet = if at == 0 { '-' } else { ' ' };
            writeln!(f, "  {bullet} {file} -> {}", imported.join(", "))
        })
    }
}

/// A file and the folder of its submodules are one idea, and are not counted against each other.
pub(super) fn circles(sources: &[Source]) -> Vec<Circle> {
    let tree = Tree::new(sources);
    let imports = sources.iter().map(|source| {
        let mut files = tree.imports(source);
        files.retain(|file| !is_family(&source.path, file));
        (source.path.as_str(), files)
    });
    components(&imports.collect())
}

fn is_family(a: &str, b: &str) -> bool {
    let folder = |path: &str| {
        let stem = path.trim_end_matches(".rs");
        let stem = stem.strip_suffix("/lib").unwrap_or(stem);
        format!("{stem}/")
    };
    folder(b).starts_with(&folder(a)) || folder(a).starts_with(&folder(b))
}

fn components(graph: &Graph<'_>) -> Vec<Circle> {
    let reached: Graph<'_> = graph.keys().map(|f| (*f, reachable(graph, f))).collect();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for (file, others) in &reached {
        if !others.contains(file) || seen.contains(file) {
            continue;
        }
        let returns = |other: &&str| reached.get(other).is_some_and(|r| r.contains(file));
        let members: BTreeSet<&str> = others.iter().copied().filter(returns).collect();
        seen.extend(&members);
        found.push(circle(graph, &members));
    }
    found
}

/// What can be reached from a file by one import or more.
fn reachable<'a>(graph: &Graph<'a>, file: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = graph[file].iter().copied().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(graph.get(file).into_iter().flatten());
        }
    }
    reached
}

fn circle(graph: &Graph<'_>, members: &BTreeSet<&str>) -> Circle {
    let among = |file: &&str| {
        let imported = graph[file].intersection(members);
        (
            (*file).to_owned(),
            imported.map(|f| (*f).to_owned()).collect(),
        )
    };
    Circle(members.iter().map(among).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sources: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources: Vec<Source> = sources.iter().map(|(p, t)| Source::new(p, t)).collect();
        let circles = circles(&sources).into_iter();
        circles
            .map(|c| c.0.into_iter().map(|(file, _)| file).collect())
            .collect()
    }

    #[test]
    fn a_chain_is_no_circle() {
        let chain = [
            ("a/src/a.rs", "use crate::b::B;"),
            ("a/src/b.rs", "use crate::c::C;"),
            ("a/src/c.rs", ""),
        ];
        assert!(found(&chain).is_empty());
    }

    #[test]
    fn a_circle_of_three_files_is_found_once() {
        let three = [
            ("a/src/a.rs", "use crate::b::B;"),
            ("a/src/b.rs", "use crate::c::C;"),
            ("a/src/c.rs", "use crate::a::A;"),
            ("a/src/d.rs", "use crate::a::A;"),
        ];
        assert_eq!(found(&three), [["a/src/a.rs", "a/src/b.rs", "a/src/c.rs"]]);
    }

    #[test]
    fn a_circle_through_a_re_export_is_found() {
        let re_exported = [
            ("a/src/lib.rs", "pub use b::B;"),
            ("a/src/a.rs", "use crate::B;"),
            ("a/src/b.rs", "use crate::a::A;"),
        ];
        assert_eq!(found(&re_exported), [["a/src/a.rs", "a/src/b.rs"]]);
    }

    #[test]
    fn a_file_and_its_submodules_are_no_circle() {
        let family = [
            ("a/src/a.rs", "mod b;\nuse b::B;"),
            ("a/src/a/b.rs", "use super::A;"),
        ];
        assert!(found(&family).is_empty());
    }

    #[test]
    fn a_circle_shows_its_imports() {
        let pair = [
            ("a/src/a.rs", "use super::b::B;"),
            ("a/src/b.rs", "use super::a::A;"),
        ];
        let sources = pair.map(|(p, t)| Source::new(p, t));
        assert_eq!(
            circles(&sources)[0].to_string(),
            "  - a/src/a.rs -> a/src/b.rs\n    a/src/b.rs -> a/src/a.rs\n"
        );
    }
}
