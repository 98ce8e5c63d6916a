//! Rows that are copied from a file into a server's schemas, and back.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use tars_runtime::{
    db::{Db, DbError, Dump, Fetch, Fill, Isolation, Migration, Place, Query, SchemaError, Server},
    lease,
};
use tars_test_db::on_postgres;
use tempfile::TempDir;
use uuid::Uuid;

/// With rows that the second migration writes, and with a table that refers to one that comes later.
const MIGRATIONS: &[Migration] = &[
    Migration::new(
        1,
        "values",
        "CREATE TABLE z_groups (name TEXT PRIMARY KEY);
         CREATE TABLE samples (id UUID PRIMARY KEY, yes BOOLEAN, whole BIGINT, part DOUBLE PRECISION,
         text TEXT, bytes BYTEA, own_group TEXT REFERENCES z_groups (name));
         CREATE TABLE empty (id BIGINT PRIMARY KEY);",
    ),
    Migration::new(2, "leases", lease::MIGRATION),
];

const SAMPLES: i64 = 130;

fn server(dir: &Path) -> Server {
    Server::of(&on_postgres(dir)).unwrap().unwrap()
}

fn place(server: &Server, service: &str) -> Place {
    Place::Server {
        server: server.clone(),
        service: service.to_owned(),
    }
}

async fn run(db: &Db, query: Query<'_>) {
    let mut tx = db.write("test.run", Isolation::Exclusive).await.unwrap();
    tx.execute(query).await.unwrap().any();
    tx.commit().await.unwrap();
}

async fn count(db: &mut impl Fetch, text: &'static str) -> i64 {
    db.value(Query::new(text), "n").await.unwrap()
}

/// More rows than one statement inserts, of values of every kind, at their bounds and absent.
async fn filled(file: &Path) -> Db {
    const SAMPLE: &str = "INSERT INTO samples (id, yes, whole, part, text, bytes, own_group) \
                          VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let db = Db::open(file, MIGRATIONS).await.unwrap();
    run(
        &db,
        Query::new("INSERT INTO z_groups (name) VALUES ('é\"''')"),
    )
    .await;
    for n in 0..SAMPLES {
        let some = n % 3 != 0;
        let sample = Query::new(SAMPLE)
            .bind(Uuid::from_u128(n.unsigned_abs().into()))
            .bind(some.then_some(n % 2 == 0))
            .bind(some.then_some([i64::MIN, -1, 0, i64::MAX][n as usize % 4]))
            .bind(some.then_some([f64::MIN, -0.0, 1e-300, 0.1, 7.0][n as usize % 5]))
            .bind(some.then_some(["", "a\nb", "é\u{1F980}", "'; --"][n as usize % 4]))
            .bind(some.then(|| vec![0, 255, n as u8]))
            .bind(some.then_some("é\"'"));
        run(&db, sample).await;
    }
    run(&db, Query::new("UPDATE lease_tokens SET last = 41")).await;
    let lease =
        "INSERT INTO leases (name, holder, token, nonce, renewals) VALUES ('a', 'b', 41, $1, 0)";
    run(&db, Query::new(lease).bind(Uuid::nil())).await;
    db
}

/// A file with rows, closed.
async fn source(dir: &TempDir) -> std::path::PathBuf {
    let file = dir.path().join("source.db");
    filled(&file).await.close().await;
    file
}

