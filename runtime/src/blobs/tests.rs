use super::*;
use crate::{
    config,
    db::{Fetch, Isolation, Migration, Place, Query, Server, Write},
};
use std::path::Path;
use tempfile::TempDir;

const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "blobs", MIGRATION),
    Migration::new(
        2,
        "references",
        "CREATE TABLE reference (blob TEXT PRIMARY KEY)",
    ),
];

/// A store with the database whose transactions it takes part in.
struct Rig {
    name: &'static str,
    blobs: Blobs,
    db: Db,
    dir: TempDir,
}

/// PostgreSQL's place where its test server is running.
fn server(dir: &Path) -> Option<Place> {
    let prefix = digest(dir.as_os_str().as_encoded_bytes());
    let settings = config::Database {
        url: Some(std::env::var("TARS_TEST_POSTGRES").ok()?),
        plaintext_loopback: true,
        schema_prefix: format!("t{}", &prefix[..24]),
        ..config::Database::default()
    };
    let server = Server::of(&settings).unwrap().unwrap();
    let service = "blobs".to_owned();
    Some(Place::Server { server, service })
}

async fn rigs() -> Vec<Rig> {
    let mut rigs = vec![in_folder().await, in_database("sqlite").await];
    if std::env::var_os("TARS_TEST_POSTGRES").is_some() {
        rigs.push(in_database("postgres").await);
    }
    rigs
}

async fn in_folder() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("x.db"), MIGRATIONS)
        .await
        .unwrap();
    let blobs = Blobs::in_folder(dir.path().join("blobs")).unwrap();
    let name = "folder";
    Rig {
        name,
        blobs,
        db,
        dir,
    }
}

async fn in_database(name: &'static str) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let place = match name {
        "postgres" => server(dir.path()).unwrap(),
        _ => Place::File(dir.path().join("x.db")),
    };
    let db = Db::open(place, MIGRATIONS).await.unwrap();
    let blobs = Blobs::in_database(db.clone());
    Rig {
        name,
        blobs,
        db,
        dir,
    }
}

impl Rig {
    async fn begin(&self) -> Write {
        let begun = self.db.write("test.write", Isolation::Exclusive).await;
        begun.unwrap()
    }

    /// Stores a content with a reference to it.
    async fn store(&self, content: &[u8]) -> String {
        let mut tx = self.begin().await;
        let name = self.blobs.put(&mut tx, content.to_vec()).await.unwrap();
        const REFER: &str =
            "INSERT INTO reference (blob) VALUES ($1) ON CONFLICT (blob) DO NOTHING";
        let refer = Query::new(REFER).bind(&name);
        tx.execute(refer).await.unwrap().any();
        tx.commit().await.unwrap();
        name
    }

    async fn run(&self, text: &'static str) {
        let mut tx = self.begin().await;
        tx.execute(Query::new(text)).await.unwrap().any();
        tx.commit().await.unwrap();
    }

    async fn count(&self, text: &'static str) -> i64 {
        let mut db = self.db.read("test.count");
        db.value(Query::new(text), "found").await.unwrap()
    }

    async fn collect(&self) -> usize {
        let mut tx = self.begin().await;
        let rows = tx.rows(Query::new("SELECT blob FROM reference")).await;
        let rows = rows.unwrap();
        let referenced = rows.iter().map(|row| row.get("blob").unwrap()).collect();
        let removed = self.blobs.collect(&mut tx, referenced).await.unwrap();
        tx.commit().await.unwrap();
        removed
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("blobs").join(name)
    }
}

/// A content of several chunks that all differ.
fn large(chunks: u8, last: usize) -> Vec<u8> {
    let whole = (0..chunks).flat_map(|n| vec![n; CHUNK]);
    whole.chain(vec![255; last]).collect()
}

const CHUNKS: &str = "SELECT COUNT(*) AS found FROM blob_chunks";
const BLOBS: &str = "SELECT COUNT(*) AS found FROM blobs";

#[tokio::test]
async fn every_content_is_read_back_as_it_was_stored() {
    for rig in rigs().await {
        for content in [
            Vec::new(),
            b"weights".to_vec(),
            large(1, 0),
            large(2, 1),
            large(3, CHUNK - 1),
        ] {
            let name = rig.store(&content).await;
            assert_eq!(name, digest(&content));
            let read = rig.blobs.get(&name).await.unwrap();
            assert!(read == content, "{}: {} bytes", rig.name, content.len());
        }
    }
}

#[tokio::test]
async fn a_content_that_is_stored_twice_is_there_once_and_chunks_are_shared() {
    for rig in rigs().await.into_iter().skip(1) {
        rig.store(&large(3, 10)).await;
        rig.store(&large(3, 10)).await;
        assert_eq!((rig.count(BLOBS).await, rig.count(CHUNKS).await), (1, 4));
        // Differs in its last chunk.
        rig.store(&large(3, 11)).await;
        assert_eq!((rig.count(BLOBS).await, rig.count(CHUNKS).await), (2, 5));
        // One chunk, twice.
        rig.store(&vec![9; 2 * CHUNK]).await;
        assert_eq!((rig.count(BLOBS).await, rig.count(CHUNKS).await), (3, 6));
    }
    let rig = in_folder().await;
    let name = rig.store(b"weights").await;
    assert_eq!(rig.store(b"weights").await, name);
    assert_eq!(std::fs::read_dir(rig.file("")).unwrap().count(), 1);
}

