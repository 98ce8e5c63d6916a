//! Blobs in the database of their service, in chunks.

use super::{BATCH, BlobError, CHUNK, digest};
use crate::db::{Corrupt, Db, DbError, Fetch, FromRow, Query, Row, Transaction};
use std::collections::BTreeSet;

const LENGTH: &str = "SELECT length FROM blobs WHERE name = $1";
const PARTS: &str = "SELECT chunk FROM blob_parts WHERE blob = $1 ORDER BY position";
const CHUNK_CONTENT: &str = "SELECT content FROM blob_chunks WHERE name = $1";
const COUNT_CHUNK: &str = "SELECT COUNT(*) AS found FROM blob_chunks WHERE name = $1";
const NAMES: &str = "SELECT name FROM blobs ORDER BY name";
const INSERT: &str = "INSERT INTO blobs (name, length) VALUES ($1, $2)";
const INSERT_PART: &str = "INSERT INTO blob_parts (blob, position, chunk) VALUES ($1, $2, $3)";
const INSERT_CHUNK: &str = "INSERT INTO blob_chunks (name, content) VALUES ($1, $2)";
const DELETE_PARTS: &str = "DELETE FROM blob_parts WHERE blob = $1";
const DELETE: &str = "DELETE FROM blobs WHERE name = $1";
const DELETE_CHUNKS: &str = "DELETE FROM blob_chunks WHERE NOT EXISTS \
                             (SELECT 1 FROM blob_parts WHERE blob_parts.chunk = blob_chunks.name)";

#[derive(Debug, Clone)]
pub(super) struct Chunks {
    db: Db,
}

struct Name(String);

impl FromRow for Name {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        row.get("name").map(Self)
    }
}

struct Part(String);

impl FromRow for Part {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        row.get("chunk").map(Self)
    }
}

/// A content with the digests of it and of its chunks.
struct Split {
    name: String,
    content: Vec<u8>,
    chunks: Vec<String>,
}

impl Split {
    /// Digests megabytes, away from the threads that serve.
    async fn of(content: Vec<u8>) -> Result<Self, DbError> {
        let split = tokio::task::spawn_blocking(move || Self {
            name: digest(&content),
            chunks: content.chunks(CHUNK).map(digest).collect(),
            content,
        });
        split.await.map_err(|e| DbError::Failed(e.to_string()))
    }

    fn chunks(&self) -> impl Iterator<Item = (&String, &[u8])> {
        self.chunks.iter().zip(self.content.chunks(CHUNK))
    }
}

impl Chunks {
    pub(super) fn new(db: Db) -> Self {
        Self { db }
    }

    pub(super) async fn get(&self, name: &str) -> Result<Vec<u8>, BlobError> {
        get(&mut self.db.snapshot("blobs.get").await?, name).await
    }

    pub(super) async fn collect(
        &self,
        tx: &mut Transaction,
        referenced: &BTreeSet<String>,
    ) -> Result<usize, BlobError> {
        let names = names(tx).await?;
        let orphans = names.iter().filter(|name| !referenced.contains(*name));
        let mut removed = 0;
        for name in orphans.take(BATCH) {
            let parts = Query::new(DELETE_PARTS).bind(name);
            tx.execute(parts).await?.any();
            tx.execute(Query::new(DELETE).bind(name)).await?.one()?;
            removed += 1;
        }
        if removed > 0 {
            tx.execute(Query::new(DELETE_CHUNKS)).await?.any();
        }
        Ok(removed)
    }
}

/// The names of all blobs, sorted.
pub(super) async fn names(db: &mut impl Fetch) -> Result<Vec<String>, DbError> {
    let names: Vec<Name> = db.all(Query::new(NAMES)).await?;
    Ok(names.into_iter().map(|Name(name)| name).collect())
}

pub(super) async fn put(tx: &mut Transaction, content: Vec<u8>) -> Result<String, BlobError> {
    let split = Split::of(content).await?;
    let stored: Option<i64> = tx
        .optional_value(Query::new(LENGTH).bind(&split.name), "length")
        .await?;
    if stored.is_none() {
        insert(tx, &split).await?;
    }
    Ok(split.name)
}

pub(super) async fn get(db: &mut impl Fetch, name: &str) -> Result<Vec<u8>, BlobError> {
    let length = Query::new(LENGTH).bind(name);
    let length: Option<i64> = db.optional_value(length, "length").await?;
    let length = length.ok_or_else(|| BlobError::Absent(name.to_owned()))?;
    let parts: Vec<Part> = db.all(Query::new(PARTS).bind(name)).await?;
    let mut content = Vec::new();
    for Part(chunk) in &parts {
        let query = Query::new(CHUNK_CONTENT).bind(chunk);
        let found: Option<Vec<u8>> = db.optional_value(query, "content").await?;
        content.extend(verified(name, chunk, found)?);
    }
    if i64::try_from(content.len()) != Ok(length) || digest(&content) != name {
        return Err(BlobError::Damaged(name.to_owned()));
    }
    Ok(content)
}

pub(super) fn verified(
    blob: &str,
    chunk: &str,
    found: Option<Vec<u8>>,
) -> Result<Vec<u8>, BlobError> {
    let (blob, chunk) = (blob.to_owned(), chunk.to_owned());
    match found {
        Some(content) if digest(&content) == chunk => Ok(content),
        Some(_) => Err(BlobError::DamagedChunk { blob, chunk }),
        None => Err(BlobError::MissingChunk { blob, chunk }),
    }
}

async fn insert(tx: &mut Transaction, split: &Split) -> Result<(), BlobError> {
    let length = i64::try_from(split.content.len())
        .map_err(|e| Corrupt::new("blobs", &split.name, e))
        .map_err(DbError::from)?;
    let blob = Query::new(INSERT).bind(&split.name).bind(length);
    tx.execute(blob).await?.one()?;
    for (position, (chunk, content)) in (0_i64..).zip(split.chunks()) {
        insert_chunk(tx, chunk, content).await?;
        let part = Query::new(INSERT_PART)
            .bind(&split.name)
            .bind(position)
            .bind(chunk);
        tx.execute(part).await?.one()?;
    }
    Ok(())
}

/// Sends a chunk only where it is not stored yet.
async fn insert_chunk(tx: &mut Transaction, name: &str, content: &[u8]) -> Result<(), DbError> {
    let count = Query::new(COUNT_CHUNK).bind(name);
    let found: i64 = tx.value(count, "found").await?;
    if found > 0 {
        return Ok(());
    }
    let chunk = Query::new(INSERT_CHUNK).bind(name).bind(content);
    tx.execute(chunk).await?.one()
}
