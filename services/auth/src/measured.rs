//! The service's own storage without the service around it, for the benchmark that compares it with bare
//! sqlx.

use crate::{
    AuthError, MIGRATIONS,
    audit::{self, Filter},
    store::{self, Store},
};
use tars_runtime::{
    audit::Record,
    db::{Db, Place},
};

/// The audit log and the API keys of a database.
#[derive(Debug, Clone)]
pub struct Measured(Store);

impl Measured {
    /// Opens a database, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// When the database is not usable.
    pub async fn open(database: &Place) -> Result<Self, AuthError> {
        Ok(Self(Store::new(Db::open(database, MIGRATIONS).await?)))
    }

    /// Appends records to the audit log, in one durable transaction.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn append(&self, records: &[Record]) -> Result<(), AuthError> {
        audit::append_all(&self.0, records).await
    }

    /// Reads an API key; whether there is one of that id.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn has_key(&self, id: &str) -> Result<bool, AuthError> {
        let key = store::key_in(&mut self.0.read("api_keys.get"), id).await?;
        Ok(key.is_some())
    }

    /// Writes the next version of an API key, in an exclusive transaction as all changes of what is valid.
    ///
    /// # Errors
    ///
    /// When the database fails, there is no such key, or it was changed at the same time.
    pub async fn change_key(&self, id: &str) -> Result<(), AuthError> {
        let mut tx = self.0.begin("api_keys.change").await?;
        let found = store::key_in(&mut tx, id).await?;
        let mut key = found.ok_or_else(|| AuthError::NotFound("API key", id.to_owned()))?;
        key.version += 1;
        store::update_key(&mut tx, &key).await?;
        Ok(tx.commit().await?)
    }

    /// Lists the newest records of the audit log; how many there are on the page.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn first_page(&self, size: u32) -> Result<usize, AuthError> {
        let (records, _) = audit::list(&self.0, &Filter::default(), "", size).await?;
        Ok(records.len())
    }
}
