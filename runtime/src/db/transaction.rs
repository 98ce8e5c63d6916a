//! Transactions, and what queries are sent to.

use super::{
    Db, DbError, FromRow, LostCommit, Query, Row,
    connection::{Connection, Engine},
    row::Column,
};
use crate::{
    page::{Page, Room, Size},
    trace::Span,
};
use futures_util::future::BoxFuture;
use sqlx::{Postgres, Sqlite};
use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

/// How long a statement may take before its connection is given up. Statements read a page or by an index,
/// or a table that stays small, so that only a database that hangs comes to this.
const STATEMENT: Duration = Duration::from_secs(10);

/// What a transaction is protected from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// No other exclusive transaction of the same service runs at the same time, in any process:
    /// what is read stays true until the commit, also where no row of its own holds it (a number
    /// that must be the next, a user who must not be the last). SQLite takes its write lock,
    /// PostgreSQL an advisory lock of the schema, before the first statement.
    Exclusive,
    /// Each statement sees what was committed before it. Others may write between two statements,
    /// so that only constraints, conditions and locked rows decide. The same as `Exclusive` on
    /// SQLite, which has one writer.
    Committed,
}

/// An access to the database. It is boxed: the drivers' futures are deep and large, the services' calls hold many
/// of them, and every crate that awaits one by its own type would compile it anew.
pub type Access<'a, T> = BoxFuture<'a, Result<T, DbError>>;

/// Where queries are sent: a transaction, or the connections for reading.
pub trait Fetch: Send {
    /// The rows of a result.
    ///
    /// # Errors
    ///
    /// As the other methods, but for what a row holds.
    fn rows<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Vec<Row>>;

    /// The first row of a result, if there is one. It costs less than all rows, also where there is one.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    fn row<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Option<Row>>;

    /// The first rows of a result, as many as there is room for. What follows is not read.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    fn rows_within<'a>(&'a mut self, query: Query<'a>, room: Room) -> Access<'a, Page<Row>>;

    /// The rows of a page, each read into a `T`. The query is limited to [`Size::limit`].
    ///
    /// # Errors
    ///
    /// [`DbError`], also where a row cannot be read.
    fn page<T: FromRow>(
        &mut self,
        query: Query<'_>,
        size: Size,
    ) -> impl Future<Output = Result<Page<T>, DbError>> + Send {
        async move {
            let Page { rows, more } = self.rows_within(query, size.room()).await?;
            let rows = rows.iter().map(T::from_row).collect::<Result<_, _>>()?;
            Ok(Page { rows, more })
        }
    }

    /// All rows, each read into a `T`.
    ///
    /// # Errors
    ///
    /// [`DbError`], also where a row cannot be read.
    fn all<T: FromRow>(
        &mut self,
        query: Query<'_>,
    ) -> impl Future<Output = Result<Vec<T>, DbError>> + Send {
        async move { self.rows(query).await?.iter().map(T::from_row).collect() }
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    ///
    /// [`DbError`], also where the row cannot be read.
    fn optional<T: FromRow>(
        &mut self,
        query: Query<'_>,
    ) -> impl Future<Output = Result<Option<T>, DbError>> + Send {
        async move { self.row(query).await?.as_ref().map(T::from_row).transpose() }
    }

    /// One column of the first row, if there is one.
    ///
    /// # Errors
    ///
    /// [`DbError`], also where the column is absent or has another type.
    fn optional_value<T: Column>(
        &mut self,
        query: Query<'_>,
        column: &'static str,
    ) -> impl Future<Output = Result<Option<T>, DbError>> + Send {
        async move {
            self.row(query)
                .await?
                .map(|row| row.get(column))
                .transpose()
        }
    }

    /// One column of a row that is always there: an aggregate, a counter.
    ///
    /// # Errors
    ///
    /// [`DbError`], also where there is no row.
    fn value<T: Column>(
        &mut self,
        query: Query<'_>,
        column: &'static str,
    ) -> impl Future<Output = Result<T, DbError>> + Send {
        async move {
            let found = self.optional_value(query, column).await?;
            found.ok_or_else(|| DbError::Failed(format!("no row with {column}")))
        }
    }
}

/// How many rows a statement changed.
#[must_use = "a statement that changed fewer rows than expected has not done its work"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affected(u64);

impl Affected {
    /// The number of rows.
    pub fn rows(self) -> u64 {
        self.0
    }

    /// Expects exactly one row.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where it was another number.
    pub fn one(self) -> Result<(), DbError> {
        match self.0 {
            1 => Ok(()),
            n => Err(DbError::Failed(format!("{n} rows were changed, not one"))),
        }
    }

    /// Any number of rows is as good: what was to be removed or changed may not have been there.
    pub fn any(self) {}

    /// The answer of a compare-and-set of one row.
    pub fn swap(self) -> Swap {
        if self.0 == 0 { Swap::Lost } else { Swap::Done }
    }
}

/// The answer of a compare-and-set.
#[must_use = "a compare-and-set that was lost has changed nothing"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The row was as expected, and is changed.
    Done,
    /// The row is absent, or another caller changed it first. Nothing is changed.
    Lost,
}

