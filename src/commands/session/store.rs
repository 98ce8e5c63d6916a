//! The files of sessions: `$XDG_CONFIG_HOME/tars/sessions`, one a mesh, for their owner alone.

use super::Session;
use crate::commands::{CommandError, known::Known};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tars_certs::secret;

fn base() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let base =
        std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
    base.join("tars")
}

fn dir() -> PathBuf {
    base().join("sessions")
}

/// The one file of earlier versions.
pub(crate) fn of_old() -> Option<PathBuf> {
    let path = base().join("session.json");
    path.exists().then_some(path)
}

pub(super) fn forget_old() -> Result<(), CommandError> {
    of_old().map_or(Ok(()), |path| remove(&path))
}

/// All sessions, in the order of their files.
pub(crate) fn all() -> Result<Vec<Session>, CommandError> {
    let dir = dir();
    let listed = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| CommandError::file(&dir, e))?,
    };
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry.map_err(|e| CommandError::file(&dir, e))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(load).collect()
}

fn load(path: PathBuf) -> Result<Session, CommandError> {
    let text = secret::read(&path).map_err(|e| CommandError::file(&path, e))?;
    let session: Session =
        serde_json::from_str(&text).map_err(|e| CommandError::file(&path, io::Error::other(e)))?;
    Ok(session.at(path))
}

/// Where the session for a mesh will be kept.
pub(super) fn place(mesh: &Known) -> PathBuf {
    let name = match mesh.roots.first() {
        Some(root) => root.get(..16).unwrap_or(root).to_owned(),
        None => plain(mesh.gateway.as_deref().unwrap_or_default()),
    };
    dir().join(format!("{name}.json"))
}

/// Keeps a session, in place of those of the same mesh, gateway or data directory.
pub(super) fn replace(session: &Session) -> Result<(), CommandError> {
    let kept = all()?;
    save(&session.path, session)?;
    let mut old = kept.iter().filter(|s| s.replaces(session));
    old.try_for_each(|s| match s.path == session.path {
        true => Ok(()),
        false => remove(&s.path),
    })
}

fn plain(url: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    url.chars().map(letter).collect()
}

pub(super) fn save(path: &Path, session: &Session) -> Result<(), CommandError> {
    let text = serde_json::to_string(session).map_err(|e| CommandError::Failed(e.to_string()))?;
    let dir = dir();
    secret::create_dir(&dir).map_err(|e| CommandError::file(&dir, e))?;
    secret::write(path, text.as_bytes()).map_err(|e| CommandError::file(path, e))
}

pub(super) fn remove(path: &Path) -> Result<(), CommandError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CommandError::file(path, e)),
        _ => Ok(()),
    }
}
