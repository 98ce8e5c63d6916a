//! API keys: created, rotated with an overlap, revoked for good.

use crate::{
    Auth, AuthError,
    publish::hex,
    store::{self, KeyRow, Secret},
};
use std::time::Duration;
use tars_credentials::{Caller, PERMISSIONS, apikey::ApiKey};
use tars_runtime::{
    audit::{self, Record},
    page,
};
use uuid::Uuid;
use zeroize::Zeroizing;

const DEFAULT_DAYS: u32 = 90;

#[derive(Debug)]
pub struct NewKey {
    pub id: String,
    pub text: Zeroizing<String>,
    pub service_name: String,
    pub created_us: i64,
    pub expires_us: i64,
}

#[derive(Debug, Clone)]
pub struct KeySummary {
    pub id: String,
    pub service_name: String,
    pub owner_id: Uuid,
    pub scopes: Vec<String>,
    pub created_us: i64,
    pub expires_us: i64,
    pub revoked_us: Option<i64>,
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
    pub async fn create_key(
        &self,
        caller: &Caller,
        service_name: &str,
        scopes: Vec<String>,
        days: u32,
    ) -> Result<NewKey, AuthError> {
        // A key never holds more than whoever makes it, so that no key can make a stronger one.
        let unheld =
            |s: &&String| !PERMISSIONS.contains(&s.as_str()) || !caller.permissions.contains(s);
        if let Some(scope) = scopes.iter().find(unheld) {
            return Err(AuthError::Scope(scope.clone()));
        }
        let held = caller.permissions.names().into_iter().map(str::to_owned);
        let scopes = if scopes.is_empty() {
            held.collect()
        } else {
            scopes
        };
        let key = ApiKey::generate();
        let days = if days == 0 { DEFAULT_DAYS } else { days };
        let created_us = self.clock.now_us();
        let row = KeyRow {
            id: key.id.clone(),
            service_name: service_name.to_owned(),
            owner_id: Uuid::try_parse(&caller.owner_id)
                .map_err(|_| AuthError::InvalidCredentials)?,
            scopes,
            secrets: vec![Secret {
                sha256: hex(&key.hash),
                expires_us: None,
            }],
            created_us,
            expires_us: created_us + i64::from(days) * 86_400_000_000,
            revoked_us: None,
            version: 1,
        };
        let record = Record::new(&self.clock, "auth", "api_key.created")
            .caller(caller.label.clone())
            .resource(&key.id)
            .detail("service_name", service_name)
            .detail("scopes", row.scopes.join(","));
        let mut tx = self.store.begin("api_keys.create").await?;
        store::insert_key(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_key(&row);
        Ok(NewKey {
            id: key.id,
            text: key.text,
            service_name: row.service_name,
            created_us,
            expires_us: row.expires_us,
        })
    }

    pub async fn list_keys(
        &self,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<KeySummary>, String), AuthError> {
        let size = page::size(page_size);
        let before = parse_token(token).ok_or(AuthError::PageToken("page_token"))?;
        let rows = self.store.keys((before.0, &before.1), size + 1).await?;
        let (rows, next) = page::cut(rows, size, |k| format!("{}_{}", k.created_us, k.id));
        Ok((rows.into_iter().map(KeySummary::from).collect(), next))
    }

    /// A new secret; the old ones end now or after the overlap.
    pub async fn rotate_key(
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
        let row = self
            .change_key(id, record, |row| {
                if row.revoked_us.is_some() {
                    return Err(AuthError::KeyRevoked);
                }
                // The newest old secret overlaps; older overlaps end early.
                row.secrets
                    .retain(|s| s.expires_us.is_none() && !overlap.is_zero());
                for old in &mut row.secrets {
                    old.expires_us = Some(ends);
                }
                row.secrets.insert(
                    0,
                    Secret {
                        sha256: hex(&key.hash),
                        expires_us: None,
                    },
                );
                Ok(())
            })
            .await?;
        Ok(NewKey {
            id: key.id,
            text: key.text,
            service_name: row.service_name,
            created_us: row.created_us,
            expires_us: row.expires_us,
        })
    }

    /// Revoking twice is the same as once.
    pub async fn revoke_key(
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
            row.revoked_us.get_or_insert(now_us);
            row.secrets.clear();
            Ok(())
        })
        .await?;
        Ok(())
    }

    async fn change_key(
        &self,
        id: &str,
        record: Record,
        change: impl FnOnce(&mut KeyRow) -> Result<(), AuthError>,
    ) -> Result<KeyRow, AuthError> {
        let mut tx = self.store.begin("api_keys.change").await?;
        let found = store::key_in(&mut tx, id).await?;
        let mut row = found.ok_or_else(|| AuthError::NotFound("API key", id.to_owned()))?;
        change(&mut row)?;
        row.version += 1;
        store::update_key(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        self.publish_key(&row);
        Ok(row)
    }
}

