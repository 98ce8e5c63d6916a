//! The built-in certificate authority. Each root can be taken offline; short-lived intermediates
//! below it sign the leaves.
//!
//! Where replicas of Auth share it, its directory is a working copy of what their database holds
//! ([`Authority::open_copy`]), and is not changed by itself. Files in its directory:
//!
//! - `ca.json`: the state of each root, and every rotation step that led there;
//! - `bundle.crt`: the roots that are trusted now;
//! - `join.key`: authenticates join tokens;
//! - `issued/`: certificates that Auth has not imported into its list yet;
//! - `root-N/`, one per root: `root.crt`, `root.key`, `intermediate-*.crt`, `intermediate-*.key`.
//!
//! Without `root.key`, leaves can be issued until the newest intermediate expires.

mod contents;
mod copy;
pub mod csr;
mod error;
mod generation;
pub mod journal;
mod leaf;
mod lists;
mod pem;
mod profile;
pub mod rotation;

use crate::{CertName, KeyId, Revocations, SpiffeId, peer::Verified};
pub use contents::Contents;
pub use error::CaError;
pub(crate) use error::file;
use error::unusable;
use generation::Generation;
use journal::{Entry, Journal};
pub use leaf::{Issued, ManagedBy, Request};
use parking_lot::{Mutex, RwLock};
use pem::RootContents;
pub use profile::BACKDATE;
use profile::serial;
use rcgen::{KeyPair, PublicKeyData};
use rotation::{Ledger, RootState, RotationStep};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_secs(86_400);

/// Lifetimes of the authority's own certificates.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Of a root; 3650 days by default.
    pub root: Duration,
    /// Of an intermediate; 30 days by default. It is replaced after two thirds of that.
    pub intermediate: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            root: DAY * 3650,
            intermediate: DAY * 30,
        }
    }
}

/// The public state of a root.
#[derive(Debug, Clone)]
pub struct RootInfo {
    /// Numbers the roots from 1; a number is never used twice.
    pub generation: u32,
    /// Its place in the rotation.
    pub state: RootState,
    /// The hash of its public key.
    pub key: KeyId,
    /// Its distinguished name.
    pub subject: String,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Start of its validity, since the Unix epoch.
    pub not_before: Duration,
    /// End of its validity, since the Unix epoch.
    pub not_after: Duration,
    /// Whether its private key is in the authority's directory.
    pub online: bool,
}

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    roots: Vec<Generation>,
    /// The version of the contents that a working copy holds; `None` for an authority that is not one.
    copy_of: Option<u64>,
}

/// A certificate authority over a directory. It holds no lock on the directory; each file is
/// replaced atomically.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    lives: Lifetimes,
    trust_domain: String,
    join_key: Zeroizing<Vec<u8>>,
    inner: RwLock<Inner>,
    /// Held while a working copy is replaced, which writes files.
    adopting: Mutex<()>,
    changed: watch::Sender<u64>,
    journal: Journal,
    /// The deny-list that renewals are checked against, once there is one.
    revocations: OnceLock<Revocations>,
}

