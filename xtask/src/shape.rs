//! How the code is built, in numbers: how long functions and files are, and which files import each
//! other. Tests, benchmarks and generated code aside. It reads what rustfmt writes, and no more.

use crate::{Outcome, tools};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A function that is longer holds two ideas, or is defended.
const LONG_FUNCTION: usize = 50;
const LONG_FILE: usize = 500;

pub(crate) fn run() -> Outcome {
    let root = tools::root();
    let mut files = Vec::new();
    for crate_dir in crates(&root)? {
        collect(&crate_dir.join("src"), &mut files)?;
    }
    let sources: Vec<Source> = files
        .iter()
        .map(|path| Source::read(&root, path))
        .collect::<Result<_, _>>()?;
    functions(&sources);
    lengths(&sources);
    circles(&sources);
    Ok(())
}

/// Every package of the workspace but those that are only tests and tools.
fn crates(root: &Path) -> Result<Vec<PathBuf>, String> {
    let metadata = tools::metadata()?;
    let packages = metadata["workspace_members"]
        .as_array()
        .ok_or("cargo metadata names no members")?;
    let manifests = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata names no packages")?;
    let dirs = manifests
        .iter()
        .filter(|p| packages.contains(&p["id"]))
        .filter_map(|p| {
            Path::new(p["manifest_path"].as_str()?)
                .parent()
                .map(Path::to_owned)
        });
    let mut dirs: Vec<PathBuf> = dirs
        .filter(|dir| *dir != root.join("tests") && *dir != root.join("xtask"))
        .collect();
    dirs.sort();
    Ok(dirs)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if path.is_dir() && name != "tests" {
            collect(&path, files)?;
        } else if name.ends_with(".rs") && !matches!(name, "tests.rs" | "testing.rs") {
            files.push(path);
        }
    }
    Ok(())
}

struct Source {
    path: String,
    /// Without the modules that are compiled for tests.
    lines: Vec<String>,
    /// `crate/module/inner`, as the module tree has it.
    module: String,
}

impl Source {
    fn read(root: &Path, path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(path);
        let shown = shown.display().to_string();
        Ok(Self {
            module: module_of(&shown),
            lines: without_tests(&text),
            path: shown,
        })
    }
}

fn module_of(path: &str) -> String {
    let path = path.trim_end_matches(".rs");
    let (dir, inner) = path.rsplit_once("src/").unwrap_or(("", path));
    let inner = match inner {
        "lib" | "main" => "",
        inner => inner,
    };
    format!("{}|{inner}", dir.trim_end_matches('/'))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Drops each item behind `#[cfg(test)]`, up to the brace that closes it.
fn without_tests(text: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push(line.to_owned());
            continue;
        }
        let depth = indent(line);
        let mut opened = false;
        for line in lines.by_ref() {
            opened |= line.ends_with('{');
            let closed = indent(line) == depth && line.trim_start().starts_with('}');
            if (!opened && line.ends_with(';')) || (opened && closed) {
                break;
            }
        }
    }
    kept
}

struct Function {
    place: String,
    length: usize,
}

fn begins_function(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    for word in [
        "pub(crate) ",
        "pub(super) ",
        "pub ",
        "const ",
        "async ",
        "unsafe ",
    ] {
        words = words.strip_prefix(word).unwrap_or(words);
    }
    let name = words.strip_prefix("fn ")?;
    name.split(['(', '<']).next()
}

/// From the line that names it to the brace that closes it.
fn functions_of(source: &Source) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let Some(name) = begins_function(line) else {
            continue;
        };
        let depth = indent(line);
        let one_line = line.ends_with('}') || line.ends_with(';');
        let rest = source.lines[at + 1..].iter();
        let end = match one_line {
            true => Some(0),
            false => rest
                .clone()
                .position(|l| indent(l) == depth && (l.trim() == "}" || l.ends_with(';')))
                .map(|n| n + 1),
        };
        let body = end.is_some_and(|n| !source.lines[at + n].ends_with(';'));
        if let (Some(n), true) = (end, body || line.ends_with('}')) {
            let place = format!("{}:{} {name}", source.path, at + 1);
            found.push(Function {
                place,
                length: n + 1,
            });
        }
    }
    found
}

fn functions(sources: &[Source]) {
    let mut all: Vec<Function> = sources.iter().flat_map(functions_of).collect();
    all.sort_by_key(|f| f.length);
    let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1)));
    let length = |part| at(part).map_or(0, |f| f.length);
    println!(
        "functions: {}, lines at median {}, p90 {}, most {}",
        all.len(),
        length(50),
        length(90),
        length(100)
    );
    for long in all.iter().rev().take_while(|f| f.length > LONG_FUNCTION) {
        println!("  {:4}  {}", long.length, long.place);
    }
}

fn lengths(sources: &[Source]) {
    let mut all: Vec<(usize, &str)> = sources
        .iter()
        .map(|s| (s.lines.len(), s.path.as_str()))
        .collect();
    all.sort_unstable();
    let longest = all.last().map_or(0, |(n, _)| *n);
    println!("files: {}, lines at most {longest}", all.len());
    for (length, path) in all.iter().rev().take_while(|(n, _)| *n > LONG_FILE) {
        println!("  {length:4}  {path}");
    }
}

