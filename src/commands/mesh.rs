//! Which mesh a command speaks to: one rule for all commands that name one.
//!
//! A mesh is named by `--gateway`, or by the data directory that its process runs on (`--data-dir`,
//! `TARS__DATA__DIR`, the configuration file). A command speaks to the mesh that it names, or to
//! none. Where nothing names one, a session that is the only one decides, unless a mesh of somebody
//! else's runs on the default data directory.

use super::{
    CommandError,
    known::{Known, plain_url, roots_at},
    session::{NoSession, Session, store},
};
use crate::app::DirLock;
use clap::Args;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

#[derive(Debug, Args, Default)]
pub(crate) struct MeshArg {
    /// The gateway's URL of the mesh to speak to; --data-dir names one, too.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) gateway: Option<String>,
}

/// How a command names a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    Nothing,
    Gateway(String),
    DataDir(PathBuf),
}

impl Named {
    /// `configured` is the data directory after flags, environment and file; it names a mesh unless
    /// it is what it is anyway.
    pub(crate) fn new(
        gateway: Option<&str>,
        flag: Option<&Path>,
        configured: &Path,
        default: &Path,
    ) -> Result<Self, CommandError> {
        match (gateway, flag) {
            (Some(_), Some(_)) => Err(CommandError::Usage(
                "--gateway and --data-dir both name a mesh; give one of them".to_owned(),
            )),
            (Some(url), None) => Ok(Self::Gateway(plain_url(url))),
            (None, Some(dir)) => Ok(Self::DataDir(dir.to_owned())),
            (None, None) if configured != default => Ok(Self::DataDir(configured.to_owned())),
            (None, None) => Ok(Self::Nothing),
        }
    }
}

