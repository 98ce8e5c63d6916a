//! The join tokens created through the service, until they expire. A token is an identity that
//! somebody may obtain: it ends with the permission of its creator, and with a revocation of that
//! identity. A token without a row is not valid.
//!
//! A token minted on the authority's files has no creator here, and is unknown until it is
//! presented. It carries its issue time, and is void when its identity has been revoked since.

use super::store::revoked_before;
use crate::{AuthError, holder::Holder};
use std::time::Duration;
use tars_certs::{PeerClass, join::JoinClaims};
use tars_credentials::grant;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};

#[derive(Debug)]
pub(super) struct TokenRow {
    pub(super) id: String,
    pub(super) spiffe_id: String,
    pub(super) maker: Holder,
    pub(super) created_us: i64,
    pub(super) expires_us: i64,
    pub(super) revoked: bool,
}

const FIND: &str = "SELECT id, spiffe_id, maker, api_key, created_us, expires_us, revoked \
                    FROM join_tokens WHERE id = $1";
const OUT: &str = "SELECT COUNT(*) AS out, COALESCE(MIN(expires_us), 0) AS first_us FROM join_tokens \
                   WHERE maker = $1 AND api_key = $2 AND expires_us > $3 AND NOT revoked \
                   AND NOT EXISTS (SELECT 1 FROM used_join_tokens u WHERE u.id = join_tokens.id)";
const INSERT: &str = "INSERT INTO join_tokens (id, spiffe_id, maker, api_key, created_us, expires_us, revoked) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7)";
const REVOKE: &str =
    "UPDATE join_tokens SET revoked = TRUE WHERE spiffe_id = $1 AND created_us < $2";
const DROP_ENDED: &str = "DELETE FROM join_tokens WHERE expires_us < $1";

impl FromRow for TokenRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.get("id")?,
            spiffe_id: row.get("spiffe_id")?,
            maker: Holder {
                user: row.get("maker")?,
                api_key: row.get("api_key")?,
            },
            created_us: row.get("created_us")?,
            expires_us: row.get("expires_us")?,
            revoked: row.get("revoked")?,
        })
    }
}

/// How many tokens of a credential are out, and when the first of them expires.
#[derive(Debug, Default)]
struct OutOf {
    out: i64,
    first_us: i64,
}

impl FromRow for OutOf {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            out: row.get("out")?,
            first_us: row.get("first_us")?,
        })
    }
}

impl TokenRow {
    /// Whether it is not revoked, and its creator could create it now.
    pub(super) async fn holds(
        &self,
        tx: &mut Transaction,
        class: PeerClass,
        now_us: i64,
    ) -> Result<bool, AuthError> {
        let held = self.maker.holds(tx, now_us).await?;
        let needed = grant::required_to_issue(class, false);
        Ok(!self.revoked && held.is_some_and(|held| needed.without(held).is_empty()))
    }
}

/// Whether an unrecorded token is younger than every revocation of its identity. One that was
/// issued in the second of the revocation, or on a clock that is ahead, may be older than it seems.
pub(super) async fn is_after_revocations(
    tx: &mut Transaction,
    claims: &JoinClaims,
    now: Duration,
) -> Result<bool, AuthError> {
    let revoked_s = revoked_before(tx, claims.spiffe_id.as_str()).await?;
    let issued_s = i64::try_from(claims.issued_at.as_secs()).unwrap_or(i64::MAX);
    Ok(claims.issued_at <= now && revoked_s.is_none_or(|revoked_s| revoked_s < issued_s))
}

/// Deletes tokens that had expired at a moment that is certainly past.
pub(super) async fn forget_ended(tx: &mut Transaction, past_us: i64) -> Result<(), AuthError> {
    tx.execute(Query::new(DROP_ENDED).bind(past_us))
        .await?
        .any();
    Ok(())
}

/// The number of usable tokens that one credential may have outstanding. The keys of a user have
/// room of their own.
const MAX_OUT: i64 = 1000;

/// Records a token.
///
/// # Errors
///
/// [`AuthError::TooManyTokens`] when its creator has too many outstanding.
pub(super) async fn insert(tx: &mut Transaction, row: &TokenRow) -> Result<(), AuthError> {
    let query = Query::new(OUT)
        .bind(row.maker.user)
        .bind(&row.maker.api_key)
        .bind(row.created_us);
    let found: Option<OutOf> = tx.optional(query).await?;
    let OutOf { out, first_us } = found.unwrap_or_default();
    if out >= MAX_OUT {
        let left = u64::try_from(first_us - row.created_us).unwrap_or(0);
        return Err(AuthError::TooManyTokens(Duration::from_micros(left)));
    }
    let insert = Query::new(INSERT)
        .bind(&row.id)
        .bind(&row.spiffe_id)
        .bind(row.maker.user)
        .bind(&row.maker.api_key)
        .bind(row.created_us)
        .bind(row.expires_us)
        .bind(row.revoked);
    Ok(tx.execute(insert).await?.one()?)
}

pub(super) async fn find(tx: &mut Transaction, id: &str) -> Result<Option<TokenRow>, AuthError> {
    Ok(tx.optional(Query::new(FIND).bind(id)).await?)
}

/// Revokes the tokens created for an identity before a moment.
pub(super) async fn revoke(
    tx: &mut Transaction,
    spiffe_id: &str,
    before_us: i64,
) -> Result<(), AuthError> {
    let revoke = Query::new(REVOKE).bind(spiffe_id).bind(before_us);
    tx.execute(revoke).await?.any();
    Ok(())
}