impl Authority {
    /// Creates an authority in a directory, with one active root.
    ///
    /// # Errors
    ///
    /// [`CaError::Exists`] when there is one already.
    pub fn init(
        dir: &Path,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Self, CaError> {
        if Self::exists(dir) {
            return Err(CaError::Exists(dir.to_owned()));
        }
        Contents::create(trust_domain, lives, now)?.write(dir)?;
        Self::open(dir, trust_domain, lives, now)
    }

    /// Whether the directory holds an authority.
    pub fn exists(dir: &Path) -> bool {
        Ledger::path(dir).exists()
    }

    /// Opens an existing authority, and renews its intermediate when that is due and the root key
    /// is online.
    pub fn open(
        dir: &Path,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Self, CaError> {
        let contents = Contents::read(dir)?;
        let authority = Self::over(dir, &contents, None, (trust_domain, lives), now)?;
        authority.journal.prune(now)?;
        authority.renew_intermediate_if_due(now)?;
        authority.save_bundle()?;
        Ok(authority)
    }

    fn over(
        dir: &Path,
        contents: &Contents,
        copy_of: Option<u64>,
        (trust_domain, lives): (&str, Lifetimes),
        now: Duration,
    ) -> Result<Self, CaError> {
        let inner = Inner::of(dir, contents, copy_of, now)?;
        contents.check_domain(trust_domain, now)?;
        Ok(Self {
            dir: dir.to_owned(),
            lives,
            trust_domain: trust_domain.to_owned(),
            join_key: contents.join_key(dir)?,
            changed: watch::Sender::new(inner.ledger.version),
            inner: RwLock::new(inner),
            adopting: Mutex::default(),
            journal: Journal::new(dir),
            revocations: OnceLock::new(),
        })
    }

    /// Opens the authority in a directory, or creates it.
    pub fn open_or_init(
        dir: &Path,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Self, CaError> {
        if Self::exists(dir) {
            Self::open(dir, trust_domain, lives, now)
        } else {
            Self::init(dir, trust_domain, lives, now)
        }
    }

    /// The trust domain that its certificates belong to.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    pub(crate) fn join_key(&self) -> &[u8] {
        &self.join_key
    }

    /// The roots that peers must trust.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let inner = self.inner.read();
        inner.roots.iter().map(|g| g.cert.clone()).collect()
    }

    /// The roots that peers must trust, in PEM.
    pub fn bundle_pem(&self) -> String {
        let inner = self.inner.read();
        inner.roots.iter().map(|g| g.pem.as_str()).collect()
    }

    /// The file that holds [`bundle_pem`](Self::bundle_pem).
    pub fn bundle_path(&self) -> PathBuf {
        Self::bundle_in(&self.dir)
    }

    /// The bundle file of the authority in `dir`.
    pub fn bundle_in(dir: &Path) -> PathBuf {
        dir.join("bundle.crt")
    }

    /// The number of rotation steps so far.
    pub fn version(&self) -> u64 {
        self.inner.read().ledger.version
    }

    /// Returns a receiver of the version, notified of each rotation step.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The roots and their states, oldest first.
    pub fn root_infos(&self) -> Vec<RootInfo> {
        self.versioned_roots().1
    }

    /// The number of rotation steps so far, with the roots as they are after those.
    pub fn versioned_roots(&self) -> (u64, Vec<RootInfo>) {
        let inner = self.inner.read();
        let roots = inner.roots.iter().map(Generation::info);
        (inner.ledger.version, roots.collect())
    }

    /// The root above a certificate signed by the key `issuer`.
    pub fn root_above(&self, issuer: &KeyId) -> Option<RootInfo> {
        let inner = self.inner.read();
        let mut roots = inner.roots.iter();
        roots.find(|g| g.signs_as(issuer)).map(Generation::info)
    }

    /// The key of the active root, which join tokens pin.
    pub fn active_root(&self) -> KeyId {
        let inner = self.inner.read();
        inner.active().key
    }

    /// Refuses to renew what `revocations` denies, from now on. Only the first call has an effect.
    pub fn enforce(&self, revocations: Revocations) {
        self.revocations.get_or_init(|| revocations);
    }

    /// Issues a leaf with a new key. It never outlives the intermediate. The certificate is
    /// recorded in the journal before this returns.
    pub fn issue(&self, request: &Request, now: Duration) -> Result<Issued, CaError> {
        self.issue_after(None, request, now)
    }

    /// Issues the successor of `current`, with a new key. Only the deny-list revokes: that `current`
    /// begins before [the moment set for its identity](Self::raise_not_before) is no reason to
    /// refuse, because that moment is stored before a revocation which may still fail.
    ///
    /// # Errors
    ///
    /// [`CaError::Revoked`] when `current` is on the deny-list.
    pub fn renew(
        &self,
        current: &Verified,
        request: &Request,
        now: Duration,
    ) -> Result<Issued, CaError> {
        let leaf = &current.certificate;
        if self.revocations.get().is_some_and(|r| r.denies(current)) {
            return Err(CaError::Revoked(leaf.to_string()));
        }
        self.issue_after(Some(current.name()), request, now)
    }

    fn issue_after(
        &self,
        renews: Option<&CertName>,
        request: &Request,
        now: Duration,
    ) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let mut issued = self.sign(&key, request, now)?;
        let entry = Entry::new(&issued.name, request, (now, issued.not_after), renews);
        self.journal.write(&entry)?;
        issued.key = Some(PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        issued.key_pem = Some(key.serialize_pem().into());
        Ok(issued)
    }

    /// Issues a leaf for a key held elsewhere. It is not recorded in the journal: the caller keeps
    /// its own record.
    pub fn sign(
        &self,
        public_key: &impl PublicKeyData,
        request: &Request,
        now: Duration,
    ) -> Result<Issued, CaError> {
        self.renew_intermediate_if_due(now)?;
        let inner = self.inner.read();
        let signer = inner.active().signer(now).ok_or(CaError::Expired)?;
        let serial = serial();
        let earliest = inner.ledger.earliest(&request.id);
        let span = (earliest, now, signer.not_after);
        let params = profile::leaf(request, serial.clone(), span)?;
        let not_after = params.not_after.unix_timestamp();
        let cert = params.signed_by(public_key, &signer.issuer()?)?;
        Ok(Issued {
            chain_pem: format!("{}{}", cert.pem(), signer.pem),
            chain: vec![cert.der().clone(), signer.der.clone()],
            key_pem: None,
            name: CertName {
                issuer: signer.key,
                serial,
            },
            not_after: Duration::from_secs(u64::try_from(not_after).unwrap_or(0)),
            key: None,
        })
    }

    /// Takes the next step of a root rotation on behalf of `by`, and returns the root it was about.
    ///
    /// # Errors
    ///
    /// [`CaError::Order`] when another step is due, [`CaError::WorkingCopy`] for a working copy.
    pub fn step(&self, step: RotationStep, by: &str, now: Duration) -> Result<RootInfo, CaError> {
        let mut inner = self.inner.write();
        inner.require_own()?;
        let next = inner.ledger.after(step, by, now)?;
        let generation = next.last().generation;
        if step == RotationStep::Prepare {
            let root = RootContents::create(generation, &self.trust_domain, self.lives, now)?;
            root.write(&generation::folder(&self.dir, generation))?;
            let entry = next.roots.iter().find(|r| r.generation == generation);
            let entry = entry.ok_or_else(|| unusable(&self.dir, "has lost a root"))?;
            let fresh = Generation::load(&self.dir, entry, &root, now)?;
            inner.roots.push(fresh);
        }
        // The ledger is authoritative: a crash before this point leaves an unused folder behind.
        next.save(&self.dir)?;
        let version = next.version;
        let root = inner.adopt(next, generation);
        drop(inner);
        self.save_bundle()?;
        self.changed.send_replace(version);
        root.ok_or_else(|| unusable(&self.dir, "has lost a root"))
    }

    /// From now on, new leaves of these identities begin at the given moments or later. Leaves are
    /// backdated for the sake of slow clocks, which must not place them before the revocation of
    /// their identity. The latest moment of an identity counts. Durable when this returns; nothing
    /// is written when nothing changes.
    ///
    /// # Errors
    ///
    /// [`CaError::WorkingCopy`] for a working copy.
    pub fn raise_not_before(&self, floors: &[(SpiffeId, Duration)]) -> Result<(), CaError> {
        let mut inner = self.inner.write();
        inner.require_own()?;
        let mut next = inner.ledger.clone();
        if next.raise_not_before(floors) {
            next.save(&self.dir)?;
            inner.ledger = next;
        }
        Ok(())
    }

    /// The rotation steps after a version, for recording elsewhere.
    pub fn steps_after(&self, version: u64) -> Vec<rotation::StepRecord> {
        let inner = self.inner.read();
        let steps = inner.ledger.steps.iter();
        steps.filter(|s| s.version > version).cloned().collect()
    }

    /// The certificates issued with keys made here that have not been acknowledged yet, oldest
    /// first.
    pub fn journal(&self) -> Result<Vec<Entry>, CaError> {
        self.journal.entries()
    }

    /// Removes a certificate from the journal, once it is recorded elsewhere.
    pub fn acknowledge(&self, serial: &str) -> Result<(), CaError> {
        self.journal.acknowledge(serial)
    }

    fn save_bundle(&self) -> Result<(), CaError> {
        contents::put_public(&self.bundle_path(), &self.bundle_pem())
    }

    /// Replaces the intermediate after two thirds of its lifetime, unless this is a working copy.
    fn renew_intermediate_if_due(&self, now: Duration) -> Result<(), CaError> {
        if !self.inner.read().renews_by_itself(now) {
            return Ok(());
        }
        let mut inner = self.inner.write();
        if !inner.renews_by_itself(now) {
            return Ok(());
        }
        let active = inner.active_mut();
        let folder = generation::folder(&self.dir, active.number);
        let mut root = RootContents::read(&folder)?;
        root.renew(active.number, &self.trust_domain, self.lives, now)?;
        root.write(&folder)?;
        *active = Generation::load(&self.dir, &active.entry(), &root, now)?;
        Ok(())
    }
}

impl Inner {
    fn of(
        dir: &Path,
        contents: &Contents,
        copy_of: Option<u64>,
        now: Duration,
    ) -> Result<Self, CaError> {
        Ok(Self {
            ledger: contents.ledger.clone(),
            roots: contents.generations(dir, now)?,
            copy_of,
        })
    }

