//! Commands that work on the authority's files.

use super::{
    Leaf,
    term::{Asked, ends_in},
};
use crate::{
    app::{DirLock, StartError, ca_dir, open_authority},
    commands::{CommandError, block_on, output},
};
use std::{path::Path, time::Duration};
use tars_certs::{
    Authority, IdentityFiles, PeerClass, SpiffeId,
    ca::Request,
    join::{JoinClaims, JoinKind, JoinToken},
    secret,
};
use tars_runtime::{clock::Clock, config::Config};
use zeroize::Zeroizing;

/// The lifetime of a certificate without `--days`.
const USUAL_DAYS: u64 = 30;

/// The authority's files, unless a process works on them that must be asked instead.
pub(super) fn lock_if_unused(config: &Config) -> Result<Option<DirLock>, CommandError> {
    if !Authority::exists(&ca_dir(config)) {
        return Ok(None);
    }
    match DirLock::whole(&config.data.dir) {
        Err(StartError::Locked { .. }) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn authority(config: &Config, clock: &Clock) -> Result<Authority, CommandError> {
    Ok(block_on(open_authority(config, clock))??)
}

pub(super) fn init(config: &Config) -> Result<(), CommandError> {
    let _lock = DirLock::whole(&config.data.dir)?;
    let authority = authority(config, &Clock::system())?;
    say!("{}", authority.bundle_path().display());
    Ok(())
}

pub(super) fn id(config: &Config, path: &str) -> Result<SpiffeId, CommandError> {
    SpiffeId::new(&config.trust.domain, path).map_err(|e| CommandError::Usage(e.to_string()))
}

pub(super) fn issue(config: &Config, path: &str, leaf: Leaf) -> Result<(), CommandError> {
    let clock = Clock::system();
    let (id, class) = known(config, path)?;
    let authority = authority(config, &clock)?;
    let asked = Asked(leaf.days);
    let mut request = Request::new(id.clone(), asked.or(USUAL_DAYS));
    // Only a server needs the names of one.
    if class.is_workload() {
        request = request.with_local_names();
    }
    let files = IdentityFiles::in_dir(&leaf.folder(config, path));
    leaf.force.allows_identity(&files)?;
    request.dns.extend(leaf.dns);
    request.ips.extend(leaf.ip);
    let now = clock.now();
    let issued = authority.issue(&request, now)?;
    files.save(&issued, &authority.bundle_pem())?;
    print_issued(&id, &files, asked, (now, issued.not_after));
    Ok(())
}

/// Prints what was issued, where it is and when it ends.
pub(super) fn print_issued(
    id: &SpiffeId,
    files: &IdentityFiles,
    asked: Asked,
    (now, not_after): (Duration, Duration),
) {
    let ends = ends_in(now, not_after);
    say!("{id}  {}  ends in {ends}", files.cert.display());
    if let Some(warning) = asked.cut(now, not_after) {
        note!("{warning}");
    }
}

/// An id and its class. An id without a class could call nothing, so that it is refused as a mistake,
/// as Auth does.
fn known(config: &Config, path: &str) -> Result<(SpiffeId, PeerClass), CommandError> {
    let id = id(config, path)?;
    let known = class(config, &id)?;
    let class = known.ok_or_else(|| {
        CommandError::Usage(format!(
            "no pattern of certificates.classes matches {id}: it could call nothing"
        ))
    })?;
    Ok((id, class))
}

/// What an identity is to the mesh.
pub(crate) fn class(config: &Config, id: &SpiffeId) -> Result<Option<PeerClass>, CommandError> {
    let classes = config.certificates.class_table();
    let classes = classes.map_err(|e| CommandError::Failed(e.to_string()))?;
    Ok(classes.classify(id))
}

/// A join token, and when it ends.
pub(super) struct Token {
    pub(super) text: Zeroizing<String>,
    pub(super) ends: String,
}

pub(super) fn join_token(config: &Config, path: &str, ttl: u32) -> Result<Token, CommandError> {
    let clock = Clock::system();
    let authority = authority(config, &clock)?;
    let life = Duration::from_secs(u64::from(ttl));
    let (kind, id) = (JoinKind::Unrecorded, known(config, path)?.0);
    let claims = JoinClaims::first(&authority, kind, id, clock.now(), life);
    let token = JoinToken::mint(&authority, &claims);
    Ok(Token {
        text: Zeroizing::new(token.as_str().to_owned()),
        ends: format!("in {}", ends_in(clock.now(), claims.expires_at)),
    })
}

/// A secret goes to a private file, or to standard output for a pipe.
pub(super) fn hand_over(token: &Token, out: Option<&Path>) -> Result<(), CommandError> {
    let (text, ends) = (&token.text, &token.ends);
    match out {
        None => {
            say!("{}", text.as_str());
            note!("good for one use; ends {ends}");
        }
        Some(path) => {
            secret::write(path, text.as_bytes()).map_err(|e| CommandError::file(path, e))?;
            note!("{}: good for one use; ends {ends}", path.display());
        }
    }
    Ok(())
}

pub(super) fn bundle(config: &Config) -> Result<String, CommandError> {
    Ok(authority(config, &Clock::system())?.bundle_pem())
}

pub(super) fn write_public(text: &str, out: Option<&Path>) -> Result<(), CommandError> {
    match out {
        None => output::print(format_args!("{text}")),
        Some(path) => {
            secret::write_public(path, text.as_bytes()).map_err(|e| CommandError::file(path, e))?;
        }
    }
    Ok(())
}
