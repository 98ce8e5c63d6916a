//! A source file without its tests, and its place in the module tree.

use std::{fs, path::Path};

/// A module of a crate, as its segments below the crate's root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// The folder of the crate's root file; a build script is a crate of its own.
    pub(super) crate_root: String,
    pub(super) segments: Vec<String>,
}

pub(super) struct Source {
    /// Relative to the workspace.
    pub(super) path: String,
    /// Without the items that are compiled for tests only.
    pub(super) lines: Vec<String>,
    pub(super) module: Module,
}

impl Source {
    pub(super) fn read(root: &Path, path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let shown = path.strip_prefix(root).unwrap_or(path);
        Ok(Self::new(&shown.display().to_string(), &text))
    }

    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            module: module_of(path),
            lines: without_tests(text),
            path: path.to_owned(),
        }
    }
}

fn module_of(path: &str) -> Module {
    let mut segments: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    let is_root = |name: &&str| matches!(*name, "src" | "build");
    let root = segments.iter().position(is_root).map_or(0, |at| at + 1);
    let mut below = segments.split_off(root);
    // A binary beside a library is a crate of its own.
    match below.last() {
        Some(&"main") => segments.push("main"),
        Some(&"lib") => {}
        _ => {
            return Module {
                crate_root: segments.join("/"),
                segments: below.into_iter().map(str::to_owned).collect(),
            };
        }
    }
    below.pop();
    Module {
        crate_root: segments.join("/"),
        segments: below.into_iter().map(str::to_owned).collect(),
    }
}

pub(super) fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Drops each item behind `#[cfg(test)]`, up to the brace that closes it.
fn without_tests(text: &str) -> Vec<String> {
    let mut remaining = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            remaining.push(line.to_owned());
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
    remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_left_out() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod far;\nfn d() {}";
        assert_eq!(without_tests(text), ["fn a() {}", "fn c() {}", "fn d() {}"]);
    }

    #[test]
    fn paths_name_a_crate_and_a_module_in_it() {
        let named = |path: &str| {
            let module = module_of(path);
            (module.crate_root, module.segments.join("::"))
        };
        let pair = |root: &str, inner: &str| (root.to_owned(), inner.to_owned());
        assert_eq!(named("a/src/lib.rs"), pair("a/src", ""));
        assert_eq!(named("src/app/process.rs"), pair("src", "app::process"));
        assert_eq!(named("src/main.rs"), pair("src/main", ""));
        assert_eq!(named("a/build.rs"), pair("a/build", ""));
        assert_eq!(named("a/build/code.rs"), pair("a/build", "code"));
        assert_eq!(named("a/src/build/b.rs"), pair("a/src", "build::b"));
    }
}
