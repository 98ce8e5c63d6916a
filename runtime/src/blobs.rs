//! Contents named by their SHA-256: checkpoints, and whatever else is too large for a row.
//!
//! A blob lives in a folder, or in the database of its service where replicas share it. There it is a
//! list of chunks, which are named by their own digests, so that a content which differs little from
//! a stored one adds little. Every read verifies every digest.
//!
//! A blob is written within the transaction that refers to it, and collected within one that knows all
//! references. Both are exclusive: no collection meets a half-written blob, and none that is about to be
//! referred to.

mod chunks;
mod folder;

use crate::db::{Db, DbError, Fetch, Transaction};
use chunks::Chunks;
use folder::Folder;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, io, path::PathBuf};

/// The tables of blobs, a step in the schema of each service that stores some.
pub const MIGRATION: &str = include_str!("../migrations/blobs.sql");

/// The size of a chunk in bytes; the last one of a blob may be shorter.
const CHUNK: usize = 1 << 20;
/// The largest content in bytes. It is written within one transaction, for which other writers wait.
pub const LARGEST: usize = 64 << 20;
/// How many blobs one collection removes, so that other writers are not kept waiting.
const BATCH: usize = 256;

/// A store of blobs. Clones share it.
#[derive(Debug, Clone)]
pub struct Blobs(Home);

#[derive(Debug, Clone)]
enum Home {
    Folder(Folder),
    Database(Chunks),
}

/// Why a blob cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no blob of that name.
    #[error("there is no blob {0}")]
    Absent(String),
    /// The content does not match the name.
    #[error("blob {0} is damaged: its content has another digest")]
    Damaged(String),
    /// The content of a chunk does not match the chunk's name.
    #[error("blob {blob} is damaged: its chunk {chunk} has another digest")]
    DamagedChunk {
        /// The blob's name.
        blob: String,
        /// The chunk's name.
        chunk: String,
    },
    /// A chunk is not there.
    #[error("blob {blob} is damaged: its chunk {chunk} is missing")]
    MissingChunk {
        /// The blob's name.
        blob: String,
        /// The chunk's name.
        chunk: String,
    },
    /// The content is larger than a transaction should hold.
    #[error("a content of {0} bytes is too large: a blob has at most {LARGEST}")]
    TooLarge(usize),
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system reports.
        source: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl Blobs {
    /// The blobs in a folder, which is made if it does not exist. One process may use it at a time.
    ///
    /// # Errors
    ///
    /// [`BlobError::Io`] where the folder cannot be made.
    pub fn in_folder(dir: PathBuf) -> Result<Self, BlobError> {
        Folder::open(dir).map(|folder| Self(Home::Folder(folder)))
    }

    /// The blobs in a database whose schema has the step [`MIGRATION`].
    pub fn in_database(db: Db) -> Self {
        Self(Home::Database(Chunks::new(db)))
    }

    /// The names of all blobs of a database whose schema has the step [`MIGRATION`], sorted.
    ///
    /// # Errors
    ///
    /// [`DbError`] where the database cannot be read.
    pub async fn names_in(db: &mut impl Fetch) -> Result<Vec<String>, DbError> {
        chunks::names(db).await
    }

    /// Reads a content of a database, within a transaction of the caller's.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn get_in(db: &mut impl Fetch, name: &str) -> Result<Vec<u8>, BlobError> {
        chunks::get(db, name).await
    }

    /// Stores a content in the database of a transaction, and returns its name.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn put_in(tx: &mut Transaction, content: Vec<u8>) -> Result<String, BlobError> {
        if content.len() > LARGEST {
            return Err(BlobError::TooLarge(content.len()));
        }
        chunks::put(tx, content).await
    }

    /// Stores a content and returns its name. It is there for others once the transaction, which must
    /// be exclusive, is committed together with a reference to it.
    ///
    /// # Errors
    ///
    /// [`BlobError::TooLarge`], [`BlobError::Io`] or [`BlobError::Db`]; the transaction is then to be
    /// dropped.
    pub async fn put(&self, tx: &mut Transaction, content: Vec<u8>) -> Result<String, BlobError> {
        match &self.0 {
            Home::Folder(_) if content.len() > LARGEST => Err(BlobError::TooLarge(content.len())),
            Home::Folder(folder) => folder.put(content).await,
            Home::Database(_) => Self::put_in(tx, content).await,
        }
    }

    /// Reads a content back.
    ///
    /// # Errors
    ///
    /// [`BlobError::Absent`] where there is none, [`BlobError::Damaged`], [`BlobError::DamagedChunk`] or
    /// [`BlobError::MissingChunk`] where it is not what was stored.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>, BlobError> {
        match &self.0 {
            Home::Folder(folder) => folder.get(name).await,
            Home::Database(chunks) => chunks.get(name).await,
        }
    }

    /// Removes blobs that are not `referenced`, up to a bounded number, and returns how many. The
    /// transaction must be exclusive, and have read the references itself.
    ///
    /// # Errors
    ///
    /// [`BlobError::Io`] or [`BlobError::Db`]; the transaction is then to be dropped.
    pub async fn collect(
        &self,
        tx: &mut Transaction,
        referenced: BTreeSet<String>,
    ) -> Result<usize, BlobError> {
        match &self.0 {
            Home::Folder(folder) => folder.collect(referenced).await,
            Home::Database(chunks) => chunks.collect(tx, &referenced).await,
        }
    }
}

fn digest(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether a text is what [`digest`] makes. Names come from rows, and become paths.
fn is_name(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 64 && text.bytes().all(hex)
}

#[cfg(test)]
mod tests;
