//! The structure of the code in numbers: how long functions and files are, and which files import each
//! other. Tests, benchmarks and generated code are left out. It reads what rustfmt writes, and no more.

mod circles;
mod imports;
mod source;

use crate::{Outcome, tools};
use circles::{Circle, circles};
use source::{Source, indent};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A longer function is listed: it holds two ideas, or its length is explained.
const LONG_FUNCTION: usize = 50;
/// A longer file is listed.
const LONG_FILE: usize = 500;

/// Prints the measurements.
pub(crate) fn run() -> Outcome {
    let sources = sources()?;
    functions(&sources);
    lengths(&sources);
    let found = circles(&sources);
    println!("circles of files: {}", found.len());
    for circle in found {
        print!("{circle}");
    }
    Ok(())
}

/// Fails when files import each other.
pub(crate) fn check() -> Outcome {
    let found = circles(&sources()?);
    if found.is_empty() {
        return Ok(());
    }
    let shown: String = found.iter().map(Circle::to_string).collect();
    Err(format!("files import each other in a circle:\n{shown}"))
}

fn sources() -> Result<Vec<Source>, String> {
    let root = tools::root();
    let mut files = Vec::new();
    for dir in crates(&root)? {
        collect(&dir.join("src"), &mut files)?;
        let build = dir.join("build.rs");
        files.extend(build.is_file().then_some(build));
        if dir.join("build").is_dir() {
            collect(&dir.join("build"), &mut files)?;
        }
    }
    files.iter().map(|path| Source::read(&root, path)).collect()
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
        .filter(|dir| !dir.starts_with(root.join("tests")) && *dir != root.join("xtask"))
        .collect();
    dirs.sort();
    Ok(dirs)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Outcome {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_to_the_brace_that_closes_them() {
        let text = "pub fn a(\n    x: u8,\n) -> u8 {\n    if x > 1 {\n        2\n    } else {\n        3\n    }\n}\ntrait T {\n    fn declared(&self);\n    async fn b(&self) {\n        let f = || {\n        };\n    }\n}\n";
        let found = functions_of(&Source::new("a/src/b.rs", text));
        let lengths: Vec<usize> = found.iter().map(|f| f.length).collect();
        assert_eq!(lengths, [9, 4]);
    }
}
