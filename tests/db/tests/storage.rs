//! What every engine must do alike, through the port that the services use.

#![allow(clippy::unwrap_used)]

use futures_util::future::{join_all, poll_fn};
use std::{collections::BTreeSet, path::Path, pin::pin, task::Poll, time::Duration};
use tars_runtime::db::{
    Db, DbError, Fetch, FromRow, Isolation, Migration, Query, Row, SchemaError, Swap, Transaction,
    Write,
};
use tars_test_db::{keep_open, place};
use tokio::time::timeout;
use uuid::Uuid;

const MIGRATIONS: &[Migration] = &[
    Migration::new(
        1,
        "counters",
        "CREATE TABLE counters (id BIGINT PRIMARY KEY, value BIGINT NOT NULL);
         CREATE TABLE numbers (number BIGINT PRIMARY KEY);
         CREATE TABLE admins (name TEXT PRIMARY KEY);",
    ),
    Migration::new(
        2,
        "values",
        "CREATE TABLE samples (id UUID PRIMARY KEY, yes BOOLEAN, whole BIGINT, part DOUBLE PRECISION,
         text TEXT, bytes BYTEA);",
    ),
];

const PUT: &str = "INSERT INTO counters (id, value) VALUES ($1, $2)";
const VALUE: &str = "SELECT value FROM counters WHERE id = $1";
const SWAP: &str = "UPDATE counters SET value = $3 WHERE id = $1 AND value = $2";
const COUNT: &str = "SELECT COUNT(*) AS n FROM counters";

async fn open(dir: &Path) -> Db {
    Db::open(place(dir, "storage"), MIGRATIONS).await.unwrap()
}

async fn begin(db: &Db, isolation: Isolation) -> Write {
    db.write("test.write", isolation).await.unwrap()
}

async fn put(tx: &mut Transaction, id: i64, value: i64) -> Result<(), DbError> {
    tx.execute(Query::new(PUT).bind(id).bind(value))
        .await?
        .one()
}

async fn value(db: &mut impl Fetch, id: i64) -> i64 {
    db.value(Query::new(VALUE).bind(id), "value").await.unwrap()
}