async fn samples(db: &Db) -> Vec<String> {
    const ALL: &str =
        "SELECT id, yes, whole, part, text, bytes, own_group FROM samples ORDER BY id";
    let rows = db.read("test.samples").rows(Query::new(ALL)).await.unwrap();
    let text = |row: &tars_runtime::db::Row| {
        let id: Uuid = row.get("id").unwrap();
        let yes: Option<bool> = row.get("yes").unwrap();
        let whole: Option<i64> = row.get("whole").unwrap();
        let part: Option<f64> = row.get("part").unwrap();
        let text: Option<String> = row.get("text").unwrap();
        let bytes: Option<Vec<u8>> = row.get("bytes").unwrap();
        let group: Option<String> = row.get("own_group").unwrap();
        // SQLite has no negative zero.
        let part = part.map(|p| p + 0.0);
        format!("{id} {yes:?} {whole:?} {part:?} {text:?} {bytes:?} {group:?}")
    };
    rows.iter().map(text).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn rows_go_to_a_server_and_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (file, server) = (source(&dir).await, server(dir.path()));
    let mut fill = Fill::begin(&server).await.unwrap();
    fill.copy("one", &file, MIGRATIONS).await.unwrap();
    fill.commit().await.unwrap();
    let on_server = Db::open(place(&server, "one"), MIGRATIONS).await.unwrap();

    let mut dump = Dump::begin(&server).await.unwrap();
    let back = dir.path().join("back.db");
    assert!(dump.copy("one", &back, MIGRATIONS).await.unwrap());
    let none = dir.path().join("none.db");
    assert!(!dump.copy("none", &none, MIGRATIONS).await.unwrap());

    let (source, back) = (
        Db::attach(&file).await.unwrap(),
        Db::attach(&back).await.unwrap(),
    );
    let expected = samples(&source).await;
    assert_eq!(expected.len(), SAMPLES as usize);
    for db in [&on_server, &back] {
        assert_eq!(samples(db).await, expected);
        let mut read = db.read("test.leases");
        let tokens = count(&mut read, "SELECT last AS n FROM lease_tokens").await;
        let leases = count(&mut read, "SELECT COUNT(*) AS n FROM leases").await;
        assert_eq!((tokens, leases), (41, 0));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn a_server_is_filled_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (file, server) = (source(&dir).await, server(dir.path()));
    let taken = Db::open(place(&server, "taken"), &MIGRATIONS[..1]).await;
    taken.unwrap().close().await;
    let mut fill = Fill::begin(&server).await.unwrap();
    fill.copy("one", &file, MIGRATIONS).await.unwrap();
    let refused = fill.copy("taken", &file, MIGRATIONS).await.unwrap_err();
    assert!(
        refused.to_string().contains("has tables already"),
        "{refused}"
    );
    drop(fill);
    let one = Db::attach(place(&server, "one")).await.unwrap();
    assert_eq!(
        one.tables().await.unwrap(),
        [],
        "nothing is left of the first"
    );
    let mut fill = Fill::begin(&server).await.unwrap();
    fill.copy("one", &file, MIGRATIONS).await.unwrap();
    fill.commit().await.unwrap();
    assert_eq!(samples(&one).await.len(), SAMPLES as usize);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn all_schemas_are_dumped_as_they_are_at_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let one = Db::open(place(&server, "one"), MIGRATIONS).await.unwrap();
    let two = Db::open(place(&server, "two"), MIGRATIONS).await.unwrap();
    let mut dump = Dump::begin(&server).await.unwrap();
    let file = |name: &str| dir.path().join(name);
    assert!(dump.copy("one", &file("one.db"), MIGRATIONS).await.unwrap());
    for db in [&one, &two] {
        run(db, Query::new("INSERT INTO empty (id) VALUES (1)")).await;
    }
    assert!(dump.copy("two", &file("two.db"), MIGRATIONS).await.unwrap());
    // Queries go to the schema that was copied last.
    assert_eq!(count(&mut dump, "SELECT COUNT(*) AS n FROM empty").await, 0);
    for name in ["one.db", "two.db"] {
        let copy = Db::attach(&file(name)).await.unwrap();
        let mut read = copy.read("test.count");
        let rows = count(&mut read, "SELECT COUNT(*) AS n FROM empty").await;
        assert_eq!(rows, 0, "{name}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn a_schema_of_another_version_is_not_dumped_and_an_older_one_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let file = |name: &str| dir.path().join(name);
    Db::open(place(&server, "new"), MIGRATIONS).await.unwrap();
    Db::open(place(&server, "old"), &MIGRATIONS[..1])
        .await
        .unwrap();
    let mut dump = Dump::begin(&server).await.unwrap();
    let newer = dump.copy("new", &file("new.db"), &MIGRATIONS[..1]).await;
    assert_eq!(newer, Err(SchemaError::Newer(2).into()));
    assert!(dump.copy("old", &file("old.db"), MIGRATIONS).await.unwrap());
    let old = Db::attach(&file("old.db")).await.unwrap();
    assert_eq!(old.schema(MIGRATIONS).await.unwrap().pending, [2]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn a_table_that_only_one_engine_has_is_an_error_and_not_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let db = Db::open(place(&server, "one"), MIGRATIONS).await.unwrap();
    run(&db, Query::new("CREATE TABLE extra (id BIGINT)")).await;
    let mut dump = Dump::begin(&server).await.unwrap();
    let refused = dump
        .copy("one", &dir.path().join("one.db"), MIGRATIONS)
        .await;
    assert!(
        matches!(&refused, Err(DbError::Failed(why)) if why.contains("extra")),
        "{refused:?}"
    );
}
