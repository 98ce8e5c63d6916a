//! The rows of signing keys.

use crate::AuthError;
use tars_runtime::db::{DbError, Fetch, FromRow, Query, Row, Transaction};

/// What a signing key is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// Tokens are signed with it.
    Current,
    /// Tokens that it signed are valid, but it signs no more.
    Grace,
}

impl KeyState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Grace => "grace",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Current, Self::Grace]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct SigningKeyRow {
    pub(crate) kid: String,
    pub(crate) state: KeyState,
    pub(crate) public_x: String,
    pub(crate) private_sealed: Vec<u8>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: Option<i64>,
}

const ALL: &str = "SELECT kid, state, public_x, private_sealed, created_us, expires_us FROM signing_keys \
                   ORDER BY created_us DESC";
const INSERT: &str = "INSERT INTO signing_keys (kid, state, public_x, private_sealed, created_us, expires_us) \
                      VALUES ($1, $2, $3, $4, $5, $6)";

impl FromRow for SigningKeyRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let kid: String = row.get("kid")?;
        Ok(Self {
            state: row
                .named("signing_keys", &kid)
                .word("state", KeyState::parse)?,
            kid,
            public_x: row.get("public_x")?,
            private_sealed: row.get("private_sealed")?,
            created_us: row.get("created_us")?,
            expires_us: row.get("expires_us")?,
        })
    }
}

/// Newest first.
pub(crate) async fn signing_keys(db: &mut impl Fetch) -> Result<Vec<SigningKeyRow>, AuthError> {
    Ok(db.all(Query::new(ALL)).await?)
}

pub(crate) async fn insert_signing_key(
    tx: &mut Transaction,
    row: &SigningKeyRow,
) -> Result<(), AuthError> {
    let insert = Query::new(INSERT)
        .bind(&row.kid)
        .bind(row.state.as_str())
        .bind(&row.public_x)
        .bind(&row.private_sealed)
        .bind(row.created_us)
        .bind(row.expires_us);
    Ok(tx.execute(insert).await?.one()?)
}