/// Eight tasks that do the same.
async fn eight(db: &Db, work: impl AsyncFn(Db)) {
    join_all((0..8).map(|_| work(db.clone()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_tasks_on_one_row_lose_no_update() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let mut tx = begin(&db, Isolation::Committed).await;
    put(&mut tx, 1, 0).await.unwrap();
    tx.commit().await.unwrap();
    eight(&db, async |db| {
        for _ in 0..20 {
            // Lost where another was faster; then from the value that there is now.
            loop {
                let seen = value(&mut db.read("test.read"), 1).await;
                let mut tx = begin(&db, Isolation::Committed).await;
                let swap = Query::new(SWAP).bind(1_i64).bind(seen).bind(seen + 1);
                let swap = tx.execute(swap).await.unwrap().swap();
                tx.commit().await.unwrap();
                if swap == Swap::Done {
                    break;
                }
            }
        }
    })
    .await;
    assert_eq!(value(&mut db.read("test.read"), 1).await, 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_number_is_taken_once_by_exclusive_transactions() {
    const NEXT: &str = "INSERT INTO numbers (number) SELECT COALESCE(MAX(number), 0) + 1 FROM numbers \
                        RETURNING number";
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    eight(&db, async |db| {
        for _ in 0..10 {
            let mut tx = begin(&db, Isolation::Exclusive).await;
            let number: i64 = tx.value(Query::new(NEXT), "number").await.unwrap();
            assert!(number > 0);
            tx.commit().await.unwrap();
        }
    })
    .await;
    let highest = Query::new("SELECT MAX(number) AS n FROM numbers");
    let highest: i64 = db.read("test.read").value(highest, "n").await.unwrap();
    assert_eq!(highest, 80, "without a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_a_kind_stays_however_many_remove_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let mut tx = begin(&db, Isolation::Exclusive).await;
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let admin = Query::new("INSERT INTO admins (name) VALUES ($1)").bind(name);
        tx.execute(admin).await.unwrap().one().unwrap();
    }
    tx.commit().await.unwrap();
    join_all(["a", "b", "c", "d", "e", "f", "g", "h"].map(async |name| {
        let mut tx = begin(&db, Isolation::Exclusive).await;
        let remove = Query::new("DELETE FROM admins WHERE name = $1").bind(name);
        tx.execute(remove).await.unwrap().one().unwrap();
        let left = Query::new("SELECT COUNT(*) AS n FROM admins");
        let left: i64 = tx.value(left, "n").await.unwrap();
        if left > 0 {
            tx.commit().await.unwrap();
        }
    }))
    .await;
    let left = Query::new("SELECT COUNT(*) AS n FROM admins");
    let left: i64 = db.read("test.read").value(left, "n").await.unwrap();
    assert_eq!(left, 1);
}

/// Polls a future at most so many times, then drops it. Says whether it was ready.
async fn is_ready_within(polls: usize, future: impl Future) -> bool {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|cx| {
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        left -= 1;
        if left == 0 {
            Poll::Ready(false)
        } else {
            Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn a_write_that_is_dropped_anywhere_is_whole_or_absent_and_holds_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let (mut polls, mut heard) = (1, 0);
    let (mut before, mut id) = (0, 0);
    while heard < 3 {
        id += 2;
        let isolation = match id % 4 {
            0 => Isolation::Exclusive,
            _ => Isolation::Committed,
        };
        let write = async {
            let mut tx = begin(&db, isolation).await;
            put(&mut tx, id, 0).await.unwrap();
            put(&mut tx, id + 1, 0).await.unwrap();
            tx.commit().await.unwrap();
        };
        let is_heard = is_ready_within(polls, write).await;
        // A writer that waits longer than this met a lock that nobody holds any more.
        let next = timeout(Duration::from_secs(4), begin(&db, Isolation::Exclusive)).await;
        drop(next.expect("no lock is left behind"));
        let now: i64 = db
            .read("test.count")
            .value(Query::new(COUNT), "n")
            .await
            .unwrap();
        assert!(now % 2 == 0, "dropped after {polls} polls: {now} rows");
        assert!(
            !is_heard || now == before + 2,
            "an acknowledged write is there"
        );
        before = now;
        heard += u32::from(is_heard);
        polls = if is_heard { 1 } else { polls + 1 };
    }
}

#[tokio::test]
async fn reads_that_are_dropped_leave_connections_that_see_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    for polls in 1..40 {
        let snapshot = async {
            let mut snapshot = db.snapshot("test.snapshot").await.unwrap();
            snapshot.rows(Query::new(COUNT)).await.unwrap()
        };
        is_ready_within(polls, snapshot).await;
        let mut tx = begin(&db, Isolation::Committed).await;
        put(&mut tx, i64::try_from(polls).unwrap(), 7)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        // More reads than there are connections: none of them is left in an old snapshot.
        for _ in 0..4 {
            let seen = value(&mut db.read("test.read"), i64::try_from(polls).unwrap()).await;
            assert_eq!(seen, 7);
        }
    }
}

#[tokio::test]
async fn a_statement_that_fails_spoils_its_transaction_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let mut tx = begin(&db, Isolation::Exclusive).await;
    put(&mut tx, 1, 1).await.unwrap();
    let taken = put(&mut tx, 1, 2).await.unwrap_err();
    assert!(taken.is_unique_violation(), "{taken}");
    drop(tx);
    let mut tx = begin(&db, Isolation::Exclusive).await;
    put(&mut tx, 1, 3).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(value(&mut db.read("test.read"), 1).await, 3);
}

#[tokio::test]
async fn a_writer_that_waits_for_too_long_is_told_that_the_database_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let mut held = begin(&db, Isolation::Exclusive).await;
    let other = open(dir.path()).await;
    let refused = tokio::select! {
        refused = other.write("test.wait", Isolation::Exclusive) => refused,
        () = keep_open(&mut held) => panic!("the lock is lost"),
    };
    assert!(
        matches!(refused, Err(DbError::Unavailable(_))),
        "{refused:?}"
    );
    drop(held);
    drop(begin(&other, Isolation::Exclusive).await);
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    id: Uuid,
    yes: Option<bool>,
    whole: Option<i64>,
    part: Option<f64>,
    text: Option<String>,
    bytes: Option<Vec<u8>>,
}

impl FromRow for Sample {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            yes: row.get("yes")?,
            whole: row.get("whole")?,
            part: row.get("part")?,
            text: row.get("text")?,
            bytes: row.get("bytes")?,
        })
    }
}

#[tokio::test]
async fn values_are_read_as_they_were_written_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let null = Sample {
        id: Uuid::max(),
        yes: None,
        whole: None,
        part: None,
        text: None,
        bytes: None,
    };
    let least = Sample {
        id: Uuid::nil(),
        yes: Some(false),
        whole: Some(i64::MIN),
        part: Some(-1e-300),
        text: Some(String::new()),
        bytes: Some(Vec::new()),
    };
    let most = Sample {
        id: Uuid::from_u128(1),
        yes: Some(true),
        whole: Some(i64::MAX),
        part: Some(f64::MAX),
        text: Some("Zoë \"'\\ 🦀".to_owned()),
        bytes: Some((0..=255).collect()),
    };
    let mut tx = begin(&db, Isolation::Committed).await;
    for sample in [&null, &most, &least] {
        let insert = Query::new(
            "INSERT INTO samples (id, yes, whole, part, text, bytes) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(sample.id)
        .bind(sample.yes)
        .bind(sample.whole)
        .bind(sample.part)
        .bind(&sample.text)
        .bind(sample.bytes.clone());
        tx.execute(insert).await.unwrap().one().unwrap();
    }
    tx.commit().await.unwrap();
    db.close().await;
    let db = open(dir.path()).await;
    let all = Query::new("SELECT id, yes, whole, part, text, bytes FROM samples ORDER BY id");
    let all: Vec<Sample> = db.read("test.samples").all(all).await.unwrap();
    assert_eq!(all, [least, most, null]);
}

#[tokio::test]
async fn a_column_of_another_type_or_name_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).await;
    let mut tx = begin(&db, Isolation::Committed).await;
    put(&mut tx, 1, 1).await.unwrap();
    let wrong: Result<String, DbError> = tx.value(Query::new(VALUE).bind(1_i64), "value").await;
    assert!(matches!(wrong, Err(DbError::Failed(_))), "{wrong:?}");
    let absent: Result<i64, DbError> = tx.value(Query::new(VALUE).bind(1_i64), "valeu").await;
    assert!(matches!(absent, Err(DbError::Failed(_))), "{absent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_apply_each_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let opened = (0..6).map(|_| Db::open(place(dir.path(), "storage"), MIGRATIONS));
    for db in join_all(opened).await {
        db.unwrap().check().await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused_and_an_older_one_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path(), "storage");
    let old = Db::open(&place, &MIGRATIONS[..1]).await.unwrap();
    assert!(old.prepare("SELECT id FROM samples").await.is_err());
    let new = Db::open(&place, MIGRATIONS).await.unwrap();
    new.prepare("SELECT id FROM samples").await.unwrap();
    let newer = Db::open(&place, &MIGRATIONS[..1]).await.unwrap_err();
    assert_eq!(newer, SchemaError::Newer(2).into());
    let other = Migration::new(1, "counters", "CREATE TABLE counters (id BIGINT)");
    let edited = Db::open(&place, &[other, MIGRATIONS[1]]).await.unwrap_err();
    assert_eq!(edited, SchemaError::Modified(1).into());
}

