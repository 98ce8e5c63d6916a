//! The Auth service: users and sessions, API keys, signing keys, certificates, the audit log, and
//! the watch stream from which every process learns what is valid now.

#![deny(missing_docs)]

mod api;
mod audit;
mod certificates;
mod error;
mod holder;
mod horizon;
mod keys;
mod measured;
mod origin;
mod own;
mod password;
mod periodic;
mod publish;
mod repeats;
#[cfg(test)]
mod replicas;
mod seal;
mod sessions;
mod signing;
mod snapshot;
mod store;
#[cfg(test)]
mod testing;
mod throttle;
mod usage;
mod users;
mod vault;

pub use api::{bootstrap_routes, routes};
pub use certificates::Certificates;
pub use error::AuthError;
pub use measured::Measured;
pub(crate) use origin::Origin;
pub use store::MIGRATIONS;
pub use vault::Vault;

use certificates::SharedAuthority;
use horizon::Horizon;
use own::Own;
use publish::{Change, Publisher};
use signing::Signer;
use snapshot::Snapshots;
use std::sync::Arc;
use store::Store;
use tars_credentials::{Follower, View};
use tars_runtime::{
    bus::Bus,
    clock::Clock,
    config::Credentials,
    db::Db,
    health::Condition,
    lease::{Leases, Terms},
    seeds::Seeds,
};
use tokio_util::task::AbortOnDropHandle;
use vault::RefreshKey;
use zeroize::Zeroizing;

/// The service, without its transport.
#[derive(Debug)]
pub struct Auth {
    store: Store,
    leases: Leases,
    signer: Signer,
    publisher: Arc<Publisher>,
    _publishing: AbortOnDropHandle<()>,
    /// The authority as the replicas share it; `None` when this process has it for itself, or none.
    shared: Option<Arc<SharedAuthority>>,
    _adopting: Option<AbortOnDropHandle<()>>,
    snapshots: Snapshots,
    horizon: Horizon,
    refresh_key: RefreshKey,
    certificates: Certificates,
    own: Own,
    /// The name of this replica; empty on a database that no other process uses.
    replica: String,
    settings: Credentials,
    clock: Clock,
}

/// The administrator that is created when there are no users.
#[derive(Debug)]
pub struct FirstAdmin {
    /// The name to log in with.
    pub username: String,
    /// A generated password. It is stored nowhere but as a hash.
    pub password: Zeroizing<String>,
}

impl Auth {
    /// Opens the service over its database, and creates the first administrator when there are no
    /// users. Announcing of changes starts at once.
    ///
    /// # Errors
    ///
    /// When the database, a key or the authority is not usable.
    pub async fn open(
        vault: Vault,
        settings: Credentials,
        clock: Clock,
        view: View,
        certificates: Certificates,
        bus: Bus,
    ) -> Result<(Arc<Self>, Option<FirstAdmin>), AuthError> {
        let store = vault.store().clone();
        let terms = Terms::of(store.db(), vault.dir())?;
        let replica = name_of(&terms);
        let leases =
            Leases::open(store.db().clone(), terms, clock.clone(), Seeds::system()).await?;
        let signer = Signer::open(&store, vault.seal(), &clock).await?;
        let own = Follower::new(view, certificates.feed.clone());
        let horizon = Horizon::new(clock.clone());
        let refresh_key = vault.refresh_key();
        let shared = SharedAuthority::of(&certificates, vault, bus.clone(), clock.clone());
        let snapshots = Snapshots {
            store: store.clone(),
            certificates: certificates.clone(),
            shared: shared.clone(),
            clock: clock.clone(),
            horizon: horizon.clone(),
            access_token_s: settings.access_token_seconds,
        };
        let publisher = Publisher::start(snapshots.clone(), own, bus).await?;
        let auth = Arc::new(Self {
            store,
            leases,
            signer,
            _publishing: AbortOnDropHandle::new(tokio::spawn(Arc::clone(&publisher).run())),
            publisher,
            _adopting: shared
                .clone()
                .map(|shared| AbortOnDropHandle::new(tokio::spawn(shared.follow()))),
            shared,
            snapshots,
            horizon,
            refresh_key,
            certificates,
            own: Own::new(clock.monotonic(), Condition::new(clock.clone()))?,
            replica,
            settings,
            clock,
        });
        let first = auth.create_first_admin().await?;
        auth.repair().await?;
        Ok((auth, first))
    }

    /// Completes what a crash between a file and its row left undone.
    async fn repair(&self) -> Result<(), AuthError> {
        self.record_late_steps().await?;
        self.restore_floors().await?;
        self.import_journal().await?;
        self.observe_reports().await
    }

    async fn create_first_admin(&self) -> Result<Option<FirstAdmin>, AuthError> {
        if store::user_count(&mut self.store.read("users.count")).await? > 0 {
            return Ok(None);
        }
        let password = password::random();
        let roles = vec!["admin".to_owned()];
        match self.add_user("system", "admin", &password, roles).await {
            Ok(_) => Ok(Some(FirstAdmin {
                username: "admin".to_owned(),
                password,
            })),
            // Another replica that was started at the same time has created it, and has its password.
            Err(AuthError::UserExists(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A transaction that may change what is valid.
    async fn change(&self, name: &'static str) -> Result<Change, AuthError> {
        let tx = self.store.begin(name).await?;
        Ok(Change::new(tx, Arc::clone(&self.publisher)))
    }

    /// The health of moving audit records into the log.
    pub fn sequencing(&self) -> &Condition {
        &self.own.sequencing
    }

    /// The health of the working copy of an authority that replicas share; `None` without one.
    pub fn adopting(&self) -> Option<&Condition> {
        self.shared.as_ref().map(|shared| shared.adopting())
    }

    /// The leases of what one replica does for all.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The database, for the outbox of the audit layer.
    pub fn db(&self) -> &Db {
        self.store.db()
    }
}

/// The name of a replica; empty when it is the only one.
fn name_of(terms: &Terms) -> String {
    match terms {
        Terms::Sole => String::new(),
        Terms::Shared { holder, .. } => holder.clone(),
    }
}
