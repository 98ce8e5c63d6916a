//! Auth's database, with the secrets in it that are needed before Auth can open.
//!
//! On a database of its own (SQLite), the certificate authority is a folder beside it. On one that
//! replicas share (PostgreSQL), the authority is a row, and the folder a working copy.

use crate::{
    AuthError,
    seal::{self, SIGNING_KEY, Seal},
    store::{self, Edition, Store},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tars_certs::{
    Authority,
    ca::{Contents, Lifetimes},
    secret,
};
use tars_runtime::db::{Db, Place, Transaction};
use zeroize::Zeroizing;

/// The name of the sealed key that refresh tokens are derived with.
const REFRESH_KEY: &str = "refresh-key";
/// The name of the sealed contents of the authority.
pub(crate) const AUTHORITY: &str = "authority";

/// Auth's database, and the key that its secrets are sealed with. Clones share both.
#[derive(Debug, Clone)]
pub struct Vault {
    dir: PathBuf,
    store: Store,
    seal: Seal,
    refresh_key: RefreshKey,
}

/// The key that refresh tokens are derived with.
#[derive(Clone)]
pub(crate) struct RefreshKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for RefreshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RefreshKey(…)")
    }
}

impl RefreshKey {
    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Vault {
    /// Opens the database, and makes its secrets at the first start. `dir` is Auth's part of the data
    /// directory; the sealing key is in `seal_key_file`, or else in `seal.key` there.
    ///
    /// # Errors
    ///
    /// [`AuthError::SealedOtherwise`] and [`AuthError::SealKeyMissing`] when the sealing key is not the
    /// one of this database; any error of the database or a file.
    pub async fn open(
        dir: &Path,
        database: &Place,
        seal_key_file: Option<&Path>,
    ) -> Result<Self, AuthError> {
        secret::create_dir(dir)?;
        let store = Store::new(Db::open(database, store::MIGRATIONS).await?);
        let path = seal_key_file.map_or_else(|| dir.join("seal.key"), Path::to_owned);
        let seal = open_seal(&path, is_sealed(&store)).await?;
        let refresh_key = open_refresh_key(&store, &seal, (dir, &path)).await?;
        Ok(Self {
            dir: dir.to_owned(),
            store,
            seal,
            refresh_key,
        })
    }

    /// Opens the authority in a folder, and creates it at the first start. On a shared database the
    /// folder becomes a working copy; the authority of a folder that was filled before the database had
    /// one is the one that it gets.
    ///
    /// # Errors
    ///
    /// [`CaError::Foreign`](tars_certs::CaError::Foreign) when the folder holds another authority than
    /// the database; [`CaError::OtherDomain`](tars_certs::CaError::OtherDomain); any error of the database or the folder.
    pub async fn authority(
        &self,
        folder: &Path,
        trust_domain: &str,
        lives: Lifetimes,
        now: Duration,
    ) -> Result<Authority, AuthError> {
        if !self.store.db().is_shared() {
            self.take_over(folder).await?;
            return Ok(Authority::open_or_init(folder, trust_domain, lives, now)?);
        }
        // Exclusive, so that of two first starters one creates the authority.
        let mut tx = self.store.begin("authority.open").await?;
        let (mut version, mut contents) = match self.contents(&mut tx).await? {
            Some((edition, contents)) => (edition.version, contents),
            None => {
                let contents = match Authority::exists(folder) {
                    true => Contents::read(folder)?,
                    false => Contents::create(trust_domain, lives, now)?,
                };
                let sealed = self.sealed(&contents)?;
                store::insert_sealed(&mut tx, AUTHORITY, &sealed).await?;
                (1, contents)
            }
        };
        contents.check_domain(trust_domain, now)?;
        if contents.renew_if_due(trust_domain, lives, now)? {
            version = self.replace(&mut tx, version, &contents).await?.version;
        }
        tx.commit().await?;
        let terms = (trust_domain, lives);
        Ok(Authority::open_copy(
            folder,
            terms,
            (version, &contents),
            now,
        )?)
    }

    /// Makes a folder of the authority that a database has which was shared once, as after a backup of it
    /// was restored into a file. From then on the folder is the authority.
    async fn take_over(&self, folder: &Path) -> Result<(), AuthError> {
        let mut tx = self.store.begin("authority.take_over").await?;
        let Some((_, contents)) = self.contents(&mut tx).await? else {
            return Ok(());
        };
        contents.restore(folder)?;
        store::delete_sealed(&mut tx, AUTHORITY).await?;
        Ok(tx.commit().await?)
    }

    /// The authority as it is stored.
    pub(crate) async fn contents(
        &self,
        db: &mut impl tars_runtime::db::Fetch,
    ) -> Result<Option<(Edition, Contents)>, AuthError> {
        let Some(row) = store::sealed(db, AUTHORITY).await? else {
            return Ok(None);
        };
        let bytes = self.seal.open(AUTHORITY, &row.sealed)?;
        Ok(Some((row.edition, Contents::from_bytes(&bytes)?)))
    }

    /// Replaces the authority that has the given version.
    pub(crate) async fn replace(
        &self,
        tx: &mut Transaction,
        version: u64,
        contents: &Contents,
    ) -> Result<Edition, AuthError> {
        let sealed = self.sealed(contents)?;
        let swap = store::swap_sealed(tx, AUTHORITY, version, &sealed).await?;
        swap.or(AuthError::Conflict)?;
        Ok(Edition::new(version + 1, &sealed))
    }

    fn sealed(&self, contents: &Contents) -> Result<Vec<u8>, AuthError> {
        self.seal.seal(AUTHORITY, &contents.to_bytes()?)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    pub(crate) fn refresh_key(&self) -> RefreshKey {
        self.refresh_key.clone()
    }
}

/// Whether the database has secrets that were sealed with some key.
async fn is_sealed(store: &Store) -> Result<bool, AuthError> {
    let mut db = store.read("secrets.any");
    Ok(store::sealed_count(&mut db).await? > 0 || !store::signing_keys(&mut db).await?.is_empty())
}

/// Opens the sealing key, or makes it for a database that has nothing sealed.
async fn open_seal(
    path: &Path,
    is_sealed: impl Future<Output = Result<bool, AuthError>>,
) -> Result<Seal, AuthError> {
    if let Some(seal) = Seal::read(path)? {
        return Ok(seal);
    }
    if !is_sealed.await? {
        return Ok(Seal::create(path)?);
    }
    // Another replica that starts for the first time may have made the key since it was looked for.
    Seal::read(path)?.ok_or_else(|| AuthError::SealKeyMissing(path.to_owned()))
}

/// Opens the key that refresh tokens are derived with, or makes it, and so finds out whether the sealing
/// key is the one of this database. The key of a version that had it in a file is taken from there: a
/// client that has lost the reply to a refresh may repeat it after the upgrade.
async fn open_refresh_key(
    store: &Store,
    seal: &Seal,
    (dir, seal_path): (&Path, &Path),
) -> Result<RefreshKey, AuthError> {
    let otherwise = |_| AuthError::SealedOtherwise(seal_path.to_owned());
    let former = dir.join("refresh.key");
    let mut tx = store.begin("secrets.open").await?;
    for key in store::signing_keys(&mut *tx).await? {
        seal.open(SIGNING_KEY, &key.private_sealed)
            .map_err(otherwise)?;
    }
    let key = match store::sealed(&mut *tx, REFRESH_KEY).await? {
        Some(row) => {
            let bytes = seal.open(REFRESH_KEY, &row.sealed).map_err(otherwise)?;
            let key = bytes.as_slice().try_into();
            Zeroizing::new(key.map_err(|_| AuthError::Crypto("the refresh key is too short"))?)
        }
        None => {
            let key = seal::read_key(&former)?;
            let key = key.unwrap_or_else(|| Zeroizing::new(rand::random()));
            let sealed = seal.seal(REFRESH_KEY, key.as_slice())?;
            store::insert_sealed(&mut tx, REFRESH_KEY, &sealed).await?;
            key
        }
    };
    tx.commit().await?;
    // From here on the row counts, whatever the file holds.
    match fs::remove_file(&former) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    Ok(RefreshKey(key))
}

#[cfg(test)]
mod tests;
