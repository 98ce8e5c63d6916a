//! Every SQL text of every service is understood by the engine, and names its columns.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};
use tars_runtime::db::Db;
use tars_tests::TestMesh;

const SERVICES: [&str; 4] = ["auth", "automl", "hypersync", "orchestration"];

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_of_every_service_can_be_prepared() {
    let mesh = TestMesh::start().await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let outbox = statements(&root.join("runtime/src/audit.rs"));
    let leases = statements(&root.join("runtime/src/lease/table.rs"));
    let blobs = statements(&root.join("runtime/src/blobs/chunks.rs"));
    let changes = statements(&root.join("runtime/src/changes.rs"));
    let presence = statements(&root.join("runtime/src/lease/presence.rs"));
    let of_runtime = [&outbox, &leases, &blobs, &changes, &presence];
    assert!(of_runtime.iter().all(|found| found.len() >= 2));
    for service in SERVICES {
        let place = tars_test_db::of_mesh(mesh.dir.path(), service);
        let db = Db::attach(place).await.unwrap();
        let sources = root.join("services").join(service).join("src");
        let own: Vec<String> = sources_below(&sources)
            .iter()
            .flat_map(|file| statements(file))
            .collect();
        assert!(own.len() >= 9, "{service} has {} statements", own.len());
        let blobs = blobs.iter().filter(|_| service == "orchestration");
        let changes = changes
            .iter()
            .filter(|_| ["automl", "hypersync", "orchestration"].contains(&service));
        let presence = presence.iter().filter(|_| service == "orchestration");
        let of_runtime = outbox.iter().chain(&leases).chain(blobs).chain(changes);
        for text in own.iter().chain(of_runtime).chain(presence) {
            let prepared = db.prepare(text).await;
            assert!(prepared.is_ok(), "{service}: {text}: {prepared:?}");
            assert!(names_its_columns(text), "{service}: {text}");
        }
        assert!(db.prepare("SELECT nothing FROM nowhere").await.is_err());
        db.close().await;
    }
    mesh.mesh.stop().await;
}

fn names_its_columns(text: &str) -> bool {
    let insert = text.strip_prefix("INSERT INTO ");
    let table_and_columns = insert.is_none_or(|rest| {
        let (_, after) = rest.split_once(' ').unwrap_or_default();
        after.starts_with('(')
    });
    table_and_columns && !text.contains("SELECT *")
}

#[test]
fn a_statement_that_names_no_columns_is_noticed() {
    assert!(names_its_columns("INSERT INTO users (id) VALUES ($1)"));
    assert!(names_its_columns("SELECT COUNT(*) AS n FROM users"));
    for lax in [
        "INSERT INTO users VALUES ($1)",
        "INSERT INTO users SELECT id FROM others",
        "SELECT * FROM users",
        "SELECT id FROM users WHERE id IN (SELECT * FROM others)",
    ] {
        assert!(!names_its_columns(lax), "{lax}");
    }
}

/// Rust sources that are no tests.
fn sources_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if matches!(name.as_str(), "tests" | "testing" | "fake") {
            continue;
        }
        if path.is_dir() {
            found.extend(sources_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// The string literals of a source that are SQL. Each statement is one literal.
fn statements(file: &Path) -> Vec<String> {
    let source = fs::read_to_string(file).unwrap();
    let (source, _) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
    let is_sql = |text: &String| {
        ["SELECT ", "INSERT ", "UPDATE ", "DELETE "]
            .iter()
            .any(|verb| text.starts_with(verb))
    };
    literals(source).into_iter().filter(is_sql).collect()
}

/// The string literals of a source, unescaped as far as SQL needs it.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (head, tail) = rest[at..].split_at(1);
        rest = match head {
            "/" if tail.starts_with('/') => tail.split_once('\n').unwrap_or_default().1,
            "'" if tail.starts_with("\"'") => &tail[2..],
            "\"" => {
                let (text, after) = literal(tail);
                found.push(text);
                after
            }
            _ => tail,
        };
    }
    found
}

/// A literal after its first quote, and what follows its last one.
fn literal(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut rest = source;
    while let Some(at) = rest.find(['"', '\\']) {
        text.push_str(&rest[..at]);
        let is_end = rest[at..].starts_with('"');
        rest = &rest[at + 1..];
        if is_end {
            return (text, rest);
        }
        if rest.starts_with('\n') {
            rest = rest.trim_start();
        } else if let Some(escaped) = rest.chars().next() {
            text.push(escaped);
            rest = &rest[escaped.len_utf8()..];
        }
    }
    (text, "")
}

#[test]
fn literals_are_read_as_the_compiler_reads_them() {
    let source = r#"
        // "a comment"
        const A: &str = "SELECT a \
                         FROM b";
        let quote = '"';
        let c = "x = \"y\"";
    "#;
    assert_eq!(literals(source), ["SELECT a FROM b", "x = \"y\""]);
}
