//! Audit records: written as outbox rows in the transaction of the change that they describe, by the
//! service where it happened, and delivered from there to Auth's audit list.

pub mod refusals;

use crate::{
    clock::Clock,
    db::{self, DbError, Fetch, FromRow, Query, Row, Transaction},
    trace,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The tables of the outbox; part of the first migration of every service.
pub const MIGRATION: &str = "
CREATE TABLE audit_outbox (
    position BIGINT PRIMARY KEY,
    record TEXT NOT NULL
);
CREATE TABLE audit_position (id BIGINT PRIMARY KEY, last BIGINT NOT NULL);
INSERT INTO audit_position (id, last) VALUES (1, 0);
";

/// How grave an event is, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// An ordinary event.
    Info,
    /// Something that an operator may want to look at, such as a denial.
    Warning,
    /// A failure.
    Error,
    /// A successful call of a method with the audit level CRITICAL.
    Critical,
}

impl Severity {
    const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::Error, Self::Critical];

    /// Parses the name in records and filters.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// Returns the name in records and filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// One entry of the audit trail. Empty texts mean that there was none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The id by which a repeated delivery is recognised.
    pub event_id: Uuid,
    /// When it happened, in microseconds since the Unix epoch.
    pub at_us: i64,
    /// What happened, such as `api_key.created`; `call` for a call that is audited by its rule alone.
    pub event_type: String,
    /// How grave it is.
    pub severity: Severity,
    /// The service that recorded it.
    pub service: String,
    /// The SPIFFE id of the peer, or its address where it proved none.
    #[serde(default)]
    pub peer: String,
    /// The label of the person or key that called.
    #[serde(default)]
    pub caller: String,
    /// The full path of the method.
    #[serde(default)]
    pub method: String,
    /// What was acted on.
    #[serde(default)]
    pub resource: String,
    /// `OK`, or the name of the gRPC code.
    pub result: String,
    /// The trace of the call, in hexadecimal.
    #[serde(default)]
    pub trace_id: String,
    /// Further facts by name.
    #[serde(default)]
    pub details: BTreeMap<String, String>,
}

impl Record {
    /// Creates a record of something that happens now, in the trace of the running task.
    pub fn new(clock: &Clock, service: &str, event_type: &str) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            at_us: clock.now_us(),
            event_type: event_type.to_owned(),
            severity: Severity::Info,
            service: service.to_owned(),
            peer: String::new(),
            caller: String::new(),
            method: String::new(),
            resource: String::new(),
            result: "OK".to_owned(),
            trace_id: trace::current()
                .map(|c| c.trace_id_hex())
                .unwrap_or_default(),
            details: BTreeMap::new(),
        }
    }

    /// Sets the severity; it is [`Severity::Info`] otherwise.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Sets the label of the caller.
    #[must_use]
    pub fn caller(mut self, caller: impl Into<String>) -> Self {
        self.caller = caller.into();
        self
    }

    /// Sets the method.
    #[must_use]
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = method.into();
        self
    }

    /// Sets what was acted on.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = resource.into();
        self
    }

    /// Sets the result; it is `OK` otherwise.
    #[must_use]
    pub fn result(mut self, result: impl Into<String>) -> Self {
        self.result = result.into();
        self
    }

    /// Adds a fact; its text is cut after 1024 characters.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl ToString) -> Self {
        let text: String = value.to_string().chars().take(1024).collect();
        self.details.insert(name.to_owned(), text);
        self
    }
}

/// Writes a record into the outbox in the caller's transaction.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be written.
pub async fn insert(tx: &mut Transaction, record: &Record) -> Result<(), DbError> {
    const NEXT: &str = "UPDATE audit_position SET last = last + 1 WHERE id = 1 RETURNING last";
    const INSERT: &str = "INSERT INTO audit_outbox (position, record) VALUES ($1, $2)";
    let text = db::json(record)?;
    let position: i64 = tx.value(Query::new(NEXT), "last").await?;
    let insert = Query::new(INSERT).bind(position).bind(text);
    tx.execute(insert).await?.one()
}

struct Waiting {
    position: i64,
    record: Record,
}

impl FromRow for Waiting {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let position = row.get("position")?;
        let record = row.named("audit_outbox", position).json("record")?;
        Ok(Self { position, record })
    }
}

/// Returns the oldest undelivered records with the position of the last of them, or `None` when the
/// outbox is empty.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be read.
pub async fn peek(db: &mut impl Fetch, limit: i64) -> Result<Option<(i64, Vec<Record>)>, DbError> {
    const OLDEST: &str = "SELECT position, record FROM audit_outbox ORDER BY position LIMIT $1";
    let waiting: Vec<Waiting> = db.all(Query::new(OLDEST).bind(limit)).await?;
    let Some(last) = waiting.last().map(|w| w.position) else {
        return Ok(None);
    };
    Ok(Some((
        last,
        waiting.into_iter().map(|w| w.record).collect(),
    )))
}

/// Removes delivered records.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be written.
pub async fn remove(tx: &mut Transaction, up_to: i64) -> Result<(), DbError> {
    const REMOVE: &str = "DELETE FROM audit_outbox WHERE position <= $1";
    tx.execute(Query::new(REMOVE).bind(up_to)).await?.any();
    Ok(())
}
