//! What machines hold the line on: formatting, clippy, the resolved dependency graph, licences,
//! duplicate versions, the protos and whether they break, and the generated docs.

mod guide;

use crate::{Outcome, breaking, docs, shape, tools};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

/// A second TLS or crypto stack must not be built; being named in the lock file proves nothing.
const BANNED: &[&str] = &["ring", "openssl", "openssl-sys", "native-tls"];

/// What may name the database driver: its port, the manifest of the crate that holds it, and the
/// databases of the tests, with the benchmark whose baseline it is.
const DRIVER: &[&str] = &[
    "runtime/src/db",
    "runtime/src/db.rs",
    "runtime/Cargo.toml",
    "tests/db",
];

const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that are built in two versions, and why nothing of ours can change it.
const DUPLICATES: &[(&str, &str)] = &[
    (
        "base64",
        "jsonwebtoken and prost-reflect are on different ones",
    ),
    (
        "block-buffer",
        "sqlx is on digest 0.10, argon2 and sha2 on 0.11",
    ),
    (
        "cpufeatures",
        "sqlx is on digest 0.10, argon2 and sha2 on 0.11",
    ),
    (
        "crypto-common",
        "sqlx is on digest 0.10, argon2 and sha2 on 0.11",
    ),
    ("digest", "sqlx is on digest 0.10, argon2 and sha2 on 0.11"),
    ("sha2", "sqlx is on digest 0.10, argon2 and sha2 on 0.11"),
    ("getrandom", "rand 0.9 of the OpenTelemetry SDK"),
    ("hashbrown", "hashlink of sqlx"),
    ("rand", "rand 0.9 of the OpenTelemetry SDK"),
    ("rand_core", "rand 0.9 of the OpenTelemetry SDK"),
    ("syn", "derive macros are moving from 2 to 3"),
    ("synstructure", "derive macros are moving from 2 to 3"),
    (
        "untrusted",
        "aws-lc-rs and rustls-webpki are on different ones",
    ),
];

pub(crate) fn run() -> Outcome {
    tools::run(tools::cargo().args(["fmt", "--all", "--check"]))?;
    tools::run(tools::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))?;
    banned()?;
    driver_free()?;
    shape::check()?;
    guide::check()?;
    licences()?;
    duplicates()?;
    docs::check()?;
    let buf = tools::buf()?;
    tools::run(
        Command::new(&buf)
            .arg("lint")
            .current_dir(tools::root().join("proto")),
    )?;
    breaking::check(&buf)?;
    eprintln!("lint: good");
    Ok(())
}

fn banned() -> Outcome {
    for name in BANNED {
        let mut tree = tools::cargo();
        tree.args([
            "tree",
            "--workspace",
            "--target",
            "all",
            "--edges",
            "all",
            "--invert",
            name,
        ]);
        // An error says that the crate is not in the lock file at all.
        if let Ok(text) = tools::read(&mut tree)
            && !text.trim().is_empty()
        {
            return Err(format!("{name} is in the built graph:\n{text}"));
        }
    }
    Ok(())
}

/// Elsewhere statements, rows and errors have the types of `tars_runtime::db`, so that one text runs on
/// every engine.
fn driver_free() -> Outcome {
    let root = tools::root();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut wrong = Vec::new();
    for file in files {
        let place = file.strip_prefix(&root).unwrap_or(&file);
        if DRIVER.iter().any(|allowed| place.starts_with(allowed)) {
            continue;
        }
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{file:?}: {e}"))?;
        if names_driver(&text) {
            wrong.push(place.display().to_string());
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "the database driver is used by\n  {}",
            wrong.join("\n  ")
        ))
    }
}

fn names_driver(text: &str) -> bool {
    // In two parts, or this file would name it.
    [concat!("sql", "x::"), concat!("sql", "x.workspace")]
        .iter()
        .any(|name| text.contains(name))
}

/// Rust sources and manifests below a folder, but for what is built or hidden.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder:?}: {e}"))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{folder:?}: {e}"))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

fn licences() -> Outcome {
    let metadata = tools::metadata()?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let licence = package["license"].as_str().unwrap_or_default();
        if !is_allowed(licence) {
            wrong.push(format!(
                "{} {}: {licence:?}",
                package["name"], package["version"]
            ));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("licences not allowed:\n  {}", wrong.join("\n  ")))
    }
}

/// An SPDX expression: every AND part must have an OR part that is allowed.
fn is_allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    !plain.is_empty()
        && plain
            .split(" AND ")
            .all(|all| all.split(" OR ").any(|one| LICENCES.contains(&one.trim())))
}

fn duplicates() -> Outcome {
    let mut tree = tools::cargo();
    tree.args([
        "tree",
        "--workspace",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in tools::read(&mut tree)?.lines() {
        if let Some((name, version)) = line.split_once(" v") {
            let version = version.split_whitespace().next().unwrap_or_default();
            versions
                .entry(name.to_owned())
                .or_default()
                .insert(version.to_owned());
        }
    }
    let known: BTreeSet<&str> = DUPLICATES.iter().map(|(name, _)| *name).collect();
    let found: BTreeMap<&str, &BTreeSet<String>> = versions
        .iter()
        .filter(|(_, v)| v.len() > 1)
        .map(|(n, v)| (n.as_str(), v))
        .collect();
    let new: Vec<String> = found
        .iter()
        .filter(|(n, _)| !known.contains(*n))
        .map(|(n, v)| format!("{n}: {v:?}"))
        .collect();
    let gone: Vec<&str> = known
        .iter()
        .copied()
        .filter(|n| !found.contains_key(n))
        .collect();
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    Err(format!(
        "duplicate versions: new {new:?}; no longer there, remove from the list {gone:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::{is_allowed, names_driver};

    #[test]
    fn the_database_driver_is_recognised() {
        assert!(names_driver(concat!("use sql", "x::Row;")));
        assert!(names_driver(concat!("sql", "x.workspace = true")));
        assert!(!names_driver("use tars_runtime::db::Row;"));
    }

    #[test]
    fn expressions_need_an_allowed_way() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "AGPL-3.0-only"] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
