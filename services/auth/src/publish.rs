//! Tells every process what is valid: the own view at once, the others by the watch stream.

use crate::{
    Auth, AuthError, certificates,
    signing::jwk,
    store::{KeyRow, UserRow},
};
use std::collections::HashSet;
use tars_credentials::{TrustFeed, View, permission};
use tars_proto::{
    Timestamp,
    auth::v1::{KeyView, RoleView, SecretView, SessionView, UserView, WatchCredentialsResponse},
    time::timestamp,
};
use tars_runtime::{
    clock::Clock,
    events::{EventLog, Reader, Trimmed},
};
use uuid::Uuid;

/// Deltas kept for watchers that fall behind; past that they get a whole view again.
const KEPT: usize = 4096;
const BATCH: i64 = 500;

#[derive(Debug)]
pub(crate) struct Publisher {
    log: EventLog<WatchCredentialsResponse>,
    view: View,
    feed: TrustFeed,
    clock: Clock,
}

impl Publisher {
    pub(crate) fn new(view: View, feed: TrustFeed, clock: Clock) -> Self {
        Self {
            log: EventLog::new(KEPT),
            view,
            feed,
            clock,
        }
    }

    pub(crate) fn publish(&self, item: WatchCredentialsResponse) {
        self.view.apply(&item, self.clock.now_s());
        self.feed.apply(&item);
        self.log.push(item);
    }

    /// The own view is never stale: it hears of every change before anybody.
    pub(crate) fn heartbeat(&self) {
        self.view
            .apply(&WatchCredentialsResponse::default(), self.clock.now_s());
    }

    pub(crate) fn last(&self) -> u64 {
        self.log.last()
    }

    pub(crate) fn read(&self, after: u64) -> Result<Reader<WatchCredentialsResponse>, Trimmed> {
        self.log.read(after)
    }
}

pub(crate) fn user_view(row: &UserRow) -> UserView {
    UserView {
        user_id: row.id.to_string(),
        username: row.username.clone(),
        roles: row.roles.clone(),
        disabled: row.disabled,
        version: u64::try_from(row.version).unwrap_or_default(),
    }
}

pub(crate) fn key_view(row: &KeyRow) -> KeyView {
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

impl Auth {
    /// Everything that is valid now, as one item that replaces all that was known.
    pub(crate) async fn whole_view(&self) -> Result<WatchCredentialsResponse, AuthError> {
        let sequence = self.publisher.last();
        let (revoked_certificates, revoked_identities) =
            certificates::pushed(&self.all_revocations().await?);
        let roles = permission::default_roles()
            .into_iter()
            .map(|(name, permissions)| RoleView {
                name: name.to_owned(),
                permissions: permissions.iter().map(|p| (*p).to_owned()).collect(),
            });
        Ok(WatchCredentialsResponse {
            sequence,
            reset: true,
            keys: self.store.signing_keys().await?.iter().map(jwk).collect(),
            api_keys: self.all_key_views().await?,
            users: self.all_user_views().await?,
            revoked_sessions: self.revoked_views().await?,
            roles: roles.collect(),
            removed_kids: Vec::new(),
            revoked_certificates,
            revoked_identities,
            bundle: self.certificates().bundle(),
        })
    }

    async fn all_user_views(&self) -> Result<Vec<UserView>, AuthError> {
        let (mut views, mut after) = (Vec::new(), String::new());
        loop {
            let rows = self.store.users(&after, BATCH).await?;
            let Some(last) = rows.last() else {
                return Ok(views);
            };
            after.clone_from(&last.username);
            views.extend(rows.iter().map(user_view));
        }
    }

    async fn all_key_views(&self) -> Result<Vec<KeyView>, AuthError> {
        let (mut views, mut before) = (Vec::new(), (i64::MAX, String::new()));
        loop {
            let rows = self.store.keys((before.0, &before.1), BATCH).await?;
            let Some(last) = rows.last() else {
                return Ok(views);
            };
            before = (last.created_us, last.id.clone());
            views.extend(rows.iter().filter(|k| k.revoked_us.is_none()).map(key_view));
        }
    }

    async fn revoked_views(&self) -> Result<Vec<SessionView>, AuthError> {
        let now = self.clock.now_us();
        let ids: HashSet<Uuid> = self
            .store
            .revoked_sessions(now)
            .await?
            .into_iter()
            .collect();
        Ok(ids.into_iter().map(|id| self.session_view(id)).collect())
    }

    /// A revoked session is remembered until its last access token has expired.
    pub(crate) fn session_view(&self, id: Uuid) -> SessionView {
        let until = self.clock.now_s() + self.settings.access_token_seconds;
        let seconds = i64::try_from(until).unwrap_or(i64::MAX);
        SessionView {
            session_id: id.to_string(),
            expires_at: Some(Timestamp { seconds, nanos: 0 }),
        }
    }

    pub(crate) async fn publish_all(&self) -> Result<(), AuthError> {
        let whole = self.whole_view().await?;
        self.publisher.publish(whole);
        Ok(())
    }

    pub(crate) fn publish_user(&self, row: &UserRow) {
        let item = WatchCredentialsResponse {
            users: vec![user_view(row)],
            ..Default::default()
        };
        self.publisher.publish(item);
    }

    pub(crate) fn publish_key(&self, row: &KeyRow) {
        let item = WatchCredentialsResponse {
            api_keys: vec![key_view(row)],
            ..Default::default()
        };
        self.publisher.publish(item);
    }

    pub(crate) fn publish_revoked_session(&self, id: Uuid) {
        let item = WatchCredentialsResponse {
            revoked_sessions: vec![self.session_view(id)],
            ..Default::default()
        };
        self.publisher.publish(item);
    }
}