impl Swap {
    /// Whether the row was changed.
    #[must_use]
    pub fn is_done(self) -> bool {
        self == Self::Done
    }

    /// Turns a lost race into an error.
    ///
    /// # Errors
    ///
    /// `lost`, where the row was not as expected.
    pub fn or<E>(self, lost: E) -> Result<(), E> {
        match self {
            Self::Done => Ok(()),
            Self::Lost => Err(lost),
        }
    }
}

/// An open transaction. Dropped without a commit it changes nothing.
#[derive(Debug)]
pub struct Transaction(pub(super) Open);

#[derive(Debug)]
pub(super) enum Open {
    Sqlite(Connection<Sqlite>),
    Postgres(Connection<Postgres>),
}

impl Transaction {
    /// Runs a statement that answers with no rows.
    ///
    /// # Errors
    ///
    /// [`DbError`]. After an error the transaction is good for nothing but to be dropped: PostgreSQL
    /// refuses everything that follows.
    pub fn execute<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Affected> {
        Box::pin(in_time(async move {
            let changed = match &mut self.0 {
                Open::Sqlite(c) => Sqlite::execute(c, &query).await?,
                Open::Postgres(c) => Postgres::execute(c, &query).await?,
            };
            Ok(Affected(changed))
        }))
    }

    /// A commit in this process is never given up: however slow the disk is, the commit ends, and its
    /// outcome is known then. The answer of a server may never come.
    pub(super) async fn commit(self) -> Result<(), DbError> {
        let done = match self.0 {
            Open::Sqlite(c) => c.commit().await,
            Open::Postgres(c) => match tokio::time::timeout(STATEMENT, c.commit()).await {
                Ok(done) => done,
                Err(_) => return Err(DbError::InDoubt(SLOW.to_owned())),
            },
        };
        done.map_err(DbError::of_commit)
    }

    /// A commit whose answer is lost.
    async fn lose(self, lost: LostCommit) -> Result<(), DbError> {
        if lost == LostCommit::Made {
            self.commit().await?;
        }
        Err(DbError::InDoubt("a test has lost the answer".to_owned()))
    }
}

impl Fetch for Transaction {
    fn rows_within<'a>(&'a mut self, query: Query<'a>, room: Room) -> Access<'a, Page<Row>> {
        Box::pin(in_time(async move {
            match &mut self.0 {
                Open::Sqlite(c) => Sqlite::page(c, &query, room).await,
                Open::Postgres(c) => Postgres::page(c, &query, room).await,
            }
        }))
    }

    fn rows<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Vec<Row>> {
        Box::pin(in_time(async move {
            match &mut self.0 {
                Open::Sqlite(c) => Sqlite::rows(c, &query).await,
                Open::Postgres(c) => Postgres::rows(c, &query).await,
            }
        }))
    }

    fn row<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Option<Row>> {
        Box::pin(in_time(async move {
            match &mut self.0 {
                Open::Sqlite(c) => Sqlite::row(c, &query).await,
                Open::Postgres(c) => Postgres::row(c, &query).await,
            }
        }))
    }
}

const SLOW: &str = "the database did not answer in time";

/// Bounds an access.
pub(super) async fn in_time<T>(
    work: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    match tokio::time::timeout(STATEMENT, work).await {
        Ok(done) => done,
        Err(_) => Err(DbError::Unavailable(SLOW.to_owned())),
    }
}

/// A transaction that may write, named for the trace.
#[derive(Debug)]
pub struct Write {
    pub(super) transaction: Transaction,
    pub(super) db: Db,
    pub(super) name: &'static str,
    pub(super) span: Option<Span>,
}

impl Write {
    /// Makes the changes durable. Once begun, the commit goes on when this future is dropped: a
    /// caller that goes away leaves either all of its changes or, before this call, none. What must
    /// follow a commit therefore belongs on a task of its own, together with it.
    ///
    /// A commit to SQLite takes as long as the disk does; a caller bounds it by its own deadline.
    ///
    /// # Errors
    ///
    /// [`DbError::InDoubt`] where the answer of the database is lost, any other where nothing was
    /// changed. Where something in this process follows from the rows, a commit in doubt needs
    /// [`Db::settled`] or [`commit_with_proof`](Self::commit_with_proof).
    pub fn commit(self) -> Access<'static, ()> {
        Box::pin(async move {
            let Self {
                transaction,
                db,
                name,
                span,
            } = self;
            let lost = db.faults.of_commit(name);
            let commit = tokio::spawn(async move {
                let done = match lost {
                    None => transaction.commit().await,
                    Some(lost) => transaction.lose(lost).await,
                };
                drop(span);
                done
            });
            match commit.await {
                Ok(done) => done,
                Err(e) => Err(DbError::InDoubt(e.to_string())),
            }
        })
    }
}

impl Fetch for Write {
    fn rows_within<'a>(&'a mut self, query: Query<'a>, room: Room) -> Access<'a, Page<Row>> {
        self.transaction.rows_within(query, room)
    }

    fn rows<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Vec<Row>> {
        self.transaction.rows(query)
    }

    fn row<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Option<Row>> {
        self.transaction.row(query)
    }
}

impl Deref for Write {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut Transaction {
        &mut self.transaction
    }
}
