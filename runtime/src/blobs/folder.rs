//! Blobs as files of one folder.

use super::{BATCH, BlobError, digest, is_name};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tars_certs::secret;

#[derive(Debug, Clone)]
pub(super) struct Folder {
    dir: PathBuf,
    /// Held while files are written or removed. A write goes on when its caller goes away, and with it
    /// the caller's transaction.
    turn: Arc<Mutex<()>>,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> BlobError + use<> {
    let path = path.to_owned();
    move |source| BlobError::Io {
        path: path.clone(),
        source,
    }
}

impl Folder {
    pub(super) fn open(dir: PathBuf) -> Result<Self, BlobError> {
        secret::create_dir(&dir).map_err(failed(&dir))?;
        let turn = Arc::default();
        Ok(Self { dir, turn })
    }

    pub(super) async fn put(&self, content: Vec<u8>) -> Result<String, BlobError> {
        self.blocking(move |folder| {
            let name = digest(&content);
            let path = folder.dir.join(&name);
            let _turn = folder.turn.lock();
            // What is there under the name may have been damaged since it was written.
            if fs::read(&path).ok().as_ref() != Some(&content) {
                secret::write(&path, &content).map_err(failed(&path))?;
            }
            Ok(name)
        })
        .await
    }

    pub(super) async fn get(&self, name: &str) -> Result<Vec<u8>, BlobError> {
        let name = name.to_owned();
        self.blocking(move |folder| {
            if !is_name(&name) {
                return Err(BlobError::Absent(name));
            }
            let path = folder.dir.join(&name);
            match fs::read(&path) {
                Ok(content) => verified(name, content),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Err(BlobError::Absent(name)),
                Err(e) => Err(failed(&path)(e)),
            }
        })
        .await
    }

    /// Removes what is not referred to. A caller that goes away leaves the turn to others, who may refer
    /// to more than the caller knew: nothing is removed then.
    pub(super) async fn collect(&self, referenced: BTreeSet<String>) -> Result<usize, BlobError> {
        let caller = Arc::new(());
        let is_waited_for = Arc::downgrade(&caller);
        self.blocking(move |folder| {
            let _turn = folder.turn.lock();
            if is_waited_for.strong_count() == 0 {
                return Ok(0);
            }
            let orphans = folder.orphans(&referenced)?;
            for path in &orphans {
                fs::remove_file(path).map_err(failed(path))?;
            }
            Ok(orphans.len())
        })
        .await
    }

    /// Files of ours that nothing refers to, and what an interrupted write left.
    fn orphans(&self, referenced: &BTreeSet<String>) -> Result<Vec<PathBuf>, BlobError> {
        let unreadable = failed(&self.dir);
        let mut orphans = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(&unreadable)? {
            let entry = entry.map_err(&unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_staged = name.starts_with('.') && name.ends_with(".tmp");
            if is_staged || (is_name(&name) && !referenced.contains(&name)) {
                orphans.push(entry.path());
            }
            if orphans.len() == BATCH {
                break;
            }
        }
        Ok(orphans)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let folder = self.clone();
        let ended = tokio::task::spawn_blocking(move || work(&folder)).await;
        ended.map_err(|e| failed(&self.dir)(io::Error::other(e)))?
    }
}

fn verified(name: String, content: Vec<u8>) -> Result<Vec<u8>, BlobError> {
    if digest(&content) == name {
        Ok(content)
    } else {
        Err(BlobError::Damaged(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::time::Duration;

    #[tokio::test]
    async fn a_collection_that_nobody_waits_for_removes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().to_owned()).unwrap();
        let name = folder.put(b"weights".to_vec()).await.unwrap();
        let turn = Arc::clone(&folder.turn);
        let held = turn.lock();
        let mut collecting = Box::pin(folder.collect(BTreeSet::new()));
        assert!((&mut collecting).now_or_never().is_none());
        drop(collecting);
        drop(held);
        let ended = async {
            // The folder's own, and that of this test.
            while Arc::strong_count(&turn) > 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), ended);
        ended.await.unwrap();
        assert_eq!(folder.get(&name).await.unwrap(), b"weights");
        let removed = folder.collect(BTreeSet::new()).await.unwrap();
        assert_eq!(removed, 1);
    }
}