/// What a file imports of its own crate.
fn imports(source: &Source, known: &BTreeMap<&str, &str>) -> BTreeSet<String> {
    let (package, own) = source.module.split_once('|').unwrap_or_default();
    let mut found = BTreeSet::new();
    for tree in use_trees(&source.lines) {
        for path in paths(&tree) {
            if let Some(path) = absolute(&path, own) {
                found.extend(longest(package, &path, known));
            }
        }
    }
    found.remove(source.path.as_str());
    found
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

/// The paths of a `use` tree, without their braces and other names.
fn paths(tree: &str) -> Vec<String> {
    let words: Vec<&str> = tree.split_whitespace().collect();
    let alias = |at: usize| words[at] == "as" || (at > 0 && words[at - 1] == "as");
    let kept = (0..words.len()).map(|at| match alias(at) {
        // The name goes, and what closes or follows it stays.
        true => words[at].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        false => words[at],
    });
    let tree: String = kept.collect();
    let (mut stack, mut prefix, mut word, mut all) =
        (Vec::new(), String::new(), String::new(), Vec::new());
    for letter in tree.chars() {
        match letter {
            '{' => {
                stack.push(prefix.clone());
                prefix.push_str(&word);
                word.clear();
            }
            ',' | '}' => {
                if !word.is_empty() {
                    all.push(format!("{prefix}{word}"));
                    word.clear();
                }
                if letter == '}' {
                    prefix = stack.pop().unwrap_or_default();
                }
            }
            letter => word.push(letter),
        }
    }
    if !word.is_empty() {
        all.push(format!("{prefix}{word}"));
    }
    all
}

/// A path below the crate's root, as module names.
fn absolute(path: &str, own: &str) -> Option<Vec<String>> {
    let mut parts = path.split("::").peekable();
    let mut at: Vec<&str> = own.split('/').filter(|p| !p.is_empty()).collect();
    match parts.next()? {
        "crate" => at.clear(),
        "self" => {}
        "super" => {
            at.pop();
            while parts.next_if_eq(&"super").is_some() {
                at.pop();
            }
        }
        // A module of the same file's own, or another crate.
        first => at.push(first),
    }
    at.extend(parts);
    Some(at.into_iter().map(str::to_owned).collect())
}

fn longest(package: &str, path: &[String], known: &BTreeMap<&str, &str>) -> Option<String> {
    (1..=path.len()).rev().find_map(|n| {
        let module = format!("{package}|{}", path[..n].join("/"));
        known.get(module.as_str()).map(|path| (*path).to_owned())
    })
}

/// Files that reach each other through what they import. A file and the folder it speaks for are
/// one idea, and are not counted against each other.
fn circles(sources: &[Source]) {
    let known: BTreeMap<&str, &str> = sources
        .iter()
        .map(|s| (s.module.as_str(), s.path.as_str()))
        .collect();
    let imports: BTreeMap<&str, BTreeSet<String>> = sources
        .iter()
        .map(|s| (s.path.as_str(), imports(s, &known)))
        .collect();
    let family = |a: &str, b: &str| {
        let stem = |p: &str| p.trim_end_matches(".rs").to_owned();
        stem(b).starts_with(&format!("{}/", stem(a)))
            || stem(a).starts_with(&format!("{}/", stem(b)))
    };
    let mut found = BTreeSet::new();
    for (file, theirs) in &imports {
        for other in theirs {
            let back = imports
                .get(other.as_str())
                .is_some_and(|i| i.contains(*file));
            if back && !family(file, other) {
                let mut pair = [(*file).to_owned(), other.clone()];
                pair.sort();
                found.insert(pair);
            }
        }
    }
    println!("pairs of files that import each other: {}", found.len());
    for [a, b] in found {
        println!("  {a} <-> {b}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            path: "a/src/b.rs".into(),
            lines: without_tests(text),
            module: module_of("a/src/b.rs"),
        }
    }

    #[test]
    fn tests_are_left_out() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod far;\nfn d() {}";
        assert_eq!(without_tests(text), ["fn a() {}", "fn c() {}", "fn d() {}"]);
    }

    #[test]
    fn functions_are_measured_to_the_brace_that_closes_them() {
        let text = "pub fn a(\n    x: u8,\n) -> u8 {\n    if x > 1 {\n        2\n    } else {\n        3\n    }\n}\ntrait T {\n    fn declared(&self);\n    async fn b(&self) {\n        let f = || {\n        };\n    }\n}\n";
        let found = functions_of(&source(text));
        let lengths: Vec<usize> = found.iter().map(|f| f.length).collect();
        assert_eq!(lengths, [9, 4]);
    }

    #[test]
    fn uses_of_all_kinds_are_seen() {
        let text =
            "use crate::a;\npub use b::{\n    C, D,\n};\nfn f() {\n    use super::e as g;\n}\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let all: Vec<String> = use_trees(&lines).iter().flat_map(|t| paths(t)).collect();
        assert_eq!(all, ["crate::a", "b::C", "b::D", "super::e"]);
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let tree = "crate::{a::{B, c::D}, e, self as f}";
        assert_eq!(
            paths(tree),
            ["crate::a::B", "crate::a::c::D", "crate::e", "crate::self"]
        );
        let path = |text: &str| absolute(text, "x/y").unwrap().join("/");
        assert_eq!(path("super::z::W"), "x/z/W");
        assert_eq!(path("super::super::z"), "z");
        assert_eq!(path("crate::z"), "z");
    }
}
