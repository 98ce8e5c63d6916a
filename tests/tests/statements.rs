//! Every SQL text of every service is understood by the engine, and names its columns.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tars_runtime::db::Db;
use tars_tests::TestMesh;

const SERVICES: [&str; 4] = ["auth", "automl", "hypersync", "orchestration"];

/// A part of `runtime` with a table of its own, and the services that have that table.
struct Part {
    file: &'static str,
    services: &'static [&'static str],
}

const PARTS: &[Part] = &[
    Part {
        file: "audit.rs",
        services: &SERVICES,
    },
    Part {
        file: "usage.rs",
        services: &SERVICES,
    },
    Part {
        file: "lease/table.rs",
        services: &SERVICES,
    },
    Part {
        file: "lease/presence.rs",
        services: &["orchestration"],
    },
    Part {
        file: "blobs/chunks.rs",
        services: &["orchestration"],
    },
    Part {
        file: "changes.rs",
        services: &["automl", "hypersync", "orchestration"],
    },
];

/// Sources of `runtime` whose statements ask for the engine's own tables, or are prepared by the port.
const OF_THE_PORT: &[&str] = &["db.rs", "db/"];

/// A statement that may read a table from end to end.
struct Scan {
    /// What it begins with.
    start: &'static str,
    /// The engine that scans.
    engine: Engine,
    /// Why that is no harm.
    _reason: &'static str,
}

#[derive(PartialEq)]
enum Engine {
    Either,
    Sqlite,
    Postgres,
}

const fn scan(start: &'static str, engine: Engine, reason: &'static str) -> Scan {
    Scan {
        start,
        engine,
        _reason: reason,
    }
}

const SCANS: &[Scan] = &[
    scan(
        "SELECT id FROM training_runs WHERE state IN ('paused', 'pausing')",
        Engine::Sqlite,
        "as few runs as are retained, when one is paused",
    ),
    scan(
        "SELECT proposal_id, body FROM decisions ORDER BY ended_us DESC, proposal_id DESC LIMIT $1",
        Engine::Either,
        "the newest in the order of the index",
    ),
    scan(
        "DELETE FROM decisions WHERE ended_us <=",
        Engine::Either,
        "the newest that are kept, in the order of the index",
    ),
    scan(
        "SELECT position, record FROM audit_outbox ORDER BY position LIMIT",
        Engine::Either,
        "the first rows in the order of the key",
    ),
    scan(
        "SELECT COUNT(*) AS waiting FROM audit_outbox",
        Engine::Either,
        "records leave the outbox within a second",
    ),
    scan(
        "SELECT source, number, month, user_id, dimension, amount FROM usage_outbox",
        Engine::Either,
        "the first rows in the order of the key",
    ),
    scan(
        "SELECT proposals.id AS id, proposals.document AS document FROM unrecorded_decisions",
        Engine::Either,
        "proposals leave it as soon as Orchestration has recorded them, the first in the order of the key",
    ),
    scan(
        "SELECT source, number FROM usage_outbox",
        Engine::Either,
        "the first rows in the order of the key",
    ),
    scan(
        "DELETE FROM leases",
        Engine::Postgres,
        "run at the start on a file alone, where a statement without a condition plans nothing",
    ),
    scan(
        "SELECT leases.name AS name, leases.token AS token",
        Engine::Sqlite,
        "a row for each piece of work in progress; one file has no other replicas to look for",
    ),
    scan(
        "SELECT replicas.lease AS lease, replicas.token AS token FROM replicas LEFT JOIN leases",
        Engine::Either,
        "a row for each replica that is present, or has ended since this was last done",
    ),
    scan(
        "SELECT COUNT(*) AS users FROM users",
        Engine::Either,
        "at the first start, and when an administrator is disabled or demoted; users are people",
    ),
    scan(
        "SELECT kid, state, public_x, private_sealed",
        Engine::Either,
        "a few keys",
    ),
    scan(
        "SELECT COUNT(*) AS secrets FROM sealed_secrets",
        Engine::Either,
        "two rows",
    ),
    scan(
        "SELECT spiffe_id, instance, holder, roots",
        Engine::Sqlite,
        "all but those that have expired, which are removed with each report",
    ),
    scan(
        "SELECT i.issuer, i.serial, i.spiffe_id, i.lineage, i.issued_us, i.not_after_us, i.generation, \
         i.source FROM",
        Engine::Either,
        "the status of a rotation is about every certificate",
    ),
    scan(
        "DELETE FROM sessions WHERE id IN",
        Engine::Postgres,
        "bounded by its LIMIT; the plan depends on how many sessions have ended",
    ),
    scan(
        "SELECT number, step_id, at_us, body FROM conflicts ORDER BY number DESC LIMIT",
        Engine::Either,
        "the last rows in the order of the key",
    ),
    scan(
        "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points ORDER BY number DESC LIMIT",
        Engine::Either,
        "as the one before",
    ),
    scan(
        "SELECT number, at_us, environment, value, low, high, regular, body FROM nash_points WHERE regular",
        Engine::Either,
        "as the one before, without the others, of which each owner has at most 1000",
    ),
    scan(
        "DELETE FROM run_reports WHERE run_id < (SELECT id FROM training_runs ORDER BY id DESC LIMIT 1",
        Engine::Either,
        "the newest runs in the order of their key",
    ),
    scan(
        "DELETE FROM checkpoints WHERE checkpoints.version",
        Engine::Either,
        "the checkpoints that are retained, by the replica that has the lease of it",
    ),
    scan(
        "DELETE FROM comparisons WHERE NOT EXISTS",
        Engine::Either,
        "as the one before: a row for each version that was compared",
    ),
    scan(
        "DELETE FROM trials WHERE NOT EXISTS",
        Engine::Either,
        "as the one before: a row for each version that climbed",
    ),
    scan(
        "SELECT blob FROM checkpoints WHERE blob IS NOT NULL UNION",
        Engine::Either,
        "as the one before: a collection reads every reference",
    ),
    scan(
        "SELECT name FROM blobs ORDER BY name",
        Engine::Either,
        "as the one before: a collection reads every name",
    ),
    scan(
        "DELETE FROM blob_chunks WHERE NOT EXISTS",
        Engine::Either,
        "as the one before, where a blob was removed",
    ),
];

