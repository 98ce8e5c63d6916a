//! API keys: created, rotated with an overlap, revoked for good. [`tars_credentials::grant`]
//! decides whose keys a caller may change, and what a new key may hold.

use crate::{
    Auth, AuthError,
    snapshot::{hex, key_changed},
    store::{self, KeyRow, Secret},
};
use std::time::Duration;
use tars_credentials::{Caller, PERMISSIONS, Permissions, StoredKey, apikey::ApiKey, grant};
use tars_runtime::{
    audit::{self, Record},
    page,
};
use uuid::Uuid;
use zeroize::Zeroizing;

const DEFAULT_DAYS: u32 = 90;
const SECOND_US: i64 = 1_000_000;
const DAY_S: u64 = 86_400;

/// A key as returned to its creator, with its text.
#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) id: String,
    pub(crate) text: Zeroizing<String>,
    pub(crate) service_name: String,
    pub(crate) created_us: i64,
    pub(crate) expires_us: i64,
}

/// A key without its secrets.
#[derive(Debug, Clone)]
pub(crate) struct KeySummary {
    pub(crate) id: String,
    pub(crate) service_name: String,
    pub(crate) owner_id: Uuid,
    pub(crate) scopes: Vec<String>,
    pub(crate) created_us: i64,
    pub(crate) expires_us: i64,
    pub(crate) revoked_us: Option<i64>,
}

impl NewKey {
    fn of(row: KeyRow, key: ApiKey) -> Self {
        Self {
            id: key.id,
            text: key.text,
            service_name: row.service_name,
            created_us: row.created_us,
            expires_us: row.expires_us,
        }
    }
}

impl From<KeyRow> for KeySummary {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            service_name: row.service_name,
            owner_id: row.owner_id,
            scopes: row.scopes,
            created_us: row.created_us,
            expires_us: row.expires_us,
            revoked_us: row.revoked_us,
        }
    }
}

