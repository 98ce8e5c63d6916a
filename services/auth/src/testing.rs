//! Fixtures shared by the tests of several modules.

use crate::{Auth, AuthError, Origin, Vault, certificates::tests::certificates};
use std::{path::Path, sync::Arc, time::Duration};
use tars_credentials::{Caller, Credential, Permissions, View};
use tars_runtime::{bus::Bus, clock::Clock, config::Credentials};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) const PASSWORD: &str = "a long password";

/// Auth over a temporary directory, with a clock that stands still.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) auth: Arc<Auth>,
    pub(crate) clock: Clock,
    pub(crate) view: View,
    /// The password of the first administrator.
    pub(crate) password: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(Duration::from_secs(1_800_000_000));
        let (auth, view, first) = open(dir.path(), &clock).await;
        Self {
            dir,
            auth,
            clock,
            view,
            password: first.unwrap(),
        }
    }

    /// Logs in, and resolves the token against the view.
    pub(crate) async fn login(&self, name: &str, password: &str) -> Caller {
        let (_, tokens) = self.auth.login(name, password, &here()).await.unwrap();
        let checked = self.view.check_token(&tokens.access, self.clock.now_s());
        Caller::clone(&checked.unwrap())
    }

    pub(crate) async fn admin(&self) -> Caller {
        self.login("admin", &self.password).await
    }

    /// Creates a user with a role, and logs in.
    pub(crate) async fn user(&self, name: &str, role: &str) -> Caller {
        let made = self.auth.add_user("t", name, PASSWORD, vec![role.into()]);
        made.await.unwrap();
        self.login(name, PASSWORD).await
    }

    /// The caller that a key authenticates.
    pub(crate) fn by_key(&self, text: &str) -> Option<Caller> {
        self.view.check_api_key(text, self.clock.now_s())
    }

    pub(crate) fn holds(&self, caller: &Caller) -> bool {
        self.view.still_valid(caller, self.clock.now_s())
    }
}

/// Parts of the periodic work, each under a lease of its own.
impl Auth {
    pub(crate) async fn sequence_once(&self) -> Result<(), AuthError> {
        let lease = self.leases.acquire("test").await?.expect("it is free");
        let done = self.sequence_audit(&lease.fence()).await;
        lease.release().await?;
        done
    }

    pub(crate) async fn drop_ended_once(&self) -> Result<(), AuthError> {
        let lease = self.leases.acquire("test").await?.expect("it is free");
        let done = self.drop_ended_sessions(&lease.fence()).await;
        lease.release().await?;
        done
    }
}

pub(crate) async fn open(dir: &Path, clock: &Clock) -> (Arc<Auth>, View, Option<String>) {
    open_on(dir, clock, Bus::local()).await
}

/// Auth whose replicas share a bus.
pub(crate) async fn open_on(
    dir: &Path,
    clock: &Clock,
    bus: Bus,
) -> (Arc<Auth>, View, Option<String>) {
    let place = tars_test_db::place(dir, "auth");
    let vault = Vault::open(dir, &place, None).await.unwrap();
    open_over(vault, dir, clock, bus).await.unwrap()
}

/// Auth over a database, with the authority in a folder of `dir`.
pub(crate) async fn open_over(
    vault: Vault,
    dir: &Path,
    clock: &Clock,
    bus: Bus,
) -> Result<(Arc<Auth>, View, Option<String>), AuthError> {
    let view = View::default();
    let certificates = certificates(&vault, dir, clock).await?;
    let (settings, own) = (Credentials::default(), view.clone());
    let opened = Auth::open(vault, settings, clock.clone(), own, certificates, bus);
    let (auth, first) = opened.await?;
    Ok((auth, view, first.map(|f| f.password.to_string())))
}

pub(crate) fn here() -> Origin {
    Origin::new("p", [10, 0, 0, 1].into())
}

pub(crate) fn elsewhere() -> Origin {
    Origin::new("p", [10, 0, 0, 2].into())
}

/// A made-up caller by session with these permissions.
pub(crate) fn person(permissions: Permissions) -> Caller {
    Caller {
        owner_id: Uuid::nil().to_string(),
        username: "ada".into(),
        roles: vec![],
        permissions,
        credential: Credential::Session {
            id: Uuid::nil().to_string(),
        },
        label: "user:ada".into(),
        version: 1,
        expires_s: u64::MAX,
    }
}
