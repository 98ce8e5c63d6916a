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