impl Auth {
    /// Creates a key of the caller. Without scopes it gets all that the caller holds; without
    /// `days` it expires after 90.
    pub(crate) async fn create_key(
        &self,
        caller: &Caller,
        service_name: &str,
        scopes: &[String],
        days: Option<u32>,
    ) -> Result<NewKey, AuthError> {
        // Scopes are stored even when none were requested, so that later grants to the owner do not
        // widen the key.
        let scopes = grant::new_key(caller, requested_scopes(scopes)?)?;
        let key = ApiKey::generate();
        let row = KeyRow {
            id: key.id.clone(),
            service_name: service_name.to_owned(),
            owner_id: Uuid::try_parse(&caller.owner_id)
                .map_err(|_| AuthError::InvalidCredentials)?,
            scopes: scopes.names().into_iter().map(str::to_owned).collect(),
            secrets: vec![Secret {
                sha256: hex(&key.hash),
                expires_us: None,
            }],
            created_us: self.clock.now_us(),
            expires_us: self.key_end_us(caller, days)?,
            revoked_us: None,
            version: 1,
        };
        let record = Record::new(&self.clock, "auth", "api_key.created")
            .caller(caller.label.clone())
            .resource(&key.id)
            .detail("service_name", service_name)
            .detail("scopes", row.scopes.join(","));
        let mut tx = self.change("api_keys.create").await?;
        store::insert_key(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.announce(&key_changed(&row)).await?;
        tx.commit().await?;
        Ok(NewKey::of(row, key))
    }

    fn key_end_us(&self, caller: &Caller, days: Option<u32>) -> Result<i64, AuthError> {
        let at = |days: u32| self.clock.now_s() + u64::from(days) * DAY_S;
        let end_s = grant::new_key_end(caller, days.map(at), at(DEFAULT_DAYS))?;
        Ok(i64::try_from(end_s)
            .unwrap_or(i64::MAX)
            .saturating_mul(SECOND_US))
    }

    /// Lists keys, newest first, with the token of the next page.
    pub(crate) async fn list_keys(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<KeySummary>, String), AuthError> {
        let size = page::size(page_size);
        let before = page::start_before(token)?;
        let mut db = self.store.read("api_keys.list");
        let rows = store::keys(&mut db, (before.0, &before.1), size).await?;
        let (rows, next) = rows.cut(|k| format!("{}_{}", k.created_us, k.id));
        Ok((rows.into_iter().map(KeySummary::from).collect(), next))
    }

    /// Replaces the secret. The old secrets expire now, or after the overlap.
    pub(crate) async fn rotate_key(
        &self,
        caller: &Caller,
        id: &str,
        overlap: Duration,
    ) -> Result<NewKey, AuthError> {
        let key = ApiKey::with_id(id);
        let now_us = self.clock.now_us();
        let ends = now_us + i64::try_from(overlap.as_micros()).unwrap_or(0);
        let record = Record::new(&self.clock, "auth", "api_key.rotated")
            .caller(caller.label.clone())
            .resource(id);
        let secret = Secret {
            sha256: hex(&key.hash),
            expires_us: None,
        };
        let row = self
            .change_key(id, record, |row| {
                grant::rotate_key(caller, &stored(row))?;
                if row.revoked_us.is_some() {
                    return Err(AuthError::KeyRevoked);
                }
                rotate(row, secret, (!overlap.is_zero()).then_some(ends));
                Ok(true)
            })
            .await?;
        Ok(NewKey::of(row, key))
    }

    /// Revokes a key. Revoking it again has no effect.
    pub(crate) async fn revoke_key(
        &self,
        caller: &Caller,
        id: &str,
        reason: &str,
    ) -> Result<(), AuthError> {
        let now_us = self.clock.now_us();
        let record = Record::new(&self.clock, "auth", "api_key.revoked")
            .caller(caller.label.clone())
            .resource(id)
            .detail("reason", reason);
        self.change_key(id, record, |row| {
            grant::revoke_key(caller, &stored(row))?;
            if row.revoked_us.is_some() {
                return Ok(false);
            }
            row.revoked_us = Some(now_us);
            row.secrets.clear();
            Ok(true)
        })
        .await?;
        Ok(())
    }

    /// Applies a change with its audit record and announcement in one transaction, if `change`
    /// returns `true`.
    async fn change_key(
        &self,
        id: &str,
        record: Record,
        change: impl FnOnce(&mut KeyRow) -> Result<bool, AuthError>,
    ) -> Result<KeyRow, AuthError> {
        let mut tx = self.change("api_keys.change").await?;
        let found = store::key_in(&mut *tx, id).await?;
        let mut row = found.ok_or_else(|| AuthError::NotFound("API key", id.to_owned()))?;
        if !change(&mut row)? {
            return Ok(row);
        }
        row.version += 1;
        store::update_key(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.announce(&key_changed(&row)).await?;
        tx.commit().await?;
        Ok(row)
    }
}

/// Adds a new secret. The newest old one overlaps until `ends`; earlier overlaps end now.
fn rotate(row: &mut KeyRow, secret: Secret, ends: Option<i64>) {
    row.secrets
        .retain(|s| s.expires_us.is_none() && ends.is_some());
    for old in &mut row.secrets {
        old.expires_us = ends;
    }
    row.secrets.insert(0, secret);
}

/// The requested scopes; `None` when there are none.
fn requested_scopes(scopes: &[String]) -> Result<Option<Permissions>, AuthError> {
    if let Some(unknown) = scopes.iter().find(|s| !PERMISSIONS.contains(&s.as_str())) {
        return Err(AuthError::UnknownScope(unknown.clone()));
    }
    let asked = Permissions::of(scopes.iter().map(String::as_str));
    Ok((!scopes.is_empty()).then_some(asked))
}

fn stored(row: &KeyRow) -> StoredKey {
    StoredKey {
        id: row.id.clone(),
        owner_id: row.owner_id.to_string(),
        scopes: Permissions::of(row.scopes.iter().map(String::as_str)),
        expires_s: u64::try_from(row.expires_us / SECOND_US).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
