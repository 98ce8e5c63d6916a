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
mod origin;
mod password;
mod periodic;
mod publish;
mod repeats;
mod sessions;
mod signing;
mod snapshot;
mod store;
#[cfg(test)]
mod testing;
mod throttle;
mod users;

pub use api::{bootstrap_routes, routes};
pub use certificates::Certificates;
pub use error::AuthError;
pub(crate) use origin::Origin;
pub use store::MIGRATIONS;

use horizon::Horizon;
use publish::{Change, Publisher};
use signing::Signer;
use snapshot::Snapshots;
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};
use store::Store;
use tars_credentials::{Follower, View};
use tars_runtime::{
    bus::Bus,
    clock::Clock,
    config::Credentials,
    db::{Db, Place},
    health::Condition,
    lease::{Leases, Terms},
    seeds::Seeds,
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

/// The service, without its transport.
#[derive(Debug)]
pub struct Auth {
    store: Store,
    leases: Leases,
    signer: Signer,
    publisher: Arc<Publisher>,
    _publishing: AbortOnDropHandle<()>,
    snapshots: Snapshots,
    horizon: Horizon,
    passwords: password::Passwords,
    throttle: throttle::Throttle,
    repeats: repeats::Repeats,
    refresh_key: Zeroizing<[u8; 32]>,
    sweep: sessions::Sweep,
    certificates: Certificates,
    signed_lists: certificates::SignedLists,
    last_seen: certificates::LastSeen,
    /// Serializes the steps of a root rotation.
    rotating: tokio::sync::Mutex<()>,
    /// A rotation step was taken whose audit record is not written yet.
    step_unrecorded: AtomicBool,
    sequencing: Condition,
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
    /// Opens the service's part of the data directory and its database, and creates the first administrator when
    /// there are no users. Announcing of changes starts at once.
    ///
    /// # Errors
    ///
    /// When the database, a key file or the authority is not usable.
    pub async fn open(
        dir: &Path,
        database: &Place,
        settings: Credentials,
        clock: Clock,
        view: View,
        certificates: Certificates,
        bus: Bus,
    ) -> Result<(Arc<Self>, Option<FirstAdmin>), AuthError> {
        tars_certs::secret::create_dir(dir)?;
        let db = Db::open(database, store::MIGRATIONS).await?;
        let terms = Terms::of(&db, dir)?;
        let leases = Leases::open(db.clone(), terms, clock.clone(), Seeds::system()).await?;
        let store = Store::new(db);
        let seal = signing::load_or_create_key(&dir.join("seal.key"))?;
        let refresh_key = signing::load_or_create_key(&dir.join("refresh.key"))?;
        let signer = Signer::open(&store, &seal, &clock).await?;
        let own = Follower::new(view, certificates.feed.clone());
        let horizon = Horizon::new(clock.clone());
        let snapshots = Snapshots {
            store: store.clone(),
            certificates: certificates.clone(),
            clock: clock.clone(),
            horizon: horizon.clone(),
            access_token_s: settings.access_token_seconds,
        };
        let publisher = Publisher::start(snapshots.clone(), own, bus).await?;
        let publishing = tokio::spawn(Arc::clone(&publisher).run());
        let auth = Arc::new(Self {
            store,
            leases,
            signer,
            publisher,
            _publishing: AbortOnDropHandle::new(publishing),
            snapshots,
            horizon,
            passwords: password::Passwords::new()?,
            throttle: throttle::Throttle::default(),
            repeats: repeats::Repeats::default(),
            refresh_key,
            sweep: sessions::Sweep::default(),
            certificates,
            signed_lists: certificates::SignedLists::default(),
            last_seen: certificates::LastSeen::new(clock.monotonic()),
            rotating: tokio::sync::Mutex::default(),
            step_unrecorded: AtomicBool::new(false),
            sequencing: Condition::new(clock.clone()),
            settings,
            clock,
        });
        let first = auth.create_first_admin().await?;
        auth.repair().await?;
        Ok((auth, first))
    }

    /// Completes what a crash between a file and its row left undone.
    async fn repair(&self) -> Result<(), AuthError> {
        self.record_steps().await?;
        self.restore_floors().await?;
        self.import_journal().await
    }

    async fn create_first_admin(&self) -> Result<Option<FirstAdmin>, AuthError> {
        if store::user_count(&mut self.store.read("users.count")).await? > 0 {
            return Ok(None);
        }
        let password = password::random();
        self.add_user("system", "admin", &password, vec!["admin".to_owned()])
            .await?;
        Ok(Some(FirstAdmin {
            username: "admin".to_owned(),
            password,
        }))
    }

    /// A transaction that may change what is valid.
    async fn change(&self, name: &'static str) -> Result<Change, AuthError> {
        let tx = self.store.begin(name).await?;
        Ok(Change::new(tx, Arc::clone(&self.publisher)))
    }

    /// The health of moving audit records into the log.
    pub fn sequencing(&self) -> &Condition {
        &self.sequencing
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
