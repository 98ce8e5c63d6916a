//! Login, refresh, logout.
//!
//! A refresh token is used once. Its successor is derived from it with a key that only Auth has,
//! so that a repeat within a few seconds (a lost reply, two tabs) can be given the *same* successor
//! without storing it. Any later repeat means that two parties hold the token: the session ends.

use crate::{
    Auth, AuthError,
    store::{self, SessionRow, UserRow},
};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use tars_credentials::{Caller, Claims, Credential, token};
use tars_runtime::audit::{self, Record, Severity};
use uuid::Uuid;
use zeroize::Zeroizing;

const DAY_US: i64 = 86_400_000_000;

#[derive(Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: Zeroizing<String>,
    pub expires_in_s: u32,
}

/// Where a call comes from: the peer and the client behind it.
#[derive(Debug, Clone)]
pub struct Origin {
    pub peer: String,
    pub address: String,
}

impl Origin {
    fn label(&self) -> String {
        format!("{} {}", self.peer, self.address)
    }
}

impl Auth {
    pub async fn login(
        &self,
        username: &str,
        password: &str,
        from: &Origin,
    ) -> Result<(UserSummary, Tokens), AuthError> {
        let now = self.clock.monotonic();
        if let Some(wait) = self.throttle.wait(username, &from.address, now) {
            return Err(AuthError::Throttled(wait));
        }
        let user = self.store.user(username).await?;
        let stored = user.as_ref().map(|u| u.password.as_str());
        let proven = self.passwords.verify(password, stored).await?;
        match user.filter(|u| proven && !u.disabled) {
            Some(user) => {
                self.throttle.succeeded(username, &from.address);
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
        // The user may have been disabled since the password was looked at.
        let current = store::user_by_id(&mut tx, user.id)
            .await?
            .filter(|u| !u.disabled);
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
        self.tokens(&user, session.id, refresh)
    }

    /// The first of a row is recorded at once, then each power of two: a guesser cannot fill the
    /// log, and the count is not lost.
    async fn record_failed_login(&self, username: &str, from: &Origin) -> Result<(), AuthError> {
        let count = self
            .throttle
            .failed(username, &from.address, self.clock.monotonic());
        if !count.is_power_of_two() {
            return Ok(());
        }
        let name: String = username.chars().take(64).collect();
        let record = Record::new(&self.clock, "auth", "auth.login.failure")
            .severity(Severity::Warning)
            .caller(format!("user:{name}"))
            .result("UNAUTHENTICATED")
            .detail("from", from.label())
            .detail("failures_in_a_row", count);
        let mut tx = self.store.begin("audit.login_failure").await?;
        audit::insert(&mut tx, &record).await?;
        Ok(tx.commit().await?)
    }

    pub async fn refresh(&self, presented: &str, from: &Origin) -> Result<Tokens, AuthError> {
        let now_us = self.clock.now_us();
        let presented_hash = hash(presented);
        let mut tx = self.store.begin("sessions.refresh").await?;
        let row = store::refresh(&mut tx, &presented_hash)
            .await?
            .ok_or(AuthError::InvalidCredentials)?;
        let session = store::session(&mut tx, row.session_id)
            .await?
            .ok_or(AuthError::InvalidCredentials)?;
        let user = store::user_by_id(&mut tx, session.user_id)
            .await?
            .filter(|u| !u.disabled);
        let user = user.ok_or(AuthError::InvalidCredentials)?;
        if session.revoked || session.ends_us <= now_us || row.expires_us <= now_us {
            return Err(AuthError::InvalidCredentials);
        }
        let fresh = store::use_refresh(&mut tx, &presented_hash, now_us, &from.label()).await?;
        if fresh {
            self.repeats.used(presented_hash, &self.clock);
        }
        let same_client = row.used_by.as_deref() == Some(&from.label());
        let recent = self
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
        self.tokens(&user, session.id, successor)
    }

    async fn end_stolen_session(
        &self,
        mut tx: tars_runtime::db::Write,
        session: &SessionRow,
        user: &UserRow,
        from: &Origin,
    ) -> Result<Tokens, AuthError> {
        store::revoke_session(&mut tx, session.id).await?;
        let record = Record::new(&self.clock, "auth", "auth.token.reuse")
            .severity(Severity::Critical)
            .caller(format!("user:{}", user.username))
            .result("UNAUTHENTICATED")
            .detail("from", from.label())
            .detail("session", session.id);
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_revoked_session(session.id);
        Err(AuthError::InvalidCredentials)
    }

    pub async fn logout(&self, caller: &Caller) -> Result<(), AuthError> {
        let Credential::Session { id } = &caller.credential else {
            return Ok(());
        };
        let id = Uuid::try_parse(id).map_err(|_| AuthError::InvalidCredentials)?;
        let record = Record::new(&self.clock, "auth", "auth.logout").caller(caller.label.clone());
        let mut tx = self.store.begin("sessions.close").await?;
        store::revoke_session(&mut tx, id).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_revoked_session(id);
        Ok(())
    }

    fn tokens(
        &self,
        user: &UserRow,
        session: Uuid,
        refresh: Zeroizing<String>,
    ) -> Result<Tokens, AuthError> {
        let now = self.clock.now_s();
        let life = self.settings.access_token_seconds;
        let claims = Claims {
            iss: token::ISSUER.to_owned(),
            aud: token::AUDIENCE.to_owned(),
            sub: user.id.to_string(),
            sid: session.to_string(),
            jti: Uuid::now_v7().to_string(),
            iat: now,
            nbf: now,
            exp: now + life,
            ver: u64::try_from(user.version).unwrap_or_default(),
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

/// A user without anything secret.
#[derive(Debug, Clone)]
pub struct UserSummary {
    pub id: Uuid,
    pub username: String,
    pub roles: Vec<String>,
    pub disabled: bool,
    pub created_us: i64,
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
mod tests {
    use super::*;
    use std::{sync::Arc, time::Duration};
    use tars_credentials::View;
    use tars_runtime::{clock::Clock, config::Credentials};

    async fn auth(dir: &std::path::Path) -> (Arc<Auth>, Clock, View, Zeroizing<String>) {
        let (clock, view) = (
            Clock::manual(Duration::from_secs(1_800_000_000)),
            View::default(),
        );
        let (auth, first) = Auth::open(
            dir,
            Credentials::default(),
            clock.clone(),
            view.clone(),
            crate::certificates::tests::certificates(dir, &clock),
        )
        .await
        .unwrap();
        (auth, clock, view, first.unwrap().password)
    }

    fn from() -> Origin {
        Origin {
            peer: "p".into(),
            address: "a".into(),
        }
    }

    #[tokio::test]
    async fn every_failed_login_gets_the_same_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, _, view, password) = auth(dir.path()).await;
        let (user, tokens) = auth.login("admin", &password, &from()).await.unwrap();
        assert_eq!(user.roles, ["admin"]);
        assert_eq!(
            view.check_token(&tokens.access, auth.clock.now_s())
                .unwrap()
                .username,
            "admin"
        );
        for (name, word) in [
            ("admin", "wrong"),
            ("nobody", password.as_str()),
            ("Admin", &password),
            ("", ""),
        ] {
            let refused = auth.login(name, word, &from()).await.unwrap_err();
            assert!(matches!(refused, AuthError::InvalidCredentials), "{name}");
        }
    }

    #[tokio::test]
    async fn guessing_is_slowed_for_the_guesser_only() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, _, password) = auth(dir.path()).await;
        for _ in 0..5 {
            auth.login("admin", "guess", &from()).await.unwrap_err();
        }
        let waiting = auth.login("admin", &password, &from()).await.unwrap_err();
        assert!(matches!(waiting, AuthError::Throttled(_)));
        let elsewhere = Origin {
            address: "b".into(),
            ..from()
        };
        assert!(auth.login("admin", &password, &elsewhere).await.is_ok());
        clock.advance(Duration::from_secs(1));
        assert!(auth.login("admin", &password, &from()).await.is_ok());
    }

    #[tokio::test]
    async fn a_step_of_the_wall_neither_locks_out_nor_lets_in() {
        let hour = Duration::from_secs(3600);
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, _, password) = auth(dir.path()).await;
        for _ in 0..5 {
            auth.login("admin", "guess", &from()).await.unwrap_err();
        }
        for step in [Clock::step_forward, Clock::step_back, Clock::step_back] {
            step(&clock, hour);
            let waiting = auth.login("admin", &password, &from()).await;
            assert!(matches!(waiting, Err(AuthError::Throttled(_))));
        }
        clock.advance(Duration::from_secs(1));
        let (_, first) = auth.login("admin", &password, &from()).await.unwrap();
        let second = auth.refresh(&first.refresh, &from()).await.unwrap();
        clock.step_forward(hour);
        let repeat = auth.refresh(&first.refresh, &from()).await.unwrap();
        assert_eq!(second.refresh, repeat.refresh, "a lost reply, not a thief");
        clock.step_back(hour * 2);
        clock.advance(Duration::from_secs(11));
        assert!(
            auth.refresh(&first.refresh, &from()).await.is_err(),
            "a late repeat is theft, however early the wall says it is"
        );
    }

    #[tokio::test]
    async fn a_repeated_refresh_gets_the_same_successor_and_a_late_one_ends_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, password) = auth(dir.path()).await;
        let (_, first) = auth.login("admin", &password, &from()).await.unwrap();
        let second = auth.refresh(&first.refresh, &from()).await.unwrap();
        let repeat = auth.refresh(&first.refresh, &from()).await.unwrap();
        assert_eq!(second.refresh, repeat.refresh);
        assert_ne!(first.refresh, second.refresh);
        let third = auth.refresh(&second.refresh, &from()).await.unwrap();
        clock.advance(Duration::from_secs(11));
        assert!(
            auth.refresh(&first.refresh, &from()).await.is_err(),
            "a late repeat is theft"
        );
        assert!(
            auth.refresh(&third.refresh, &from()).await.is_err(),
            "the whole family ended"
        );
        assert!(view.check_token(&third.access, clock.now_s()).is_err());
    }

    #[tokio::test]
    async fn a_repeat_from_another_client_ends_the_session_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, _, _, password) = auth(dir.path()).await;
        let (_, first) = auth.login("admin", &password, &from()).await.unwrap();
        let second = auth.refresh(&first.refresh, &from()).await.unwrap();
        let thief = Origin {
            address: "elsewhere".into(),
            ..from()
        };
        assert!(auth.refresh(&first.refresh, &thief).await.is_err());
        assert!(auth.refresh(&second.refresh, &from()).await.is_err());
    }

    #[tokio::test]
    async fn parallel_refreshes_make_one_successor() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, _, _, password) = auth(dir.path()).await;
        let (_, first) = auth.login("admin", &password, &from()).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (auth, token) = (Arc::clone(&auth), first.refresh.clone());
            tasks.spawn(async move { auth.refresh(&token, &from()).await.unwrap().refresh });
        }
        let all = tasks.join_all().await;
        assert!(all.windows(2).all(|w| w[0] == w[1]));
    }

    #[tokio::test]
    async fn logout_and_disabling_end_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, password) = auth(dir.path()).await;
        let (_, tokens) = auth.login("admin", &password, &from()).await.unwrap();
        let caller = view.check_token(&tokens.access, clock.now_s()).unwrap();
        auth.logout(&caller).await.unwrap();
        assert!(view.check_token(&tokens.access, clock.now_s()).is_err());
        assert!(auth.refresh(&tokens.refresh, &from()).await.is_err());

        auth.create_user("t", "dev", "a long password", vec!["developer".into()])
            .await
            .unwrap();
        let (_, tokens) = auth.login("dev", "a long password", &from()).await.unwrap();
        auth.set_disabled("t", "dev", true).await.unwrap();
        assert!(view.check_token(&tokens.access, clock.now_s()).is_err());
        assert!(auth.login("dev", "a long password", &from()).await.is_err());
        assert!(auth.refresh(&tokens.refresh, &from()).await.is_err());
        auth.set_disabled("t", "dev", false).await.unwrap();
        assert!(
            auth.refresh(&tokens.refresh, &from()).await.is_err(),
            "old sessions stay ended"
        );
    }

    #[tokio::test]
    async fn what_was_ended_stays_ended_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, password) = auth(dir.path()).await;
        let (_, tokens) = auth.login("admin", &password, &from()).await.unwrap();
        let caller = view.check_token(&tokens.access, clock.now_s()).unwrap();
        auth.logout(&caller).await.unwrap();
        auth.store.db().close().await;
        let view = View::default();
        let (again, first) = Auth::open(
            dir.path(),
            Credentials::default(),
            clock.clone(),
            view.clone(),
            crate::certificates::tests::certificates(dir.path(), &clock),
        )
        .await
        .unwrap();
        assert!(first.is_none(), "one administrator is enough");
        assert!(view.check_token(&tokens.access, clock.now_s()).is_err());
        assert!(again.login("admin", &password, &from()).await.is_ok());
    }
}
