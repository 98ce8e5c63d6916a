//! Everything that an authority consists of, as a value.
//!
//! A folder holds it as files. Where replicas of Auth share one authority, a row of their database holds
//! it, and each replica's folder is a working copy of that row. A change turns contents into the next
//! ones, so that they can be stored under a compare-and-set before anything makes use of them.

use super::{
    CaError, Lifetimes, file,
    generation::{self, Generation},
    pem::{Pair, RootContents},
    profile,
    rotation::{Ledger, RootEntry, RootState, RotationStep},
    unusable,
};
use crate::{SpiffeId, secret};
use rcgen::{Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// The ledger, the roots and intermediates with their keys, and the join key of an authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    pub(super) ledger: Ledger,
    join_key: Zeroizing<String>,
    /// The roots in the ledger, by generation.
    pub(super) roots: BTreeMap<u32, RootContents>,
}

impl fmt::Debug for Contents {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contents(version {})", self.ledger.version)
    }
}

const INTERMEDIATE: &str = "intermediate-";

impl Contents {
    /// Creates an authority with one active root.
    ///
    /// # Errors
    ///
    /// When a key cannot be generated.
    pub fn create(trust_domain: &str, lives: Lifetimes, now: Duration) -> Result<Self, CaError> {
        let ledger = Ledger::first(now);
        let root = RootContents::create(ledger.last().generation, trust_domain, lives, now)?;
        Ok(Self {
            join_key: Zeroizing::new(crate::name::hex(&rand::random::<[u8; 32]>())),
            roots: [(ledger.last().generation, root)].into(),
            ledger,
        })
    }

    /// Reads the authority in a folder.
    ///
    /// # Errors
    ///
    /// When a file is missing, or a key can be read by others.
    pub fn read(dir: &Path) -> Result<Self, CaError> {
        let ledger = Ledger::load(dir)?;
        let root = |entry: &RootEntry| {
            let folder = generation::folder(dir, entry.generation);
            Ok((entry.generation, RootContents::read(&folder)?))
        };
        Ok(Self {
            roots: ledger
                .roots
                .iter()
                .map(root)
                .collect::<Result<_, CaError>>()?,
            join_key: read_secret(&join_key_path(dir))?,
            ledger,
        })
    }

    /// Makes a folder hold this authority: one that holds it at another version, or none.
    ///
    /// # Errors
    ///
    /// [`CaError::Foreign`] when it holds another authority, which is left alone.
    pub fn restore(&self, dir: &Path) -> Result<(), CaError> {
        match self.may_replace(dir)? {
            true => self.write(dir),
            false => Err(CaError::Foreign(dir.to_owned())),
        }
    }