    fn require_own(&self) -> Result<(), CaError> {
        match self.copy_of {
            None => Ok(()),
            Some(_) => Err(CaError::WorkingCopy),
        }
    }

    fn renews_by_itself(&self, now: Duration) -> bool {
        let active = self.active();
        self.copy_of.is_none() && active.is_renewal_due(now) && active.online()
    }

    /// Replaces the ledger and brings the roots into the states that it says. Returns the root of
    /// `generation`, which may be removed by this.
    fn adopt(&mut self, ledger: Ledger, generation: u32) -> Option<RootInfo> {
        self.ledger = ledger;
        let states = &self.ledger.roots;
        let state = |number| {
            let mut entries = states.iter();
            entries.find(|r| r.generation == number).map(|r| r.state)
        };
        for root in &mut self.roots {
            root.state = state(root.number).unwrap_or(root.state);
        }
        let mut roots = self.roots.iter();
        let root = roots.find(|g| g.number == generation).map(Generation::info);
        self.roots.retain(|g| state(g.number).is_some());
        root
    }

    fn active(&self) -> &Generation {
        let mut roots = self.roots.iter();
        roots
            .find(|g| g.state == RootState::Active)
            .expect("a ledger always has one active root; loading checks it")
    }

    fn active_mut(&mut self) -> &mut Generation {
        let mut roots = self.roots.iter_mut();
        roots
            .find(|g| g.state == RootState::Active)
            .expect("a ledger always has one active root; loading checks it")
    }
}

#[cfg(test)]
mod tests;
