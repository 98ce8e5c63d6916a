//! Which files of its own crate a file imports, by `use` or by a path in the code. A name that a module
//! imports from elsewhere counts for the file that declares it.

use super::source::{Module, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Imports that lead on to other imports; a longer chain is taken for a cycle of names.
const LONGEST_CHAIN: usize = 16;

/// An imported path below the crate's root, and the name it has in the importing module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Import {
    path: Vec<String>,
    name: String,
}

/// The modules of all crates, with the names that each imports.
pub(super) struct Tree<'a> {
    files: BTreeMap<&'a Module, &'a str>,
    names: BTreeMap<&'a Module, BTreeMap<String, Vec<String>>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(sources: &'a [Source]) -> Self {
        let files = sources.iter().map(|s| (&s.module, s.path.as_str()));
        let names = sources.iter().map(|source| {
            let imports = imports_of(source).into_iter();
            (&source.module, imports.map(|i| (i.name, i.path)).collect())
        });
        Self {
            files: files.collect(),
            names: names.collect(),
        }
    }

    /// The files that a file imports.
    pub(super) fn imports(&self, source: &Source) -> BTreeSet<&'a str> {
        let used = imports_of(source).into_iter().map(|i| i.path);
        let paths = used.chain(paths_in_code(source));
        let mut files: BTreeSet<&str> = paths
            .filter_map(|path| self.file_of(&source.module.crate_root, path, 0))
            .collect();
        files.remove(source.path.as_str());
        files
    }

    /// The file that declares what a path names.
    fn file_of(&self, crate_root: &str, path: Vec<String>, chain: usize) -> Option<&'a str> {
        let (module, file) = (0..=path.len()).rev().find_map(|n| {
            let module = Module {
                crate_root: crate_root.to_owned(),
                segments: path[..n].to_vec(),
            };
            let file = self.files.get(&module)?;
            Some((module, *file))
        })?;
        let (name, rest) = match path[module.segments.len()..].split_first() {
            Some((name, rest)) if chain < LONGEST_CHAIN => (name, rest),
            _ => return Some(file),
        };
        match self.names[&module].get(name) {
            Some(elsewhere) if *elsewhere != path => {
                let path = elsewhere.iter().chain(rest).cloned().collect();
                self.file_of(crate_root, path, chain + 1)
            }
            _ => Some(file),
        }
    }
}

fn imports_of(source: &Source) -> Vec<Import> {
    let own = &source.module.segments;
    let trees = use_trees(&source.lines);
    let leaves = trees.iter().flat_map(|tree| leaves(tree));
    leaves
        .map(|(path, name)| Import {
            path: absolute(&path, own),
            name,
        })
        .collect()
}

/// What stands between `use` and `;`, of whatever visibility.
fn use_trees(lines: &[String]) -> Vec<String> {
    let mut trees = Vec::new();
    let mut lines = lines.iter().map(|l| l.trim());
    while let Some(line) = lines.next() {
        let mut words = line;
        for word in ["pub(crate) ", "pub(super) ", "pub "] {
            words = words.strip_prefix(word).unwrap_or(words);
        }
        let Some(first) = words.strip_prefix("use ") else {
            continue;
        };
        let mut tree = first.to_owned();
        while !tree.ends_with(';') {
            let Some(line) = lines.next() else { break };
            tree.push(' ');
            tree.push_str(line);
        }
        trees.push(tree.trim_end_matches(';').to_owned());
    }
    trees
}

/// The paths of a `use` tree, each with the name that it imports.
fn leaves(tree: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut prefixes, mut prefix, mut word) = (Vec::new(), String::new(), String::new());
    for letter in tree.chars().chain([',']) {
        match letter {
            '{' => {
                prefixes.push(prefix.clone());
                prefix.push_str(word.trim());
                word.clear();
            }
            ',' | '}' => {
                found.extend(leaf(&prefix, word.trim()));
                word.clear();
                if letter == '}' {
                    prefix = prefixes.pop().unwrap_or_default();
                }
            }
            letter => word.push(letter),
        }
    }
    found
}

