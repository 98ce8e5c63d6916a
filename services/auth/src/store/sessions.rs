//! The rows of sessions and their refresh tokens.

use crate::AuthError;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Swap, Transaction};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub(crate) struct SessionRow {
    pub(crate) id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) ends_us: i64,
    pub(crate) revoked: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct RefreshRow {
    pub(crate) session_id: Uuid,
    pub(crate) expires_us: i64,
    pub(crate) used_us: Option<i64>,
    pub(crate) used_by: Option<String>,
}

/// A session that ended early.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RevokedRow {
    pub(crate) id: Uuid,
    pub(crate) ended_us: i64,
}

const INSERT: &str =
    "INSERT INTO sessions (id, user_id, created_us, ends_us, revoked) VALUES ($1, $2, $3, $4, $5)";
const GET: &str = "SELECT id, user_id, ends_us, revoked FROM sessions WHERE id = $1";
const REVOKE: &str =
    "UPDATE sessions SET revoked = TRUE, revoked_us = $1 WHERE id = $2 AND NOT revoked";
const REVOKE_OF: &str = "UPDATE sessions SET revoked = TRUE, revoked_us = $1 \
                         WHERE user_id = $2 AND NOT revoked AND id <> $3";
const REVOKED: &str = "SELECT id, COALESCE(revoked_us, ends_us) AS ended_us FROM sessions \
                       WHERE revoked AND COALESCE(revoked_us, ends_us) > $1";
const DROP_REFRESH: &str = "DELETE FROM refresh_tokens WHERE hash IN \
                            (SELECT hash FROM refresh_tokens WHERE expires_us < $1 LIMIT $2)";
const DROP_SESSIONS: &str = "DELETE FROM sessions WHERE id IN (SELECT s.id FROM sessions s WHERE s.ends_us < $1 \
                             AND NOT EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.session_id = s.id) LIMIT $2)";
const INSERT_REFRESH: &str = "INSERT INTO refresh_tokens (hash, session_id, expires_us) VALUES ($1, $2, $3) \
                              ON CONFLICT (hash) DO NOTHING";
const REFRESH: &str =
    "SELECT session_id, expires_us, used_us, used_by FROM refresh_tokens WHERE hash = $1";
const USE_REFRESH: &str =
    "UPDATE refresh_tokens SET used_us = $1, used_by = $2 WHERE hash = $3 AND used_us IS NULL";

impl FromRow for SessionRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            user_id: row.get("user_id")?,
            ends_us: row.get("ends_us")?,
            revoked: row.get("revoked")?,
        })
    }
}

impl FromRow for RefreshRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            session_id: row.get("session_id")?,
            expires_us: row.get("expires_us")?,
            used_us: row.get("used_us")?,
            used_by: row.get("used_by")?,
        })
    }
}

impl FromRow for RevokedRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            ended_us: row.get("ended_us")?,
        })
    }
}

pub(crate) async fn insert_session(
    tx: &mut Transaction,
    session: &SessionRow,
    now_us: i64,
) -> Result<(), AuthError> {
    let insert = Query::new(INSERT)
        .bind(session.id)
        .bind(session.user_id)
        .bind(now_us)
        .bind(session.ends_us)
        .bind(session.revoked);
    Ok(tx.execute(insert).await?.one()?)
}

pub(crate) async fn session(
    tx: &mut Transaction,
    id: Uuid,
) -> Result<Option<SessionRow>, AuthError> {
    Ok(tx.optional(Query::new(GET).bind(id)).await?)
}

/// Ends a session; lost when it had already ended.
pub(crate) async fn revoke_session(
    tx: &mut Transaction,
    id: Uuid,
    now_us: i64,
) -> Result<Swap, AuthError> {
    let revoke = Query::new(REVOKE).bind(now_us).bind(id);
    Ok(tx.execute(revoke).await?.swap())
}

/// Ends the sessions of a user, except the kept one.
pub(crate) async fn revoke_sessions_of(
    tx: &mut Transaction,
    user_id: Uuid,
    kept: Option<Uuid>,
    now_us: i64,
) -> Result<(), AuthError> {
    let revoke = Query::new(REVOKE_OF)
        .bind(now_us)
        .bind(user_id)
        .bind(kept.unwrap_or_default());
    tx.execute(revoke).await?.any();
    Ok(())
}

/// Sessions that ended after a moment; they matter until their last access token has expired.
pub(crate) async fn revoked_sessions(
    db: &mut impl Fetch,
    since_us: i64,
) -> Result<Vec<RevokedRow>, AuthError> {
    Ok(db.all(Query::new(REVOKED).bind(since_us)).await?)
}

/// Removes up to `most` rows of each kind that ended before a moment; true when there may be more.
pub(crate) async fn drop_ended(
    tx: &mut Transaction,
    past_us: i64,
    most: i64,
) -> Result<bool, AuthError> {
    let mut more = false;
    for query in [DROP_REFRESH, DROP_SESSIONS] {
        let dropped = tx
            .execute(Query::new(query).bind(past_us).bind(most))
            .await?;
        more |= dropped.rows() == u64::try_from(most).unwrap_or(u64::MAX);
    }
    Ok(more)
}

/// Adds a refresh token, unless it exists.
pub(crate) async fn insert_refresh(
    tx: &mut Transaction,
    hash: &[u8],
    session_id: Uuid,
    expires_us: i64,
) -> Result<(), AuthError> {
    let insert = Query::new(INSERT_REFRESH)
        .bind(hash)
        .bind(session_id)
        .bind(expires_us);
    tx.execute(insert).await?.any();
    Ok(())
}

pub(crate) async fn refresh(
    tx: &mut Transaction,
    hash: &[u8],
) -> Result<Option<RefreshRow>, AuthError> {
    Ok(tx.optional(Query::new(REFRESH).bind(hash)).await?)
}

/// Uses up a token; lost when it was already used.
pub(crate) async fn use_refresh(
    tx: &mut Transaction,
    hash: &[u8],
    now_us: i64,
    by: &str,
) -> Result<Swap, AuthError> {
    let spend = Query::new(USE_REFRESH).bind(now_us).bind(by).bind(hash);
    Ok(tx.execute(spend).await?.swap())
}
