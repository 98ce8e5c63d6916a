//! The join tokens that were made over the service, until they expire. A token is an identity that
//! somebody may have: it ends with the permission of whoever made it, and with a revocation of that
//! identity. One that is not here any more is good for nothing.
//!
//! What was made on the authority's files has no maker here, and nobody knows of it before it is
//! shown: it says itself when it was made, and is void when its identity was cut off since.

use super::store::cut_of;
use crate::{AuthError, holder::Holder};
use sqlx::SqliteConnection;
use std::time::Duration;
use tars_certs::{PeerClass, join::JoinClaims};
use tars_credentials::grant;
use uuid::Uuid;

#[derive(Debug)]
pub(super) struct TokenRow {
    pub(super) id: String,
    pub(super) spiffe_id: String,
    pub(super) maker: Holder,
    pub(super) created_us: i64,
    pub(super) expires_us: i64,
    pub(super) revoked: bool,
}

impl TokenRow {
    /// Whether it is not revoked, and its maker could make it now.
    pub(super) async fn holds(
        &self,
        tx: &mut SqliteConnection,
        class: PeerClass,
        now_us: i64,
    ) -> Result<bool, AuthError> {
        let held = self.maker.holds(tx, now_us).await?;
        let needed = grant::required_to_issue(class, false);
        Ok(!self.revoked && held.is_some_and(|held| needed.without(held).is_empty()))
    }
}

/// Whether a token that nobody wrote down is younger than every cut of its identity. One that was made
/// in the second of the cut, or on a clock that was ahead, could be older than it seems.
pub(super) async fn is_after_cuts(
    tx: &mut SqliteConnection,
    claims: &JoinClaims,
    now: Duration,
) -> Result<bool, AuthError> {
    let cut_s = cut_of(tx, claims.spiffe_id.as_str()).await?;
    let made_s = i64::try_from(claims.issued_at.as_secs()).unwrap_or(i64::MAX);
    Ok(claims.issued_at <= now && cut_s.is_none_or(|cut_s| cut_s < made_s))
}

/// Forgets what had expired at a moment that is surely past.
pub(super) async fn forget_ended(tx: &mut SqliteConnection, past_us: i64) -> Result<(), AuthError> {
    sqlx::query("DELETE FROM join_tokens WHERE expires_us < $1")
        .bind(past_us)
        .execute(tx)
        .await?;
    Ok(())
}

/// How many tokens one credential may have out that somebody could still use. A key of a user does
/// not take the room of the others.
const MAX_OUT: i64 = 1000;

/// Writes a token down, unless its maker has too many out.
pub(super) async fn insert(tx: &mut SqliteConnection, row: &TokenRow) -> Result<(), AuthError> {
    let query = "SELECT COUNT(*), COALESCE(MIN(expires_us), 0) FROM join_tokens \
                 WHERE maker = $1 AND api_key = $2 AND expires_us > $3 AND NOT revoked \
                 AND id NOT IN (SELECT id FROM used_join_tokens)";
    let (out, first_us): (i64, i64) = sqlx::query_as(query)
        .bind(row.maker.user)
        .bind(&row.maker.api_key)
        .bind(row.created_us)
        .fetch_one(&mut *tx)
        .await?;
    if out >= MAX_OUT {
        let left = u64::try_from(first_us - row.created_us).unwrap_or(0);
        return Err(AuthError::TooManyTokens(Duration::from_micros(left)));
    }
    sqlx::query("INSERT INTO join_tokens VALUES ($1, $2, $3, $4, $5, $6, $7)")
        .bind(&row.id)
        .bind(&row.spiffe_id)
        .bind(row.maker.user)
        .bind(&row.maker.api_key)
        .bind(row.created_us)
        .bind(row.expires_us)
        .bind(row.revoked)
        .execute(tx)
        .await?;
    Ok(())
}

pub(super) async fn find(
    tx: &mut SqliteConnection,
    id: &str,
) -> Result<Option<TokenRow>, AuthError> {
    type Tuple = (String, String, Uuid, String, i64, i64, bool);
    let query = "SELECT id, spiffe_id, maker, api_key, created_us, expires_us, revoked \
                 FROM join_tokens WHERE id = $1";
    let row: Option<Tuple> = sqlx::query_as(query).bind(id).fetch_optional(tx).await?;
    Ok(row.map(
        |(id, spiffe_id, user, api_key, created_us, expires_us, revoked)| TokenRow {
            id,
            spiffe_id,
            maker: Holder { user, api_key },
            created_us,
            expires_us,
            revoked,
        },
    ))
}

/// Ends what was made for an identity before a moment.
pub(super) async fn revoke(
    tx: &mut SqliteConnection,
    spiffe_id: &str,
    before_us: i64,
) -> Result<(), AuthError> {
    sqlx::query("UPDATE join_tokens SET revoked = TRUE WHERE spiffe_id = $1 AND created_us < $2")
        .bind(spiffe_id)
        .bind(before_us)
        .execute(tx)
        .await?;
    Ok(())
}