    /// Writes what the folder does not hold yet. The ledger comes last: it says which of the other
    /// files count.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CaError> {
        secret::create_dir(dir).map_err(|e| file(dir, e))?;
        put_secret(&join_key_path(dir), &self.join_key)?;
        for (number, root) in &self.roots {
            root.write(&generation::folder(dir, *number))?;
        }
        match Ledger::load(dir) {
            Ok(ledger) if ledger == self.ledger => Ok(()),
            _ => self.ledger.save(dir),
        }
    }

    /// Encodes the contents, keys included.
    ///
    /// # Errors
    ///
    /// [`CaError::Encoding`] when they cannot be encoded.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, CaError> {
        let bytes = serde_json::to_vec(self).map_err(|e| CaError::Encoding(e.to_string()))?;
        Ok(Zeroizing::new(bytes))
    }

    /// Decodes what [`to_bytes`](Self::to_bytes) has encoded.
    ///
    /// # Errors
    ///
    /// [`CaError::Encoding`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CaError> {
        let contents: Self =
            serde_json::from_slice(bytes).map_err(|e| CaError::Encoding(e.to_string()))?;
        let numbers = contents.ledger.roots.iter().map(|r| r.generation);
        if !numbers.eq(contents.roots.keys().copied()) || !contents.ledger.is_sound() {
            let problem = "the roots are not those of the ledger";
            return Err(CaError::Encoding(problem.to_owned()));
        }
        let mut names = contents.roots.values().flat_map(|r| r.intermediates.keys());
        match names.find(|name| !is_intermediate(name)) {
            Some(name) => Err(CaError::Encoding(format!("{name:?} is no intermediate"))),
            None => Ok(contents),
        }
    }

    /// The number of rotation steps so far.
    pub fn version(&self) -> u64 {
        self.ledger.version
    }

    /// Whether a folder holds this authority, at whatever version, or none. The join key tells: it is
    /// made with the authority, and never replaced.
    ///
    /// # Errors
    ///
    /// When the folder's join key cannot be read.
    fn may_replace(&self, dir: &Path) -> Result<bool, CaError> {
        let path = join_key_path(dir);
        match secret::read(&path).map(Zeroizing::new) {
            Ok(key) => Ok(key.trim() == self.join_key.trim()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(file(&path, e)),
        }
    }

    /// Checks that the authority was made for a trust domain. Its roots have the name of theirs.
    ///
    /// # Errors
    ///
    /// [`CaError::OtherDomain`] when it was made for another one.
    pub fn check_domain(&self, trust_domain: &str, now: Duration) -> Result<(), CaError> {
        let roots = self.generations(Path::new(""), now)?;
        let named = |root: &Generation| format!("CN={}", root_name(trust_domain, root.number));
        match roots.into_iter().find(|root| root.subject != named(root)) {
            None => Ok(()),
            Some(root) => Err(CaError::OtherDomain {
                root: root.subject,
                configured: trust_domain.to_owned(),
            }),
        }
    }

    pub(super) fn join_key(&self, dir: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
        let key = crate::name::unhex(self.join_key.trim()).map(Zeroizing::new);
        key.filter(|k| k.len() == 32)
            .ok_or_else(|| unusable(&join_key_path(dir), "does not hold a 256-bit key"))
    }

    /// The roots as they are used, oldest first.
    pub(super) fn generations(
        &self,
        dir: &Path,
        now: Duration,
    ) -> Result<Vec<Generation>, CaError> {
        let load = |entry: &RootEntry| {
            let root = self.roots.get(&entry.generation);
            let folder = generation::folder(dir, entry.generation);
            let root = root.ok_or_else(|| unusable(&folder, "is missing"))?;
            Generation::load(dir, entry, root, now)
        };
        self.ledger.roots.iter().map(load).collect()
    }

    /// Takes a rotation step. A root that is removed takes its keys with it.
    ///
    /// # Errors
    ///
    /// [`CaError::Order`] when another step is due.
    pub(super) fn step(
        &mut self,
        (step, by): (RotationStep, &str),
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<(), CaError> {
        let next = self.ledger.after(step, by, now)?;
        let number = next.last().generation;
        match step {
            RotationStep::Prepare => {
                let root = RootContents::create(number, trust_domain, lives, now)?;
                self.roots.insert(number, root);
            }
            RotationStep::Remove => drop(self.roots.remove(&number)),
            RotationStep::Activate | RotationStep::Taint => {}
        }
        self.ledger = next;
        Ok(())
    }

    /// Raises the earliest start of the leaves of identities; `false` when nothing changes.
    pub fn raise_not_before(&mut self, floors: &[(SpiffeId, Duration)]) -> bool {
        self.ledger.raise_not_before(floors)
    }

    /// Adds an intermediate when that of the active root is due for renewal and its root key is here;
    /// `false` when it is not.
    ///
    /// # Errors
    ///
    /// When a certificate does not parse, or a key cannot be generated.
    pub fn renew_if_due(
        &mut self,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<bool, CaError> {
        let mut entries = self.ledger.roots.iter();
        let active = entries.find(|r| r.state == RootState::Active);
        let Some(number) = active.map(|r| r.generation) else {
            return Ok(false);
        };
        let due = {
            let roots = self.generations(Path::new(""), now)?;
            let mut roots = roots.iter();
            roots.any(|g| g.number == number && g.is_renewal_due(now))
        };
        match self.roots.get_mut(&number) {
            Some(root) if due && root.key.is_some() => {
                root.renew(number, trust_domain, lives, now)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl RootContents {
    /// Creates a root with its first intermediate.
    pub(super) fn create(
        number: u32,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Self, CaError> {
        let key = KeyPair::generate()?;
        let name = root_name(trust_domain, number);
        let cert = profile::authority(&name, 1, now, now + lives.root).self_signed(&key)?;
        let mut root = Self {
            cert: cert.pem(),
            key: Some(key.serialize_pem().into()),
            intermediates: BTreeMap::new(),
        };
        root.renew(number, trust_domain, lives, now)?;
        Ok(root)
    }

    /// Adds an intermediate, which does not outlive the root.
    pub(super) fn renew(
        &mut self,
        number: u32,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<(), CaError> {
        let root_key = self.key.as_ref().ok_or(CaError::Expired)?;
        let path = generation::folder(Path::new(""), number).join("root.crt");
        let der = CertificateDer::from_pem_slice(self.cert.as_bytes())
            .map_err(|_| unusable(&path, "is not a certificate"))?;
        let issuer = Issuer::from_ca_cert_der(&der, KeyPair::from_pem(root_key)?)?;
        let key = KeyPair::generate()?;
        let name = format!("{trust_domain} intermediate {number}-{}", now.as_secs());
        let end = generation::end_of(&path, &self.cert)?;
        let end = (now + lives.intermediate).min(end);
        let cert = profile::authority(&name, 0, now, end).signed_by(&key, &issuer)?;
        let pair = Pair {
            cert: cert.pem(),
            key: Some(key.serialize_pem().into()),
        };
        let stem = format!("{INTERMEDIATE}{}", now.as_millis());
        self.intermediates.insert(stem, pair);
        Ok(())
    }

    pub(super) fn read(folder: &Path) -> Result<Self, CaError> {
        let mut intermediates = BTreeMap::new();
        for stem in stems(folder)? {
            let pair = Pair {
                cert: read(&folder.join(format!("{stem}.crt")))?,
                key: read_key(&folder.join(format!("{stem}.key")))?,
            };
            intermediates.insert(stem, pair);
        }
        Ok(Self {
            cert: read(&folder.join("root.crt"))?,
            key: read_key(&folder.join("root.key"))?,
            intermediates,
        })
    }

    /// Makes a folder hold this root. Intermediates that are none of it go: they are of a root that was
    /// prepared in this place, and whose step was not finished. A root key is never removed.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CaError> {
        secret::create_dir(folder).map_err(|e| file(folder, e))?;
        if let Some(key) = &self.key {
            put_secret(&folder.join("root.key"), key)?;
        }
        put_public(&folder.join("root.crt"), &self.cert)?;
        for (stem, pair) in &self.intermediates {
            if let Some(key) = &pair.key {
                put_secret(&folder.join(format!("{stem}.key")), key)?;
            }
            put_public(&folder.join(format!("{stem}.crt")), &pair.cert)?;
        }
        let listed = stems(folder)?.into_iter();
        for stem in listed.filter(|stem| !self.intermediates.contains_key(stem)) {
            remove(&folder.join(format!("{stem}.crt")))?;
            remove(&folder.join(format!("{stem}.key")))?;
        }
        Ok(())
    }
}

fn root_name(trust_domain: &str, number: u32) -> String {
    format!("{trust_domain} root {number}")
}

fn join_key_path(dir: &Path) -> PathBuf {
    dir.join("join.key")
}

/// Whether a name is that of an intermediate's files, and of nothing outside of their folder.
fn is_intermediate(stem: &str) -> bool {
    stem.starts_with(INTERMEDIATE) && !stem.contains('/')
}

/// The names of the intermediates in a root's folder, without extensions.
fn stems(folder: &Path) -> Result<Vec<String>, CaError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| file(folder, e))? {
        let name = entry.map_err(|e| file(folder, e))?.file_name();
        let stem = name.to_string_lossy();
        let stem = stem
            .strip_suffix(".crt")
            .filter(|stem| is_intermediate(stem));
        found.extend(stem.map(str::to_owned));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|e| file(path, e))
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let text = secret::read(path).map_err(|e| file(path, e))?;
    Ok(Zeroizing::new(text))
}

/// `None` when there is no such file.
fn read_key(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    match secret::read(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file(path, e)),
    }
}

fn put_secret(path: &Path, text: &Zeroizing<String>) -> Result<(), CaError> {
    // Also replaced when others can read it.
    if secret::read(path).is_ok_and(|held| *Zeroizing::new(held) == **text) {
        return Ok(());
    }
    secret::write(path, text.as_bytes()).map_err(|e| file(path, e))
}

pub(super) fn put_public(path: &Path, text: &str) -> Result<(), CaError> {
    if fs::read_to_string(path).is_ok_and(|held| held == text) {
        return Ok(());
    }
    secret::write_public(path, text.as_bytes()).map_err(|e| file(path, e))
}

fn remove(path: &Path) -> Result<(), CaError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file(path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