#[tokio::test]
async fn names_that_no_content_has_are_absent() {
    for rig in rigs().await {
        let other = digest(b"another");
        for name in [other.as_str(), "", "..", "../x.db", "/etc/passwd"] {
            let absent = rig.blobs.get(name).await.unwrap_err();
            assert!(matches!(absent, BlobError::Absent(_)), "{name}: {absent}");
        }
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_replaced_by_the_next_write() {
    let rig = in_folder().await;
    let name = rig.store(b"weights").await;
    for damage in [&b"weightz"[..], b"", b"weights and more"] {
        std::fs::write(rig.file(&name), damage).unwrap();
        let damaged = rig.blobs.get(&name).await.unwrap_err();
        assert!(matches!(&damaged, BlobError::Damaged(n) if *n == name));
        assert!(damaged.to_string().contains(&name), "{damaged}");
        rig.store(b"weights").await;
        assert_eq!(rig.blobs.get(&name).await.unwrap(), b"weights");
    }
}

#[tokio::test]
async fn a_damaged_or_missing_chunk_is_named() {
    const DAMAGE: &str = "UPDATE blob_chunks SET content = (SELECT content FROM blob_chunks WHERE name = \
                          (SELECT chunk FROM blob_parts WHERE position = 0)) \
                          WHERE name = (SELECT chunk FROM blob_parts WHERE position = 1)";
    const SHORTEN: &str = "DELETE FROM blob_parts WHERE position = 1";
    for rig in rigs().await.into_iter().skip(1) {
        let name = rig.store(&large(2, 5)).await;
        let second = digest(&vec![1; CHUNK]);
        rig.run(DAMAGE).await;
        let damaged = rig.blobs.get(&name).await.unwrap_err();
        assert!(
            matches!(&damaged, BlobError::DamagedChunk { blob, chunk } if *blob == name && *chunk == second),
            "{damaged}"
        );
        rig.run(SHORTEN).await;
        let shorter = rig.blobs.get(&name).await.unwrap_err();
        assert!(matches!(shorter, BlobError::Damaged(_)), "{shorter}");
    }
    // Where the engine lets a row go that another refers to.
    let missing = chunks::verified("blob", "chunk", None).unwrap_err();
    assert!(matches!(missing, BlobError::MissingChunk { .. }));
}

#[tokio::test]
async fn a_content_that_no_transaction_should_hold_is_refused() {
    let rig = in_database("sqlite").await;
    let mut tx = rig.begin().await;
    let refused = rig.blobs.put(&mut tx, vec![0; LARGEST + 1]).await;
    assert!(matches!(refused, Err(BlobError::TooLarge(_))));
}

#[tokio::test]
async fn a_write_that_is_dropped_anywhere_leaves_nothing() {
    for rig in rigs().await.into_iter().skip(1) {
        let content = large(1, 3);
        for polls in 0..12 {
            let mut tx = rig.begin().await;
            let mut put = Box::pin(rig.blobs.put(&mut tx, content.clone()));
            for _ in 0..polls {
                if futures_util::poll!(&mut put).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(put);
            drop(tx);
        }
        let absent = rig.blobs.get(&digest(&content)).await.unwrap_err();
        assert!(matches!(absent, BlobError::Absent(_)), "{absent}");
        assert_eq!((rig.count(BLOBS).await, rig.count(CHUNKS).await), (0, 0));
        rig.store(&content).await;
        assert_eq!(
            rig.blobs.get(&digest(&content)).await.unwrap().len(),
            content.len()
        );
    }
}

#[tokio::test]
async fn a_collection_removes_what_nothing_refers_to() {
    for rig in rigs().await {
        let kept = rig.store(&large(1, 1)).await;
        let dropped = rig.store(&large(1, 2)).await;
        assert_eq!(rig.collect().await, 0);
        let mut tx = rig.begin().await;
        let forget = Query::new("DELETE FROM reference WHERE blob = $1").bind(&dropped);
        tx.execute(forget).await.unwrap().one().unwrap();
        tx.commit().await.unwrap();
        assert_eq!(rig.collect().await, 1);
        assert!(matches!(
            rig.blobs.get(&dropped).await,
            Err(BlobError::Absent(_))
        ));
        assert_eq!(rig.blobs.get(&kept).await.unwrap().len(), CHUNK + 1);
        if rig.name != "folder" {
            // The chunk that both had stays.
            assert_eq!(rig.count(CHUNKS).await, 2);
        }
    }
}

#[tokio::test]
async fn a_collection_removes_what_an_interrupted_write_left_and_no_other_file() {
    let rig = in_folder().await;
    for name in [".abc.1.tmp", "README"] {
        std::fs::write(rig.file(name), b"x").unwrap();
    }
    assert_eq!(rig.collect().await, 1);
    assert!(rig.file("README").exists());
    assert!(!rig.file(".abc.1.tmp").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_races_with_a_write_never_takes_what_is_referred_to() {
    for rig in rigs().await {
        let content = b"weights".to_vec();
        let name = digest(&content);
        for _ in 0..20 {
            let write = rig.store(&content);
            let (_, removed) = tokio::join!(write, rig.collect());
            assert!(removed <= 1);
            let read = rig.blobs.get(&name).await;
            assert!(read.is_ok(), "{}: {read:?}", rig.name);
            // An orphan for the next collection to meet.
            rig.run("DELETE FROM reference").await;
        }
    }
}
