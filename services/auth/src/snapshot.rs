//! Snapshots of everything that is valid now, which replace the state of a follower, and the same
//! objects as changes.
//!
//! A snapshot is read in one transaction together with the number of the last change: it is the
//! state after exactly that change. It includes what ended recently, so that a step of the wall
//! clock does not leave out what has not ended.

use crate::{
    AuthError,
    certificates::{self, Certificates, SharedAuthority},
    horizon::{DAY, Horizon},
    signing::jwk,
    store::{self, KeyRow, RevokedRow, Store, UserRow},
};
use std::sync::Arc;
use tars_credentials::{Permissions, permission};
use tars_proto::{
    Timestamp,
    auth::v1::{KeyView, RoleView, SecretView, SessionView, UserView, WatchCredentialsResponse},
    time::timestamp,
};
use tars_runtime::clock::Clock;
use uuid::Uuid;

/// Clocks may disagree, and a token is accepted for a while past its end.
const LEEWAY_S: u64 = 2 * tars_credentials::token::LEEWAY_S;

/// What snapshots are made from.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    pub(crate) store: Store,
    pub(crate) certificates: Certificates,
    pub(crate) shared: Option<Arc<SharedAuthority>>,
    pub(crate) clock: Clock,
    pub(crate) horizon: Horizon,
    pub(crate) access_token_s: u64,
}

impl Snapshots {
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) async fn take(&self) -> Result<WatchCredentialsResponse, AuthError> {
        let mut db = self.store.db().snapshot("credentials.snapshot").await?;
        // The first statement determines the state that the others read.
        let sequence = store::last_change(&mut db).await?;
        if let Some(shared) = &self.shared {
            shared.refresh(&mut db).await?;
        }
        let past_us = self.horizon.ended_us(DAY);
        let users = store::all_users(&mut db).await?;
        let keys = store::live_keys(&mut db, past_us).await?;
        let sessions = store::revoked_sessions(&mut db, past_us - self.access_life_us()).await?;
        let signing = store::signing_keys(&mut db).await?;
        let revocations =
            certificates::store::in_force(&mut db, self.horizon.ended_us(certificates::RETENTION))
                .await?;
        drop(db);
        let (revoked_certificates, revoked_identities) = certificates::pushed(&revocations);
        let ended = |row: RevokedRow| self.session_view(row.id, row.ended_us);
        Ok(WatchCredentialsResponse {
            sequence,
            reset: true,
            keys: signing.iter().map(jwk).collect(),
            api_keys: keys.iter().map(key_view).collect(),
            users: users.iter().map(user_view).collect(),
            revoked_sessions: sessions.into_iter().map(ended).collect(),
            roles: role_views(),
            removed_kids: Vec::new(),
            revoked_certificates,
            revoked_identities,
            bundle: self.certificates.bundle(),
        })
    }

    pub(crate) fn access_life_us(&self) -> i64 {
        let seconds = self.access_token_s.saturating_add(LEEWAY_S);
        i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
    }

    /// An ended session, remembered until its last access token has expired.
    pub(crate) fn session_view(&self, id: Uuid, ended_us: i64) -> SessionView {
        let until_us = ended_us.saturating_add(self.access_life_us());
        SessionView {
            session_id: id.to_string(),
            expires_at: Some(Timestamp {
                seconds: until_us.div_euclid(1_000_000),
                nanos: 0,
            }),
        }
    }
}

fn role_views() -> Vec<RoleView> {
    let view = |(name, held): (&str, Permissions)| RoleView {
        name: name.to_owned(),
        permissions: held.names().into_iter().map(str::to_owned).collect(),
    };
    permission::default_roles().map(view).collect()
}

fn user_view(row: &UserRow) -> UserView {
    let count = |n: i64| u64::try_from(n).unwrap_or_default();
    UserView {
        user_id: row.id.to_string(),
        username: row.username.clone(),
        roles: row.roles.clone(),
        disabled: row.disabled,
        version: count(row.token_version),
        revision: count(row.version),
        kept_session: row
            .kept_session
            .map(|id| id.to_string())
            .unwrap_or_default(),
    }
}

fn key_view(row: &KeyRow) -> KeyView {
    let secrets = row.secrets.iter().map(|s| SecretView {
        sha256: unhex(&s.sha256),
        expires_at: s.expires_us.map(timestamp),
    });
    KeyView {
        key_id: row.id.clone(),
        secrets: secrets.collect(),
        owner_id: row.owner_id.to_string(),
        scopes: row.scopes.clone(),
        expires_at: Some(timestamp(row.expires_us)),
        revoked: row.revoked_us.is_some(),
        revision: u64::try_from(row.version).unwrap_or_default(),
    }
}

/// The change of a user.
pub(crate) fn user_changed(row: &UserRow) -> WatchCredentialsResponse {
    WatchCredentialsResponse {
        users: vec![user_view(row)],
        ..Default::default()
    }
}

/// The change of a key.
pub(crate) fn key_changed(row: &KeyRow) -> WatchCredentialsResponse {
    WatchCredentialsResponse {
        api_keys: vec![key_view(row)],
        ..Default::default()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |at| {
        text.get(at..at + 2)
            .and_then(|p| u8::from_str_radix(p, 16).ok())
    };
    (0..text.len()).step_by(2).filter_map(pair).collect()
}