fn parse_token(token: &str) -> Option<(i64, String)> {
    if token.is_empty() {
        return Some((i64::MAX, String::new()));
    }
    let (at, id) = token.split_once('_')?;
    Some((at.parse().ok()?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tars_credentials::{Credential, Permissions, View};
    use tars_runtime::{clock::Clock, config::Credentials};

    async fn auth(dir: &std::path::Path) -> (Arc<Auth>, Clock, View, Caller) {
        let (clock, view) = (
            Clock::manual(Duration::from_secs(1_800_000_000)),
            View::default(),
        );
        let (auth, _) = Auth::open(
            dir,
            Credentials::default(),
            clock.clone(),
            view.clone(),
            crate::certificates::tests::certificates(dir, &clock),
        )
        .await
        .unwrap();
        let owner = auth
            .create_user("t", "dev", "a long password", vec!["developer".into()])
            .await
            .unwrap();
        let caller = Caller {
            owner_id: owner.id.to_string(),
            username: "dev".into(),
            roles: owner.roles,
            permissions: Permissions::of(["studies.read", "agents.read", "apikeys.write"]),
            credential: Credential::Session { id: "s".into() },
            label: "user:dev".into(),
            version: 1,
            expires_s: u64::MAX,
        };
        (auth, clock, view, caller)
    }

    #[tokio::test]
    async fn a_revoked_key_never_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, caller) = auth(dir.path()).await;
        let key = auth.create_key(&caller, "svc", vec![], 0).await.unwrap();
        assert!(view.check_api_key(&key.text, clock.now_s()).is_some());
        auth.revoke_key(&caller, &key.id, "lost").await.unwrap();
        auth.revoke_key(&caller, &key.id, "again").await.unwrap();
        assert!(view.check_api_key(&key.text, clock.now_s()).is_none());
        auth.create_key(&caller, "svc", vec![], 0).await.unwrap();
        assert!(
            view.check_api_key(&key.text, clock.now_s()).is_none(),
            "a new key of the same name"
        );
        assert!(matches!(
            auth.rotate_key(&caller, &key.id, Duration::ZERO).await,
            Err(AuthError::KeyRevoked)
        ));
        auth.publish_all().await.unwrap();
        assert!(
            view.check_api_key(&key.text, clock.now_s()).is_none(),
            "after a whole view"
        );
    }

    #[tokio::test]
    async fn rotation_keeps_the_new_secret_and_ends_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, caller) = auth(dir.path()).await;
        let old = auth.create_key(&caller, "svc", vec![], 0).await.unwrap();
        let new = auth
            .rotate_key(&caller, &old.id, Duration::from_secs(60))
            .await
            .unwrap();
        assert!(view.check_api_key(&old.text, clock.now_s()).is_some());
        assert!(view.check_api_key(&new.text, clock.now_s()).is_some());
        clock.advance(Duration::from_secs(60));
        assert!(view.check_api_key(&old.text, clock.now_s()).is_none());
        let last = auth
            .rotate_key(&caller, &old.id, Duration::ZERO)
            .await
            .unwrap();
        assert!(view.check_api_key(&new.text, clock.now_s()).is_none());
        assert!(view.check_api_key(&last.text, clock.now_s()).is_some());
    }

    #[tokio::test]
    async fn a_key_never_holds_more_than_its_maker() {
        let dir = tempfile::tempdir().unwrap();
        let (auth, clock, view, caller) = auth(dir.path()).await;
        for scope in ["users.write", "studies.write", "nothing", ""] {
            let refused = auth.create_key(&caller, "svc", vec![scope.into()], 0).await;
            assert!(matches!(refused, Err(AuthError::Scope(_))), "{scope}");
        }
        let key = auth.create_key(&caller, "svc", vec![], 0).await.unwrap();
        let holder = view.check_api_key(&key.text, clock.now_s()).unwrap();
        assert_eq!(
            holder.permissions.names(),
            ["agents.read", "studies.read"],
            "and its role lacks apikeys.write"
        );
        auth.set_disabled("t", "dev", true).await.unwrap();
        assert!(view.check_api_key(&key.text, clock.now_s()).is_none());
    }
}