fn leaf(prefix: &str, word: &str) -> Option<(String, String)> {
    let (path, alias) = word.split_once(" as ").unwrap_or((word, ""));
    if path.is_empty() {
        return None;
    }
    let path = match path {
        "self" => prefix.trim_end_matches(':').to_owned(),
        path => format!("{prefix}{path}"),
    };
    let last = path.rsplit("::").next().unwrap_or_default();
    let name = if alias.is_empty() { last } else { alias };
    Some((path.clone(), name.to_owned()))
}

/// Paths from `crate` or `super` outside of `use`.
fn paths_in_code(source: &Source) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let is_comment = |line: &&String| line.trim_start().starts_with("//");
    for line in source.lines.iter().filter(|line| !is_comment(line)) {
        let words = line.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | ':')));
        let paths = words.map(|word| word.trim_end_matches(':'));
        let paths = paths.filter(|p| p.starts_with("crate::") || p.starts_with("super::"));
        found.extend(paths.map(|path| absolute(path, &source.module.segments)));
    }
    found
}

/// A path below the crate's root.
fn absolute(path: &str, own: &[String]) -> Vec<String> {
    let mut at: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut parts = path.split("::").peekable();
    if parts.next_if_eq(&"crate").is_some() {
        at.clear();
    } else {
        parts.next_if_eq(&"self");
        while parts.next_if_eq(&"super").is_some() {
            at.pop();
        }
    }
    at.extend(parts);
    at.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn imported(sources: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = sources.iter().map(|(p, t)| Source::new(p, t)).collect();
        let files = Tree::new(&sources).imports(&sources[0]);
        files.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn uses_of_every_visibility_are_found() {
        let text =
            "use crate::a;\npub use b::{\n    C, D,\n};\nfn f() {\n    use super::e as g;\n}\n";
        let trees = use_trees(&lines(text));
        let all: Vec<_> = trees.iter().flat_map(|t| leaves(t)).collect();
        let paths: Vec<_> = all.iter().map(|(p, n)| (p.as_str(), n.as_str())).collect();
        assert_eq!(
            paths,
            [
                ("crate::a", "a"),
                ("b::C", "C"),
                ("b::D", "D"),
                ("super::e", "g")
            ]
        );
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let all = leaves("crate::{a::{B, c::D}, e::{self as f, G as H}, i}");
        let paths: Vec<_> = all.iter().map(|(p, n)| format!("{p} {n}")).collect();
        assert_eq!(
            paths,
            [
                "crate::a::B B",
                "crate::a::c::D D",
                "crate::e f",
                "crate::e::G H",
                "crate::i i"
            ]
        );
    }

    #[test]
    fn paths_are_resolved_against_their_module() {
        let own = ["x".to_owned(), "y".to_owned()];
        let path = |text: &str| absolute(text, &own).join("/");
        assert_eq!(path("super::z::W"), "x/z/W");
        assert_eq!(path("super::super::z"), "z");
        assert_eq!(path("self::z"), "x/y/z");
        assert_eq!(path("crate::z"), "z");
        assert_eq!(path("z"), "x/y/z");
    }

    #[test]
    fn a_re_export_counts_for_the_file_that_declares_the_name() {
        let tree = [
            ("a/src/one.rs", "use crate::{Two, three::Four};"),
            ("a/src/lib.rs", "mod one;\npub use two::Two;"),
            ("a/src/two.rs", "pub use five::Five as Two;"),
            ("a/src/two/five.rs", "pub struct Five;"),
            ("a/src/three.rs", "use crate::two::Two as Four;"),
        ];
        assert_eq!(imported(&tree), ["a/src/two/five.rs"]);
    }

    #[test]
    fn a_path_in_the_code_is_an_import_and_one_in_a_comment_is_not() {
        let code = "// crate::three::C\nfn f() { super::two::B::new(&crate::LIMIT) }";
        let tree = [
            ("a/src/one.rs", code),
            ("a/src/two.rs", ""),
            ("a/src/three.rs", ""),
        ];
        assert_eq!(imported(&tree), ["a/src/two.rs"]);
    }

    #[test]
    fn names_that_import_each_other_end() {
        let tree = [
            ("a/src/one.rs", "use super::two::A;"),
            ("a/src/two.rs", "pub use super::one::A;"),
        ];
        assert_eq!(imported(&tree).len(), 1);
    }
}
