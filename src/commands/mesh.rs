//! Which mesh a command speaks to: one rule for all commands that name one.
//!
//! A mesh is named by `--gateway`, or by the data directory that its process runs on (`--data-dir`,
//! `TARS__DATA__DIR`, the configuration file). A command speaks to the mesh that it names, or to
//! none. Where nothing names one, a session that is the only one decides, unless a mesh of somebody
//! else's runs on the default data directory.

use super::{
    CommandError,
    session::{Session, store},
};
use crate::{
    app::{Ready, ca_bundle},
    rest::{Rest, RestError},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};
use tars_certs::{files::certificates, trust::key_id};
use tars_proto::fault;

#[derive(Debug, Args, Default)]
pub(crate) struct MeshArg {
    /// The gateway's URL of the mesh that is meant; --data-dir names one, too.
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

/// A gateway's URL in one spelling: with its scheme, in small letters, without slashes at its end.
pub(crate) fn plain_url(text: &str) -> String {
    let url = text.trim().trim_end_matches('/').to_ascii_lowercase();
    if url.contains("://") {
        url
    } else {
        format!("http://{url}")
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

/// What is known of a mesh without asking it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) gateway: Option<String>,
    /// Key ids of its roots; none when its authority is elsewhere.
    pub(crate) roots: Vec<String>,
    /// For messages.
    pub(crate) name: String,
    /// For whoever logs in.
    pub(crate) data_dir: Option<PathBuf>,
}

impl Known {
    fn at(gateway: &str) -> Self {
        Self {
            gateway: Some(gateway.to_owned()),
            name: gateway.to_owned(),
            ..Self::default()
        }
    }

    /// The mesh of a data directory, if there is one: a process that runs on it says where it is,
    /// and its authority what it trusts.
    fn in_dir(dir: &Path) -> Option<Self> {
        let ready = Ready::load(&Ready::default_path(dir)).ok();
        let roots = certificates(&ca_bundle(dir)).unwrap_or_default();
        let roots: Vec<String> = roots.iter().filter_map(|r| key_id(r)).map(text).collect();
        let gateway = ready.map(|r| r.gateway);
        (gateway.is_some() || !roots.is_empty()).then(|| Self {
            name: match &gateway {
                Some(url) => format!("{url} (data directory {})", dir.display()),
                None => format!("the data directory {}", dir.display()),
            },
            data_dir: dir.canonicalize().ok(),
            gateway,
            roots,
        })
    }

    pub(crate) fn shares_a_root(&self, roots: &[String]) -> bool {
        self.roots.iter().any(|r| roots.contains(r))
    }
}

fn text(key: tars_certs::KeyId) -> String {
    key.to_string()
}

/// The mesh that a command means.
#[derive(Debug)]
pub(crate) struct Mesh {
    named: Named,
    default: PathBuf,
    /// Where the configuration says that its gateway is.
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

    fn known(&self) -> Result<Option<Known>, CommandError> {
        match &self.named {
            Named::Nothing => Ok(None),
            Named::Gateway(url) => Ok(Some(Known::at(url))),
            Named::DataDir(dir) => self.in_dir(dir).map(Some),
        }
    }

    /// The mesh of a data directory. Services that run by themselves leave nothing there that says
    /// where the gateway is; their configuration does.
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
        // A gateway alone says nothing of whose mesh is behind it now.
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
            // Nobody needs to answer there.
            known.roots = roots_at(url).await.unwrap_or_default();
        }
        let default = Known::in_dir(&self.default);
        match choose(&sessions, known.as_ref(), default.as_ref()) {
            Ok(kept) => Ok(kept.clone()),
            Err(why) => {
                let url = known.as_ref().and_then(|k| k.gateway.as_deref());
                let there = sessions.iter().find(|s| url.is_some_and(|u| s.is_at(u)));
                there
                    .cloned()
                    .ok_or_else(|| CommandError::Failed(why.to_string()))
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
    found.map_err(|why| CommandError::Failed(why.to_string()))
}

fn no_mesh_in(dir: &Path) -> CommandError {
    CommandError::Failed(format!(
        "there is no mesh in {}: start one with `tars up`, or name another with --data-dir or --gateway",
        dir.display()
    ))
}

/// Why there is no session to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSession {
    #[error("no session{}; run `tars login` first", left_behind())]
    None,
    #[error("no session for {mesh}; run `tars login` for it first{old}", mesh = .0, old = left_behind())]
    Unknown(String),
    #[error(
        "several meshes could be meant; name one with --gateway URL or --data-dir DIR:\n  {}",
        .0.join("\n  ")
    )]
    Several(Vec<String>),
    #[error(
        "the session of {username} at {gateway} is for another mesh than the one there now (its roots are others: it was made anew, or another took its place); run `tars login` again"
    )]
    OtherMesh { username: String, gateway: String },
}

/// A session file of earlier versions, which does not say whose mesh it is for.
fn left_behind() -> String {
    match store::of_old() {
        Some(path) => format!(
            " ({} is of an earlier version, and does not say which mesh it is for; it goes with the next login)",
            path.display()
        ),
        None => String::new(),
    }
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

/// The key ids of the roots of whatever mesh answers at a gateway. Anybody may ask; no credential
/// is shown before this is known.
pub(crate) async fn roots_at(gateway: &str) -> Result<Vec<String>, CommandError> {
    let answer = match Rest::new(gateway).get("/api/v1/certificates/bundle").await {
        Ok(answer) => answer,
        // Its certificates come from elsewhere.
        Err(RestError::Refused { body, .. }) if reason(&body) == Some("NO_AUTHORITY") => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e.into()),
    };
    let roots = answer["bundle"]["roots"].as_array().into_iter().flatten();
    let der = |v: &serde_json::Value| STANDARD.decode(v.as_str()?).ok();
    Ok(roots.filter_map(|v| key_id(&der(v)?)).map(text).collect())
}

fn reason(body: &serde_json::Value) -> Option<&str> {
    let mut details = body["details"].as_array()?.iter();
    let ours = details.find(|d| d["domain"] == fault::DOMAIN)?;
    ours["reason"].as_str()
}

#[cfg(test)]
mod tests;
