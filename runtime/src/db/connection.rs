//! A connection of a pool, with or without a transaction on it.
//!
//! The driver tests a connection that is returned, and holds its place in the pool until the server
//! answers. A server that went silent (a network that drops packets, a proxy that stopped) would so take
//! one place after the other, until none is left. Here the return of a connection is bounded. One that is
//! late is closed without waiting for the server.

use super::{
    DbError,
    query::Query,
    row::{Inner, Row},
};
use crate::page::{Page, Room};
use futures_util::TryStreamExt;
use sqlx::{Connection as _, Database, Pool, Postgres, Sqlite, pool::PoolConnection};
use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};
use tokio::{runtime::Handle, time::timeout};

/// How long a server may take to end what was left open on a connection.
pub(super) const RETURN_LIMIT: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What the engines' drivers do alike, by types of their own.
pub(super) trait Engine: Database {
    /// The time in which a connection is returned to its pool.
    const RETURN_LIMIT: Duration;

    /// Runs a statement without parameters.
    fn run(
        connection: &mut Self::Connection,
        statement: &'static str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The rows of a result.
    fn rows(
        connection: &mut Self::Connection,
        query: &Query<'_>,
    ) -> impl Future<Output = Result<Vec<Row>, DbError>> + Send;

    /// The first rows of a result, as many as there is room for.
    fn page(
        connection: &mut Self::Connection,
        query: &Query<'_>,
        room: Room,
    ) -> impl Future<Output = Result<Page<Row>, DbError>> + Send;

    /// The first row of a result.
    fn row(
        connection: &mut Self::Connection,
        query: &Query<'_>,
    ) -> impl Future<Output = Result<Option<Row>, DbError>> + Send;

    /// How many rows a statement changed.
    fn execute(
        connection: &mut Self::Connection,
        query: &Query<'_>,
    ) -> impl Future<Output = Result<u64, DbError>> + Send;
}

macro_rules! engine {
    ($engine:ident, $arguments:ident, $limit:expr) => {
        impl Engine for $engine {
            const RETURN_LIMIT: Duration = $limit;

            async fn run(
                connection: &mut Self::Connection,
                statement: &'static str,
            ) -> Result<(), sqlx::Error> {
                sqlx::raw_sql(statement).execute(connection).await.map(drop)
            }

            async fn rows(
                connection: &mut Self::Connection,
                query: &Query<'_>,
            ) -> Result<Vec<Row>, DbError> {
                let query = sqlx::query_with(query.text(), query.$arguments()?);
                let rows = query.fetch_all(connection).await?;
                let row = |row| Row(Inner::$engine(row));
                Ok(rows.into_iter().map(row).collect())
            }

            async fn page(
                connection: &mut Self::Connection,
                query: &Query<'_>,
                mut room: Room,
            ) -> Result<Page<Row>, DbError> {
                let query = sqlx::query_with(query.text(), query.$arguments()?);
                let (mut result, mut rows) = (query.fetch(connection), Vec::new());
                while let Some(row) = result.try_next().await? {
                    let row = Row(Inner::$engine(row));
                    if !room.take(row.bytes()) {
                        return Ok(Page { rows, more: true });
                    }
                    rows.push(row);
                }
                Ok(Page { rows, more: false })
            }

            async fn row(
                connection: &mut Self::Connection,
                query: &Query<'_>,
            ) -> Result<Option<Row>, DbError> {
                let query = sqlx::query_with(query.text(), query.$arguments()?);
                let row = query.fetch_optional(connection).await?;
                Ok(row.map(|row| Row(Inner::$engine(row))))
            }

            async fn execute(
                connection: &mut Self::Connection,
                query: &Query<'_>,
            ) -> Result<u64, DbError> {
                let query = sqlx::query_with(query.text(), query.$arguments()?);
                Ok(query.execute(connection).await?.rows_affected())
            }
        }
    };
}

// Within a process no answer is lost, so that the end of a statement can be waited for.
engine!(Sqlite, for_sqlite, NEVER);
engine!(Postgres, for_postgres, RETURN_LIMIT);

/// A connection of a pool. A transaction that is open on it when it is dropped is rolled back.
#[derive(Debug)]
pub(super) struct Connection<D: Engine> {
    /// Taken when this is dropped.
    pooled: Option<PoolConnection<D>>,
    in_transaction: bool,
}

impl<D: Engine> Connection<D> {
    pub(super) async fn acquire(pool: &Pool<D>) -> Result<Self, sqlx::Error> {
        Ok(Self {
            pooled: Some(pool.acquire().await?),
            in_transaction: false,
        })
    }

    /// Begins a transaction by this statement.
    pub(super) async fn begin(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        self.in_transaction = true;
        let begun = D::run(self, statement).await;
        self.in_transaction = !matches!(begun, Err(sqlx::Error::Database(_)));
        begun
    }

    /// Begins a transaction that the driver knows of, so that it makes savepoints of those within it. The
    /// connection must not be used for another one afterwards.
    pub(super) async fn begin_nesting(
        &mut self,
        statement: &'static str,
    ) -> Result<(), sqlx::Error> {
        self.in_transaction = true;
        let begun = self.begin_with(statement).await?;
        // It only refers to the connection, and would end the transaction by the driver.
        std::mem::forget(begun);
        Ok(())
    }

    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        D::run(&mut self, "COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }
}

const TAKEN: &str = "a connection is taken only when it is dropped";

impl<D: Engine> Deref for Connection<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        self.pooled.as_ref().expect(TAKEN)
    }
}

impl<D: Engine> DerefMut for Connection<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        self.pooled.as_mut().expect(TAKEN)
    }
}

impl<D: Engine> Drop for Connection<D> {
    fn drop(&mut self) {
        let Some(pooled) = self.pooled.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(give_back(pooled, self.in_transaction))),
            Err(_) => drop(pooled.detach()),
        }
    }
}

async fn give_back<D: Engine>(mut pooled: PoolConnection<D>, in_transaction: bool) {
    if in_transaction {
        let ended = timeout(D::RETURN_LIMIT, D::run(&mut pooled, "ROLLBACK")).await;
        if !matches!(ended, Ok(Ok(()))) {
            // Not by way of the driver, which would wait for the server again.
            drop(pooled.detach());
            return;
        }
    }
    if timeout(D::RETURN_LIMIT, pooled.return_to_pool())
        .await
        .is_err()
    {
        tracing::warn!("a connection to the database is silent, and is closed");
    }
}
