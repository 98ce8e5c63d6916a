//! Login, refresh, logout.
//!
//! A refresh token is used once. Its successor is derived from it with a key that only Auth has, so
//! that a repeat within a few seconds (a lost reply, two tabs) receives the same successor although
//! that is not stored. A later repeat means that two parties hold the token, and ends the session.

use crate::{
    Auth, AuthError,
    horizon::DAY,
    origin::Origin,
    publish::Change,
    store::{self, SessionRow, UserRow},
};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tars_credentials::{Caller, Claims, Credential, grant, token};
use tars_proto::auth::v1::WatchCredentialsResponse;
use tars_runtime::{
    audit::{self, Record, Severity},
    clock::Monotonic,
    db::Swap,
    lease::Fence,
};
use uuid::Uuid;
use zeroize::Zeroizing;

const DAY_US: i64 = 86_400_000_000;
/// How long rows outlive the last token of their session.
const RETENTION: Duration = DAY.saturating_mul(7);
/// The number of ended sessions deleted in one transaction.
const SWEEP: i64 = 200;
/// The interval between searches for ended sessions.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The tokens of a session.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: Zeroizing<String>,
    pub(crate) expires_in_s: u32,
}

impl Auth {
    /// Opens a session for a user who presents their password.
    pub(crate) async fn login(
        &self,
        username: &str,
        password: &str,
        from: &Origin,
    ) -> Result<(UserSummary, Tokens), AuthError> {
        let now = self.clock.monotonic();
        if let Some(wait) = self.own.throttle.wait(username, from.network(), now) {
            return Err(AuthError::Throttled(wait));
        }
        let user = store::user_by_name(&mut self.store.read("users.by_name"), username).await?;
        let stored = user.as_ref().map(|u| u.password.as_str());
        let proven = self
            .own
            .passwords
            .verify(from.network(), password, stored)
            .await?;
        match user.filter(|u| proven && !u.disabled) {
            Some(user) => {
                self.own.throttle.succeeded(username, from.network());
                let tokens = self.open_session(&user, from).await?;
                Ok((UserSummary::from(&user), tokens))
            }
            None => {
                self.record_failed_login(username, from).await?;
                Err(AuthError::InvalidCredentials)
            }
        }
    }

    async fn open_session(&self, user: &UserRow, from: &Origin) -> Result<Tokens, AuthError> {
        let now_us = self.clock.now_us();
        let session = SessionRow {
            id: Uuid::now_v7(),
            user_id: user.id,
            ends_us: now_us + days(self.settings.session_max_days),
            revoked: false,
        };
        let refresh = random_token();
        let record = Record::new(&self.clock, "auth", "auth.login.success")
            .caller(format!("user:{}", user.username))
            .detail("from", from.label());
        let mut tx = self.store.begin("sessions.open").await?;
        // The user may have been disabled, or the password changed, since it was verified. That
        // ended every session, and a new one must not escape it.
        let current = store::user_by_id(&mut *tx, user.id)
            .await?
            .filter(|u| !u.disabled && u.password == user.password);
        let user = current.ok_or(AuthError::InvalidCredentials)?;
        store::insert_session(&mut tx, &session, now_us).await?;
        store::insert_refresh(
            &mut tx,
            &hash(&refresh),
            session.id,
            self.refresh_end(&session),
        )
        .await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.tokens(&user, &session, refresh)
    }

    pub(crate) async fn record_failed_login(
        &self,
        username: &str,
        from: &Origin,
    ) -> Result<(), AuthError> {
        let now = self.clock.monotonic();
        let Some(failed) = self.own.throttle.failed(username, from.network(), now) else {
            return Ok(());
        };
        let name: String = username.chars().take(64).collect();
        let record = Record::new(&self.clock, "auth", "auth.login.failure")
            .severity(Severity::Warning)
            .caller(format!("user:{name}"))
            .result("UNAUTHENTICATED")
            .detail("from", from.label())
            .detail("failures_in_a_row", failed.in_a_row)
            .detail("failures_not_recorded", failed.unwritten);
        let mut tx = self.store.begin("audit.login_failure").await?;
        audit::insert(&mut tx, &record).await?;
        Ok(tx.commit().await?)
    }

    /// Exchanges a refresh token for the next tokens of its session.
    pub(crate) async fn refresh(
        &self,
        presented: &str,
        from: &Origin,
    ) -> Result<Tokens, AuthError> {
        let now_us = self.clock.now_us();
        let presented_hash = hash(presented);
        let mut tx = self.change("sessions.refresh").await?;
        let row = store::refresh(&mut tx, &presented_hash)
            .await?
            .ok_or(AuthError::InvalidCredentials)?;
        let session = store::session(&mut tx, row.session_id)
            .await?
            .ok_or(AuthError::InvalidCredentials)?;
        let user = store::user_by_id(&mut *tx, session.user_id)
            .await?
            .filter(|u| !u.disabled);
        let user = user.ok_or(AuthError::InvalidCredentials)?;
        if session.revoked || session.ends_us <= now_us || row.expires_us <= now_us {
            return Err(AuthError::InvalidCredentials);
        }
        let used = store::use_refresh(&mut tx, &presented_hash, now_us, &from.label()).await?;
        let fresh = used.is_done();
        if fresh {
            self.own.repeats.used(presented_hash, &self.clock);
        }
        let same_client = row.used_by.as_deref() == Some(&from.label());
        let recent = self
            .own
            .repeats
            .is_recent(&presented_hash, row.used_us, &self.clock);
        let lost_reply = same_client && recent;
        if !fresh && !lost_reply {
            return self.end_stolen_session(tx, &session, &user, from).await;
        }
        let successor = self.successor(presented);
        store::insert_refresh(
            &mut tx,
            &hash(&successor),
            session.id,
            self.refresh_end(&session),
        )
        .await?;
        let record = Record::new(&self.clock, "auth", "auth.token.refresh")
            .caller(format!("user:{}", user.username));
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.tokens(&user, &session, successor)
    }