/// Where one connects to what listens at an address.
pub(crate) fn url_of(mut listens: SocketAddr) -> String {
    if listens.ip().is_unspecified() {
        listens.set_ip(match listens.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{listens}")
}

/// The mesh that a command means.
#[derive(Debug)]
pub(crate) struct Mesh {
    named: Named,
    default: PathBuf,
    /// The gateway's URL according to the configuration.
    configured: Option<String>,
}

impl Mesh {
    pub(crate) fn new(named: Named, default: PathBuf, configured: Option<String>) -> Self {
        Self {
            named,
            default,
            configured,
        }
    }

    pub(crate) fn is_named_by_gateway(&self) -> bool {
        matches!(self.named, Named::Gateway(_))
    }

    /// The gateway of the mesh, where one is named.
    pub(crate) fn gateway(&self) -> Option<String> {
        let known = self.known().ok().flatten();
        known.and_then(|known| known.gateway)
    }

    fn known(&self) -> Result<Option<Known>, CommandError> {
        match &self.named {
            Named::Nothing => Ok(None),
            Named::Gateway(url) => Ok(Some(Known::at(url))),
            Named::DataDir(dir) => self.in_dir(dir).map(Some),
        }
    }

    /// The mesh of a data directory. Services in processes of their own write no ready file, so that the
    /// gateway's address is in their configuration alone.
    fn in_dir(&self, dir: &Path) -> Result<Known, CommandError> {
        match (Known::in_dir(dir), &self.configured) {
            (Some(known), Some(url)) if known.gateway.is_none() => Ok(Known {
                gateway: Some(url.clone()),
                name: format!("{url} (data directory {})", dir.display()),
                ..known
            }),
            (Some(known), _) => Ok(known),
            (None, Some(url)) => Ok(Known::at(url)),
            (None, None) => Err(no_mesh_in(dir)),
        }
    }

    /// The session for this mesh, good for a call.
    pub(crate) async fn session(&self) -> Result<Session, CommandError> {
        let sessions = store::all()?;
        let mut known = self.known()?;
        // A URL does not identify the mesh that answers there now; its roots do.
        let mut there = None;
        if let Some(Known {
            gateway: Some(url),
            roots,
            ..
        }) = &mut known
            && roots.is_empty()
        {
            roots.clone_from(there.insert(roots_at(url).await?));
        }
        let default = Known::in_dir(&self.default);
        let mut session = chosen(&sessions, known.as_ref(), default.as_ref())?;
        let now = match known {
            Some(known) => known.gateway,
            None => session.running_at(),
        };
        if let Some(url) = now {
            session.move_to(url);
        }
        session.freshen(there).await?;
        Ok(session)
    }

    /// The session to end: the one that is kept for what is named, whatever answers there now.
    pub(crate) async fn session_to_end(&self) -> Result<Session, CommandError> {
        let sessions = store::all()?;
        let kept = sessions.iter().find(|s| match &self.named {
            Named::Nothing => false,
            Named::Gateway(url) => s.is_at(url),
            Named::DataDir(dir) => s.is_in(dir),
        });
        if let Some(kept) = kept {
            return Ok(kept.clone());
        }
        let mut known = self.known()?;
        if let (Named::Gateway(url), Some(known)) = (&self.named, &mut known) {
            // The mesh need not be running.
            known.roots = roots_at(url).await.unwrap_or_default();
        }
        let default = Known::in_dir(&self.default);
        match choose(&sessions, known.as_ref(), default.as_ref()) {
            Ok(kept) => Ok(kept.clone()),
            Err(why) => {
                let url = known.as_ref().and_then(|k| k.gateway.as_deref());
                let there = sessions.iter().find(|s| url.is_some_and(|u| s.is_at(u)));
                there.cloned().ok_or_else(|| why.into())
            }
        }
    }

    /// Where to log in, and what is there.
    pub(crate) async fn to_log_in(&self) -> Result<Known, CommandError> {
        let known = match self.known()? {
            Some(known) => known,
            None => self.in_dir(&self.default)?,
        };
        let Some(url) = &known.gateway else {
            return Err(CommandError::Failed(format!(
                "no gateway runs on {}; name it with --gateway URL, or by the --config that it runs with",
                known.name
            )));
        };
        let roots = roots_at(url).await?;
        if !known.roots.is_empty() && !known.shares_a_root(&roots) {
            return Err(CommandError::Failed(format!(
                "another mesh answers at {url} than the one of {}",
                known.name
            )));
        }
        Ok(Known { roots, ..known })
    }
}

fn chosen(
    sessions: &[Session],
    known: Option<&Known>,
    default: Option<&Known>,
) -> Result<Session, CommandError> {
    let found = choose(sessions, known, default).cloned();
    found.map_err(CommandError::from)
}

fn no_mesh_in(dir: &Path) -> CommandError {
    // What starts has taken the directory, and says where it is once it is ready.
    let starts = match DirLock::was_taken(dir) {
        true => " that is ready (one that was started just now is there in a moment)",
        false => "",
    };
    CommandError::Failed(format!(
        "there is no mesh in {}{starts}: start one with `tars up`, or name another with --data-dir or --gateway",
        dir.display()
    ))
}

/// The session for a mesh; `default` is the mesh that runs on the default data directory.
pub(crate) fn choose<'a>(
    sessions: &'a [Session],
    known: Option<&Known>,
    default: Option<&Known>,
) -> Result<&'a Session, NoSession> {
    let Some(known) = known else {
        return only(sessions, default);
    };
    let same = |s: &&Session| known.gateway.as_deref().is_some_and(|url| s.is_at(url));
    if known.roots.is_empty() {
        let found = sessions.iter().find(same);
        return found.ok_or_else(|| NoSession::Unknown(known.name.clone()));
    }
    let of_mesh = sessions.iter().find(|s| known.shares_a_root(&s.roots));
    of_mesh.ok_or_else(|| match sessions.iter().find(same) {
        Some(other) => other.of_another_mesh(),
        None => NoSession::Unknown(known.name.clone()),
    })
}

fn only<'a>(sessions: &'a [Session], default: Option<&Known>) -> Result<&'a Session, NoSession> {
    let running = default.filter(|d| d.gateway.is_some());
    match (sessions, running) {
        ([], None) => Err(NoSession::None),
        ([], Some(mesh)) => Err(NoSession::Unknown(mesh.name.clone())),
        ([one], Some(mesh)) if !mesh.roots.is_empty() && !mesh.shares_a_root(&one.roots) => {
            let here = format!("{} has no session", mesh.name);
            Err(NoSession::Several(vec![one.to_string(), here]))
        }
        ([one], _) => Ok(one),
        (several, _) => Err(NoSession::Several(
            several.iter().map(Session::to_string).collect(),
        )),
    }
}

#[cfg(test)]
mod tests;
