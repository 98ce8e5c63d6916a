//! The rows of sessions and their refresh tokens.

use crate::AuthError;
use sqlx::{SqliteConnection, SqliteExecutor};
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

pub(crate) async fn insert_session(
    tx: &mut SqliteConnection,
    session: &SessionRow,
    now_us: i64,
) -> Result<(), AuthError> {
    sqlx::query("INSERT INTO sessions (id, user_id, created_us, ends_us, revoked) VALUES ($1, $2, $3, $4, $5)")
        .bind(session.id)
        .bind(session.user_id)
        .bind(now_us)
        .bind(session.ends_us)
        .bind(session.revoked)
        .execute(tx)
        .await?;
    Ok(())
}

pub(crate) async fn session(
    tx: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<SessionRow>, AuthError> {
    let row: Option<(Uuid, Uuid, i64, bool)> =
        sqlx::query_as("SELECT id, user_id, ends_us, revoked FROM sessions WHERE id = $1")
            .bind(id)
            .fetch_optional(tx)
            .await?;
    Ok(row.map(|(id, user_id, ends_us, revoked)| SessionRow {
        id,
        user_id,
        ends_us,
        revoked,
    }))
}

/// Ends a session; false when it had ended already.
pub(crate) async fn revoke_session(
    tx: &mut SqliteConnection,
    id: Uuid,
    now_us: i64,
) -> Result<bool, AuthError> {
    let query = "UPDATE sessions SET revoked = TRUE, revoked_us = $1 WHERE id = $2 AND NOT revoked";
    let done = sqlx::query(query).bind(now_us).bind(id).execute(tx).await?;
    Ok(done.rows_affected() == 1)
}

/// Ends the sessions of a user, but for one that is kept.
pub(crate) async fn revoke_sessions_of(
    tx: &mut SqliteConnection,
    user_id: Uuid,
    kept: Option<Uuid>,
    now_us: i64,
) -> Result<(), AuthError> {
    let query = "UPDATE sessions SET revoked = TRUE, revoked_us = $1 \
                 WHERE user_id = $2 AND NOT revoked AND id <> $3";
    sqlx::query(query)
        .bind(now_us)
        .bind(user_id)
        .bind(kept.unwrap_or_default())
        .execute(tx)
        .await?;
    Ok(())
}

/// Sessions that ended since a moment: until their last access token has expired.
pub(crate) async fn revoked_sessions(
    db: impl SqliteExecutor<'_>,
    since_us: i64,
) -> Result<Vec<(Uuid, i64)>, AuthError> {
    let query = "SELECT id, COALESCE(revoked_us, ends_us) FROM sessions \
                 WHERE revoked AND COALESCE(revoked_us, ends_us) > $1";
    Ok(sqlx::query_as(query).bind(since_us).fetch_all(db).await?)
}

/// Forgets some of what ended by itself before a moment; true when there may be more.
pub(crate) async fn drop_ended(
    tx: &mut SqliteConnection,
    past_us: i64,
    most: i64,
) -> Result<bool, AuthError> {
    let mut more = false;
    for query in [
        "DELETE FROM refresh_tokens WHERE hash IN (SELECT hash FROM refresh_tokens WHERE expires_us < $1 LIMIT $2)",
        "DELETE FROM sessions WHERE id IN (SELECT s.id FROM sessions s WHERE s.ends_us < $1 AND NOT EXISTS \
         (SELECT 1 FROM refresh_tokens r WHERE r.session_id = s.id) LIMIT $2)",
    ] {
        let done = sqlx::query(query)
            .bind(past_us)
            .bind(most)
            .execute(&mut *tx)
            .await?;
        more |= done.rows_affected() == u64::try_from(most).unwrap_or(u64::MAX);
    }
    Ok(more)
}

/// Adds a refresh token; one that is there already stays as it is.
pub(crate) async fn insert_refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
    session_id: Uuid,
    expires_us: i64,
) -> Result<(), AuthError> {
    sqlx::query(
        "INSERT INTO refresh_tokens (hash, session_id, expires_us) VALUES ($1, $2, $3) ON CONFLICT (hash) DO NOTHING",
    )
    .bind(hash)
    .bind(session_id)
    .bind(expires_us)
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
) -> Result<Option<RefreshRow>, AuthError> {
    let row: Option<(Uuid, i64, Option<i64>, Option<String>)> = sqlx::query_as(
        "SELECT session_id, expires_us, used_us, used_by FROM refresh_tokens WHERE hash = $1",
    )
    .bind(hash)
    .fetch_optional(tx)
    .await?;
    Ok(
        row.map(|(session_id, expires_us, used_us, used_by)| RefreshRow {
            session_id,
            expires_us,
            used_us,
            used_by,
        }),
    )
}

/// Uses a token up; false when it was used already.
pub(crate) async fn use_refresh(
    tx: &mut SqliteConnection,
    hash: &[u8],
    now_us: i64,
    by: &str,
) -> Result<bool, AuthError> {
    let done = sqlx::query(
        "UPDATE refresh_tokens SET used_us = $1, used_by = $2 WHERE hash = $3 AND used_us IS NULL",
    )
    .bind(now_us)
    .bind(by)
    .bind(hash)
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}