/// What only a server does.
mod postgres {
    use super::*;
    use tars_certs::secret;
    use tars_runtime::{
        config::Database,
        db::{Place, Server},
    };
    use tars_test_db::{by_tls, on_postgres};

    fn at(settings: &Database) -> Place {
        Place::Server {
            server: Server::of(settings).unwrap().unwrap(),
            service: "storage".to_owned(),
        }
    }

    /// The server's processes for these connections.
    async fn backend(db: &mut impl Fetch) -> i64 {
        let query = Query::new("SELECT CAST(pg_backend_pid() AS BIGINT) AS pid");
        db.value(query, "pid").await.unwrap()
    }

    async fn end(db: &Db, backend: i64) {
        let end = "SELECT pg_terminate_backend(CAST($1 AS INTEGER)) AS ended";
        let end = Query::new(end).bind(backend);
        let ended: bool = db.read("test.end").value(end, "ended").await.unwrap();
        assert!(ended);
        let gone = "SELECT COUNT(*) AS n FROM pg_stat_activity WHERE pid = CAST($1 AS INTEGER)";
        let gone = async || {
            let left: i64 = db
                .read("test.gone")
                .value(Query::new(gone).bind(backend), "n")
                .await
                .unwrap();
            left == 0
        };
        let until_gone = async {
            while !gone().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), until_gone).await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_lost_connection_is_unavailable_in_a_transaction_and_replaced_outside_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let place = at(&on_postgres(dir.path()));
        let db = Db::open(&place, MIGRATIONS).await.unwrap();
        let other = Db::open(&place, MIGRATIONS).await.unwrap();
        let mut tx = begin(&db, Isolation::Exclusive).await;
        put(&mut tx, 1, 1).await.unwrap();
        let pid = backend(&mut tx).await;
        end(&other, pid).await;
        let lost = put(&mut tx, 2, 2).await.unwrap_err();
        assert!(matches!(lost, DbError::Unavailable(_)), "{lost:?}");
        drop(tx);
        // Another connection, also where the pool still had the old one.
        let mut tx = begin(&db, Isolation::Exclusive).await;
        put(&mut tx, 1, 3).await.unwrap();
        tx.commit().await.unwrap();
        let idle: BTreeSet<i64> = {
            let (mut a, mut b) = (db.read("test.a"), db.read("test.b"));
            let (a, b) = tokio::join!(backend(&mut a), backend(&mut b));
            [a, b].into()
        };
        for pid in idle {
            end(&other, pid).await;
        }
        for _ in 0..4 {
            assert_eq!(value(&mut db.read("test.read"), 1).await, 3);
        }
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_commit_whose_connection_is_lost_has_no_known_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let place = at(&on_postgres(dir.path()));
        let db = Db::open(&place, MIGRATIONS).await.unwrap();
        let other = Db::open(&place, MIGRATIONS).await.unwrap();
        let mut tx = begin(&db, Isolation::Committed).await;
        put(&mut tx, 1, 1).await.unwrap();
        let pid = backend(&mut tx).await;
        end(&other, pid).await;
        let lost = tx.commit().await.unwrap_err();
        assert!(matches!(lost, DbError::InDoubt(_)), "{lost:?}");
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn transactions_that_deadlock_end_with_a_conflict_for_one() {
        const ADD: &str = "UPDATE counters SET value = value + 1 WHERE id = $1";
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(at(&on_postgres(dir.path())), MIGRATIONS)
            .await
            .unwrap();
        let mut tx = begin(&db, Isolation::Committed).await;
        put(&mut tx, 1, 0).await.unwrap();
        put(&mut tx, 2, 0).await.unwrap();
        tx.commit().await.unwrap();
        let (mut a, mut b) = (
            begin(&db, Isolation::Committed).await,
            begin(&db, Isolation::Committed).await,
        );
        let add = |id: i64| Query::new(ADD).bind(id);
        a.execute(add(1)).await.unwrap().one().unwrap();
        b.execute(add(2)).await.unwrap().one().unwrap();
        let (a, b) = tokio::join!(a.execute(add(2)), b.execute(add(1)));
        let conflicts = [a, b].into_iter().filter_map(Result::err);
        let conflicts: Vec<DbError> = conflicts.collect();
        assert!(
            matches!(&conflicts[..], [DbError::Conflict(_)]),
            "{conflicts:?}"
        );
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn an_operator_who_decides_about_steps_is_told_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let migrating = on_postgres(dir.path());
        let looking = Database {
            migrate: false,
            ..migrating.clone()
        };
        let absent = Db::open(at(&looking), MIGRATIONS).await.unwrap_err();
        assert!(
            matches!(absent, DbError::Schema(SchemaError::Absent(_))),
            "{absent:?}"
        );
        Db::open(at(&migrating), &MIGRATIONS[..1]).await.unwrap();
        let older = Db::open(at(&looking), MIGRATIONS).await.unwrap_err();
        let (applied, needed) = (1, 2);
        assert_eq!(older, SchemaError::Older { applied, needed }.into());
        Db::open(at(&migrating), MIGRATIONS).await.unwrap();
        Db::open(at(&looking), MIGRATIONS).await.unwrap();
    }