    async fn end_stolen_session(
        &self,
        mut tx: Change,
        session: &SessionRow,
        user: &UserRow,
        from: &Origin,
    ) -> Result<Tokens, AuthError> {
        self.end_session(&mut tx, session.id).await?;
        let record = Record::new(&self.clock, "auth", "auth.token.reuse")
            .severity(Severity::Critical)
            .caller(format!("user:{}", user.username))
            .result("UNAUTHENTICATED")
            .detail("from", from.label())
            .detail("session", session.id);
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        Err(AuthError::InvalidCredentials)
    }

    /// Ends a session everywhere once the transaction commits; `false` when it had already ended.
    async fn end_session(&self, tx: &mut Change, id: Uuid) -> Result<bool, AuthError> {
        let now_us = self.clock.now_us();
        if store::revoke_session(tx, id, now_us).await? == Swap::Lost {
            return Ok(false);
        }
        let item = WatchCredentialsResponse {
            revoked_sessions: vec![self.snapshots.session_view(id, now_us)],
            ..Default::default()
        };
        tx.announce(&item).await?;
        Ok(true)
    }

    /// Ends the session of the caller.
    pub(crate) async fn logout(&self, caller: &Caller) -> Result<(), AuthError> {
        let id = session_of(caller)?;
        let record = Record::new(&self.clock, "auth", "auth.logout").caller(caller.label.clone());
        let mut tx = self.change("sessions.close").await?;
        if self.end_session(&mut tx, id).await? {
            audit::insert(&mut tx, &record).await?;
        }
        tx.commit().await
    }

    /// Deletes sessions and refresh tokens that ended long ago, a few at a time.
    pub(crate) async fn drop_ended_sessions(&self, fence: &Fence) -> Result<(), AuthError> {
        let now = self.clock.monotonic();
        if !self.own.sweep.is_due(now) {
            return Ok(());
        }
        let mut tx = self.store.begin_owned("sessions.drop_ended", fence).await?;
        let past_us = self.horizon.ended_us(RETENTION) - self.snapshots.access_life_us();
        let more = store::drop_ended(&mut tx, past_us, SWEEP).await?;
        tx.commit().await?;
        if !more {
            self.own.sweep.done(now);
        }
        Ok(())
    }

    /// The access token ends with its session at the latest.
    fn tokens(
        &self,
        user: &UserRow,
        session: &SessionRow,
        refresh: Zeroizing<String>,
    ) -> Result<Tokens, AuthError> {
        let now = self.clock.now_s();
        let ends = u64::try_from(session.ends_us / 1_000_000).unwrap_or_default();
        let life = ends
            .saturating_sub(now)
            .min(self.settings.access_token_seconds);
        let claims = Claims {
            iss: token::ISSUER.to_owned(),
            aud: token::AUDIENCE.to_owned(),
            sub: user.id.to_string(),
            sid: session.id.to_string(),
            jti: Uuid::now_v7().to_string(),
            iat: now,
            nbf: now,
            exp: now + life,
            ver: u64::try_from(user.token_version).unwrap_or_default(),
            username: user.username.clone(),
            roles: user.roles.clone(),
        };
        let access = self.signer.sign(&claims)?;
        Ok(Tokens {
            access,
            refresh,
            expires_in_s: u32::try_from(life).unwrap_or(u32::MAX),
        })
    }

    fn refresh_end(&self, session: &SessionRow) -> i64 {
        session
            .ends_us
            .min(self.clock.now_us() + days(self.settings.refresh_token_days))
    }

    fn successor(&self, presented: &str) -> Zeroizing<String> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.refresh_key.as_slice());
        let tag = hmac::sign(&key, presented.as_bytes());
        Zeroizing::new(URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }
}

/// The session of a caller; a key has none.
pub(crate) fn session_of(caller: &Caller) -> Result<Uuid, AuthError> {
    grant::require_session(caller)?;
    match &caller.credential {
        Credential::Session { id } => Uuid::try_parse(id).ok(),
        Credential::ApiKey { .. } => None,
    }
    .ok_or(AuthError::InvalidCredentials)
}

/// When ended sessions were last searched for. Only the replica with the lease of the periodic work does
/// that; one that takes the lease over searches at once.
#[derive(Debug, Default)]
pub(crate) struct Sweep(Mutex<Option<Monotonic>>);

impl Sweep {
    fn is_due(&self, now: Monotonic) -> bool {
        self.0
            .lock()
            .is_none_or(|last| now.since(last) >= SWEEP_EVERY)
    }

    fn done(&self, now: Monotonic) {
        *self.0.lock() = Some(now);
    }
}

fn days(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(DAY_US)
}

fn random_token() -> Zeroizing<String> {
    let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
    Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A user without secrets.
#[derive(Debug, Clone)]
pub(crate) struct UserSummary {
    pub(crate) id: Uuid,
    pub(crate) username: String,
    pub(crate) roles: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) created_us: i64,
}

impl From<&UserRow> for UserSummary {
    fn from(row: &UserRow) -> Self {
        Self {
            id: row.id,
            username: row.username.clone(),
            roles: row.roles.clone(),
            disabled: row.disabled,
            created_us: row.created_us,
        }
    }
}

#[cfg(test)]
mod tests;
