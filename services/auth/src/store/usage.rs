//! The rows of usage.

use crate::AuthError;
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction},
    page::{Page, Size},
    usage::{Amounts, Dimension, Month},
};
use uuid::Uuid;

/// What one user has used in one month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsageRow {
    pub(crate) month: Month,
    pub(crate) user_id: Uuid,
    /// Empty when there is no such user.
    pub(crate) username: String,
    pub(crate) amounts: Amounts,
    pub(crate) version: i64,
}

/// Where in a list of months and users a page begins: after these.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Empty before the first.
    pub(crate) month: String,
    pub(crate) user_id: Uuid,
}

const NEXT: &str = "UPDATE usage_position SET last = last + $1, \
                    open_from = CASE WHEN open_from < $2 THEN $2 ELSE open_from END \
                    WHERE id = 1 RETURNING last, open_from";
const LAST_VERSION: &str = "SELECT last FROM usage_position WHERE id = 1";
const OPEN_FROM: &str = "SELECT open_from FROM usage_position WHERE id = 1";
const COUNTED: &str = "SELECT last FROM usage_sources WHERE source = $1";
const PUT_COUNTED: &str = "INSERT INTO usage_sources (source, last, used_us) VALUES ($1, $2, $3) \
                           ON CONFLICT (source) DO UPDATE SET last = excluded.last, used_us = excluded.used_us";
const DROP_UNUSED: &str = "DELETE FROM usage_sources WHERE used_us < $1";
const ADD: &str = "INSERT INTO usage_totals (month, user_id, calls, training_steps, solver_us, version) \
                   VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (month, user_id) DO UPDATE SET \
                   calls = usage_totals.calls + excluded.calls, \
                   training_steps = usage_totals.training_steps + excluded.training_steps, \
                   solver_us = usage_totals.solver_us + excluded.solver_us, version = excluded.version";
const CHANGED: &str = "SELECT month, user_id, '' AS username, calls, training_steps, solver_us, version \
                       FROM usage_totals WHERE month = $1 AND version > $2 ORDER BY version LIMIT $3";
const OF_USER: &str = "SELECT t.month, t.user_id, COALESCE(u.username, '') AS username, t.calls, t.training_steps, \
                       t.solver_us, t.version FROM usage_totals t LEFT JOIN users u ON u.id = t.user_id \
                       WHERE t.user_id = $1 AND t.month >= $2 AND t.month <= $3 AND t.month > $4 \
                       ORDER BY t.month LIMIT $5";
const LIST: &str = "SELECT t.month, t.user_id, COALESCE(u.username, '') AS username, t.calls, t.training_steps, \
                    t.solver_us, t.version FROM usage_totals t LEFT JOIN users u ON u.id = t.user_id \
                    WHERE t.month >= $1 AND t.month <= $2 AND (t.month > $3 OR (t.month = $3 AND t.user_id > $4)) \
                    ORDER BY t.month, t.user_id LIMIT $5";

impl FromRow for UsageRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (month, user_id): (String, Uuid) = (row.get("month")?, row.get("user_id")?);
        let row = row.named("usage_totals", format!("{month}/{user_id}"));
        let mut amounts = Amounts::default();
        amounts.add(Dimension::Calls, row.number("calls")?);
        amounts.add(Dimension::TrainingSteps, row.number("training_steps")?);
        amounts.add(Dimension::SolverSeconds, row.number("solver_us")?);
        Ok(Self {
            month: row.word("month", |text| text.parse().ok())?,
            user_id,
            username: row.get("username")?,
            amounts,
            version: row.get("version")?,
        })
    }
}

/// Locks the counter of versions until the commit, and closes the months before `open_from`. Returns the last of
/// so many new versions, and the first month that is open.
pub(crate) async fn next_versions(
    tx: &mut Transaction,
    count: i64,
    open_from: Month,
) -> Result<(i64, String), AuthError> {
    let next = Query::new(NEXT).bind(count).bind(open_from.to_string());
    let row = tx.row(next).await?;
    let row = row.ok_or_else(|| DbError::Failed("usage has no position".to_owned()))?;
    Ok((row.get("last")?, row.get("open_from")?))
}

/// The first month that is open; empty before any was closed.
pub(crate) async fn open_from(db: &mut impl Fetch) -> Result<String, AuthError> {
    Ok(db.value(Query::new(OPEN_FROM), "open_from").await?)
}

/// The last version of totals.
pub(crate) async fn last_version(db: &mut impl Fetch) -> Result<i64, AuthError> {
    Ok(db.value(Query::new(LAST_VERSION), "last").await?)
}

/// The last number of a source that is counted; zero before the first.
pub(crate) async fn counted(db: &mut impl Fetch, source: &str) -> Result<i64, AuthError> {
    let counted = Query::new(COUNTED).bind(source);
    Ok(db.optional_value(counted, "last").await?.unwrap_or(0))
}

pub(crate) async fn put_counted(
    tx: &mut Transaction,
    source: &str,
    last: i64,
    now_us: i64,
) -> Result<(), AuthError> {
    let put = Query::new(PUT_COUNTED).bind(source).bind(last).bind(now_us);
    Ok(tx.execute(put).await?.one()?)
}

/// Forgets the sources of which nothing was counted since then.
pub(crate) async fn drop_sources(tx: &mut Transaction, before_us: i64) -> Result<(), AuthError> {
    tx.execute(Query::new(DROP_UNUSED).bind(before_us))
        .await?
        .any();
    Ok(())
}

/// Adds to what a user has used in a month, under a new version.
pub(crate) async fn add_usage(
    tx: &mut Transaction,
    (month, user_id): (Month, Uuid),
    amounts: &Amounts,
    version: i64,
) -> Result<(), AuthError> {
    let amount = |of| i64::try_from(amounts.of(of)).unwrap_or(i64::MAX);
    let add = Query::new(ADD)
        .bind(month.to_string())
        .bind(user_id)
        .bind(amount(Dimension::Calls))
        .bind(amount(Dimension::TrainingSteps))
        .bind(amount(Dimension::SolverSeconds))
        .bind(version);
    Ok(tx.execute(add).await?.one()?)
}

/// The totals of a month that have changed after a version, in the order of the changes, without names.
pub(crate) async fn changed_usage(
    db: &mut impl Fetch,
    month: Month,
    after: i64,
    limit: i64,
) -> Result<Vec<UsageRow>, AuthError> {
    let changed = Query::new(CHANGED)
        .bind(month.to_string())
        .bind(after)
        .bind(limit);
    Ok(db.all(changed).await?)
}

/// The totals of some months, of one user or of all, by month and user.
pub(crate) async fn usage(
    db: &mut impl Fetch,
    (first, last): (Month, Month),
    user: Option<Uuid>,
    after: &Place,
    size: Size,
) -> Result<Page<UsageRow>, AuthError> {
    let query = match user {
        Some(user) => Query::new(OF_USER).bind(user),
        None => Query::new(LIST),
    };
    let query = query
        .bind(first.to_string())
        .bind(last.to_string())
        .bind(&after.month);
    let query = match user {
        Some(_) => query,
        None => query.bind(after.user_id),
    };
    Ok(db.page(query.bind(size.limit()), size).await?)
}