    async fn refusal(settings: &Database) -> DbError {
        Db::open(at(settings), MIGRATIONS).await.unwrap_err()
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_server_is_verified_before_it_is_given_a_password() {
        let dir = tempfile::tempdir().unwrap();
        let good = by_tls(dir.path());
        let db = Db::open(at(&good), MIGRATIONS).await.unwrap();
        let tls = Query::new("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
        let tls: bool = db.read("test.tls").value(tls, "ssl").await.unwrap();
        assert!(tls);

        let other = dir.path().join("other.crt");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&other, made.cert.pem()).unwrap();
        let stranger = Database {
            root_certificate: Some(other),
            ..good.clone()
        };
        let refused = refusal(&stranger).await;
        assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
        // The certificate does not name the address.
        let url = good
            .url
            .clone()
            .unwrap()
            .replace("@localhost:", "@127.0.0.1:");
        let misnamed = Database {
            url: Some(url),
            ..good.clone()
        };
        let refused = refusal(&misnamed).await;
        assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
        let password = dir.path().join("wrong");
        secret::write(&password, b"guessed").unwrap();
        let guesser = Database {
            password_file: Some(password),
            ..good
        };
        let refused = refusal(&guesser).await;
        assert!(!refused.to_string().contains("guessed"), "{refused}");
    }

    /// A role of this test's own on the server, by TLS.
    async fn role(dir: &Path, db: &Db, password: &str) -> (String, Database) {
        let name = on_postgres(dir).schema_prefix;
        let text = format!("CREATE ROLE {name} SUPERUSER LOGIN PASSWORD '{password}'");
        run(db, text).await;
        let file = dir.join("role.password");
        secret::write(&file, password.as_bytes()).unwrap();
        let by_tls = by_tls(dir);
        let url = by_tls.url.clone().unwrap();
        let settings = Database {
            url: Some(url.replace("://remote@", &format!("://{name}@"))),
            password_file: Some(file),
            schema_owner: Some(user(&on_postgres(dir))),
            ..by_tls
        };
        (name, settings)
    }

    fn user(settings: &Database) -> String {
        settings.address().unwrap().unwrap().user
    }

    async fn run(db: &Db, text: String) {
        let mut tx = begin(db, Isolation::Committed).await;
        tx.execute(Query::new(text.leak())).await.unwrap().any();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_password_that_is_replaced_while_the_process_runs_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let operator = Db::open(at(&on_postgres(dir.path())), MIGRATIONS).await;
        let operator = operator.unwrap();
        let (name, settings) = role(dir.path(), &operator, "first").await;
        let db = Db::open(at(&settings), MIGRATIONS).await.unwrap();
        let pid = backend(&mut db.read("test.pid")).await;
        run(&operator, format!("ALTER ROLE {name} PASSWORD 'second'")).await;
        secret::write(&settings.password_file.unwrap(), b"second").unwrap();
        end(&operator, pid).await;
        assert_ne!(backend(&mut db.read("test.pid")).await, pid);
        drop(begin(&db, Isolation::Exclusive).await);
        db.close().await;
        run(&operator, format!("DROP ROLE {name}")).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn what_a_role_is_set_to_weakens_no_session() {
        let dir = tempfile::tempdir().unwrap();
        let operator = Db::open(at(&on_postgres(dir.path())), MIGRATIONS).await;
        let operator = operator.unwrap();
        let (name, settings) = role(dir.path(), &operator, "secret").await;
        for (setting, weak, expected) in [
            ("synchronous_commit", "off", "on"),
            (
                "default_transaction_isolation",
                "serializable",
                "read committed",
            ),
            ("default_transaction_read_only", "on", "off"),
        ] {
            run(
                &operator,
                format!("ALTER ROLE {name} SET {setting} = '{weak}'"),
            )
            .await;
            let db = Db::open(at(&settings), MIGRATIONS).await.unwrap();
            let mut tx = begin(&db, Isolation::Committed).await;
            let query = Query::new("SELECT current_setting($1) AS found").bind(setting);
            let found: String = tx.value(query, "found").await.unwrap();
            assert_eq!(found, expected, "{setting}");
            drop(tx);
            db.close().await;
        }
        run(&operator, format!("DROP ROLE {name}")).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_role_that_may_create_nothing_checks_the_schema() {
        let dir = tempfile::tempdir().unwrap();
        let operator = Db::open(at(&on_postgres(dir.path())), &MIGRATIONS[..1]).await;
        let operator = operator.unwrap();
        let (name, settings) = role(dir.path(), &operator, "secret").await;
        let looking = Database {
            migrate: false,
            ..settings
        };
        let schema = format!("{}_storage", looking.schema_prefix);
        for text in [
            format!("ALTER ROLE {name} NOSUPERUSER"),
            format!("GRANT USAGE ON SCHEMA {schema} TO {name}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {name}"),
        ] {
            run(&operator, text).await;
        }
        let older = refusal(&looking).await;
        let (applied, needed) = (1, 2);
        assert_eq!(older, SchemaError::Older { applied, needed }.into());
        Db::open(at(&on_postgres(dir.path())), MIGRATIONS)
            .await
            .unwrap();
        let db = Db::open(at(&looking), MIGRATIONS).await.unwrap();
        assert_eq!(
            db.read("test.count")
                .value::<i64>(Query::new(COUNT), "n")
                .await,
            Ok(0)
        );
        let mut tx = begin(&db, Isolation::Committed).await;
        assert!(put(&mut tx, 1, 1).await.is_err(), "the role may only read");
        drop(tx);
        db.close().await;
        run(&operator, format!("DROP OWNED BY {name}")).await;
        run(&operator, format!("DROP ROLE {name}")).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_schema_of_another_role_is_refused_unless_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let operator = Db::open(at(&on_postgres(dir.path())), MIGRATIONS).await;
        let operator = operator.unwrap();
        let (name, named) = role(dir.path(), &operator, "secret").await;
        let owner = user(&on_postgres(dir.path()));
        for (schema_owner, expected) in [(None, &name), (Some("nobody"), &"nobody".to_owned())] {
            for migrate in [true, false] {
                let settings = Database {
                    schema_owner: schema_owner.map(str::to_owned),
                    migrate,
                    ..named.clone()
                };
                let refused = SchemaError::Owner {
                    schema: format!("{}_storage", settings.schema_prefix),
                    owner: owner.clone(),
                    expected: expected.clone(),
                };
                assert_eq!(refusal(&settings).await, refused.into());
            }
        }
        Db::open(at(&named), MIGRATIONS)
            .await
            .unwrap()
            .close()
            .await;
        run(&operator, format!("DROP ROLE {name}")).await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_transaction_of_a_process_that_froze_gives_way_to_those_that_wait() {
        let dir = tempfile::tempdir().unwrap();
        let place = at(&on_postgres(dir.path()));
        let db = Db::open(&place, MIGRATIONS).await.unwrap();
        let mut frozen = begin(&db, Isolation::Exclusive).await;
        put(&mut frozen, 1, 1).await.unwrap();
        let other = Db::open(&place, MIGRATIONS).await.unwrap();
        let mut next = begin(&other, Isolation::Exclusive).await;
        put(&mut next, 1, 2).await.unwrap();
        next.commit().await.unwrap();
        let lost = put(&mut frozen, 2, 2).await.unwrap_err();
        assert!(matches!(lost, DbError::Unavailable(_)), "{lost:?}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Database {
            url: Some(format!(
                "postgresql://tars@localhost/none?host={}",
                dir.path().display()
            )),
            ..Database::default()
        };
        let refused = Db::open(at(&settings), MIGRATIONS).await.unwrap_err();
        assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
    }
}
