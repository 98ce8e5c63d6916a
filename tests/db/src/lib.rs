//! The database that a test runs on.
//!
//! Tests of services say which folder they work in, not which engine. They run on SQLite files in the
//! folder, and with `TARS_TEST_ENGINE=postgres` in the environment on the server that
//! `TARS_TEST_POSTGRES` names by a URL as in `database.url`, each folder in schemas of its own. So every
//! test of a store is a test of every engine, and what is opened again on the same folder finds its rows.
//! What only PostgreSQL does is tested on that server in both cases, and ignored where there is none.

#![deny(missing_docs)]

use sha2::{Digest, Sha256};
use std::path::Path;
use tars_certs::secret;
use tars_runtime::{
    config::Database,
    db::{Db, Fetch, Isolation, Place, Query, Write},
};

/// The environment variable that names the server.
pub const URL: &str = "TARS_TEST_POSTGRES";
/// The environment variable that says `postgres` where tests run on the server.
pub const ENGINE: &str = "TARS_TEST_ENGINE";

/// The database of a service, for a test that works in a folder.
///
/// # Panics
///
/// If the URL in the environment is refused.
pub fn place(dir: &Path, service: &str) -> Place {
    let file = dir.join(format!("{service}.db"));
    Place::of(&settings(dir), service, file).expect("a URL that is not refused")
}

/// The settings of a process whose data directory a folder is.
pub fn settings(dir: &Path) -> Database {
    Database {
        url: is_postgres().then(url),
        plaintext_loopback: true,
        schema_prefix: prefix(dir),
        readers: 2,
        writers: 2,
        ..Database::default()
    }
}

/// The settings of a process on the server, whichever engine other tests run on.
///
/// # Panics
///
/// Without a server: such a test is ignored unless one is given.
pub fn on_postgres(dir: &Path) -> Database {
    Database {
        url: Some(url()),
        ..settings(dir)
    }
}

fn url() -> String {
    given(URL)
}

fn given(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set"))
}

/// The same by TCP, with verified TLS and a password.
///
/// # Panics
///
/// As [`on_postgres`], and where the password's file cannot be written to the folder.
pub fn by_tls(dir: &Path) -> Database {
    let password = dir.join("password");
    let text = given("TARS_TEST_POSTGRES_PASSWORD") + "\n";
    secret::write(&password, text.as_bytes()).expect("the folder can be written");
    Database {
        url: Some(given("TARS_TEST_POSTGRES_TLS")),
        root_certificate: Some(given("TARS_TEST_POSTGRES_ROOT").into()),
        password_file: Some(password),
        ..on_postgres(dir)
    }
}

/// The same for the same folder, and another for every other.
fn prefix(dir: &Path) -> String {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let hex = digest.iter().take(12).map(|b| format!("{b:02x}"));
    format!("t{}", hex.collect::<String>())
}

/// The database of a service of the mesh whose data directory a folder is.
///
/// # Panics
///
/// As [`place`].
pub fn of_mesh(dir: &Path, service: &str) -> Place {
    match place(dir, service) {
        Place::File(_) => place(&dir.join(service), service),
        server => server,
    }
}

/// What a process that works in a folder needs in its environment.
pub fn variables(dir: &Path) -> Vec<(&'static str, String)> {
    match is_postgres() {
        true => postgres_variables(dir),
        false => Vec::new(),
    }
}

/// What a process on the server needs in its environment, whichever engine other tests run on.
///
/// # Panics
///
/// As [`on_postgres`].
pub fn postgres_variables(dir: &Path) -> Vec<(&'static str, String)> {
    let (url, settings) = (url(), settings(dir));
    vec![
        ("TARS__DATABASE__URL", url),
        ("TARS__DATABASE__PLAINTEXT_LOOPBACK", "true".to_owned()),
        ("TARS__DATABASE__SCHEMA_PREFIX", settings.schema_prefix),
    ]
}

/// Statements after which no row of a table can be changed, as on a full disk.
pub fn refuse_updates(table: &str) -> Vec<&'static str> {
    let texts = match is_postgres() {
        true => vec![
            "CREATE FUNCTION refuse_update() RETURNS trigger LANGUAGE plpgsql \
             AS 'BEGIN RAISE EXCEPTION ''the disk is full''; END'"
                .to_owned(),
            format!(
                "CREATE TRIGGER refuse_updates BEFORE UPDATE ON {table} \
                 FOR EACH ROW EXECUTE FUNCTION refuse_update()"
            ),
        ],
        false => vec![format!(
            "CREATE TRIGGER refuse_updates BEFORE UPDATE ON {table} \
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )],
    };
    texts.into_iter().map(leaked).collect()
}

/// Statements that take [`refuse_updates`] back.
pub fn accept_updates(table: &str) -> Vec<&'static str> {
    let texts = match is_postgres() {
        true => vec![
            format!("DROP TRIGGER refuse_updates ON {table}"),
            "DROP FUNCTION refuse_update()".to_owned(),
        ],
        false => vec!["DROP TRIGGER refuse_updates".to_owned()],
    };
    texts.into_iter().map(leaked).collect()
}

/// Whether tests run on the server.
pub fn is_postgres() -> bool {
    std::env::var(ENGINE).is_ok_and(|engine| engine == "postgres")
}

/// A statement of a test lives as long as the test's process.
fn leaked(text: String) -> &'static str {
    text.leak()
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock(tokio::task::JoinHandle<()>);

impl Lock {
    /// Keeps what a transaction has locked.
    pub fn of(mut tx: Write) -> Self {
        Self(tokio::spawn(async move { keep_open(&mut tx).await }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server ends a transaction that stands still for longer.
const PULSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Keeps a transaction open.
pub async fn keep_open(tx: &mut Write) {
    while tx.rows(Query::new("SELECT 1 AS one")).await.is_ok() {
        tokio::time::sleep(PULSE).await;
    }
}

/// Keeps a service of a mesh from writing, until what is returned is dropped.
///
/// # Panics
///
/// If the database is not there, or is busy for longer than a writer waits.
pub async fn lock(dir: &Path, service: &str) -> Lock {
    let db = Db::attach(of_mesh(dir, service)).await;
    let db = db.expect("the database is there");
    let lock = db.write("test.lock", Isolation::Exclusive).await;
    Lock::of(lock.expect("the database is not busy"))
}