impl Scan {
    fn is_expected(&self) -> bool {
        match self.engine {
            Engine::Either => true,
            Engine::Sqlite => !tars_test_db::is_postgres(),
            Engine::Postgres => tars_test_db::is_postgres(),
        }
    }
}

fn root() -> &'static Path {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent.expect("the tests are in a folder of the workspace")
}

/// The statements of a service: its own, and those of the parts of `runtime` that it uses.
fn statements_of(service: &str) -> Vec<String> {
    let sources = root().join("services").join(service).join("src");
    let parts = PARTS.iter().filter(|part| part.services.contains(&service));
    let runtime = root().join("runtime/src");
    let files = sources_below(&sources)
        .into_iter()
        .chain(parts.map(|part| runtime.join(part.file)));
    files.flat_map(|file| statements(&file)).collect()
}

#[test]
fn every_statement_outside_of_the_port_belongs_to_a_part_or_a_service() {
    let runtime = root().join("runtime/src");
    for file in sources_below(&runtime) {
        let name = file.strip_prefix(&runtime).unwrap().to_str().unwrap();
        let is_known = PARTS.iter().any(|part| part.file == name)
            || OF_THE_PORT.iter().any(|start| name.starts_with(start));
        let found = statements(&file);
        assert!(is_known || found.is_empty(), "{name}: {found:?}");
    }
    for part in PARTS {
        assert!(
            statements(&runtime.join(part.file)).len() >= 2,
            "{}",
            part.file
        );
    }
}

/// Each has the tables of the parts of `runtime` that are said to be every service's, or a statement below finds none.
#[test]
fn every_service_with_a_database_is_looked_at() {
    let folders = fs::read_dir(root().join("services")).unwrap();
    let folders = folders.map(|entry| entry.unwrap().path());
    let stores = folders.filter(|folder| folder.join("src/store.rs").exists());
    let names = stores.map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned());
    let names: BTreeSet<String> = names.collect();
    assert_eq!(names, SERVICES.map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_of_every_service_is_understood_and_scans_no_table_without_a_reason() {
    let mesh = TestMesh::start().await;
    let (mut scanning, mut unexplained) = (BTreeSet::new(), Vec::new());
    for service in SERVICES {
        let place = tars_test_db::of_mesh(mesh.dir.path(), service);
        let db = Db::attach(place).await.unwrap();
        let all = statements_of(service);
        assert!(all.len() >= 20, "{service} has {} statements", all.len());
        for text in &all {
            let prepared = db.prepare(text).await;
            assert!(prepared.is_ok(), "{service}: {text}: {prepared:?}");
            assert!(names_its_columns(text), "{service}: {text}");
            let scans = db.scans(text).await.unwrap();
            if scans.is_empty() {
                continue;
            }
            let expected = SCANS.iter().filter(|scan| scan.is_expected());
            match expected
                .map(|scan| scan.start)
                .find(|start| text.starts_with(start))
            {
                Some(start) => drop(scanning.insert(start)),
                None => unexplained.push(format!("{service}: {text}: {scans:?}")),
            }
        }
        assert!(db.prepare("SELECT nothing FROM nowhere").await.is_err());
        db.close().await;
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    let expected = SCANS.iter().filter(|scan| scan.is_expected());
    let expected: BTreeSet<&str> = expected.map(|scan| scan.start).collect();
    assert_eq!(scanning, expected, "what scans no more is no exception");
    mesh.mesh.stop().await;
}

#[test]
fn migrations_name_the_columns_that_they_fill() {
    for service in SERVICES {
        let folder = root().join("services").join(service).join("migrations");
        for file in sources_below(&folder) {
            let name = file.file_name().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&file).unwrap();
            let lax = text.split(';').map(without_comments);
            let lax: Vec<String> = lax.filter(|text| !names_its_columns(text)).collect();
            assert!(lax.is_empty() || SHIPPED.contains(&name), "{name}: {lax:?}");
        }
    }
}

/// Migrations that named no columns when they shipped; the text of a migration never changes.
const SHIPPED: &[&str] = &[
    "0008_reports_by_holder.sql",
    "0008_reports_by_holder.postgres.sql",
];

/// A statement of a migration on one line.
fn without_comments(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default());
    lines
        .flat_map(str::split_whitespace)
        .collect::<Vec<_>>()
        .join(" ")
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
