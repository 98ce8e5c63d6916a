//! What is done on files alone.

use super::{
    Leaf,
    term::{Asked, ends_in, left},
};
use crate::{
    app::{Hold, StartError, ca_dir, open_authority},
    commands::{CommandError, output},
};
use std::{path::Path, process::ExitCode, time::Duration};
use tars_certs::{
    Authority, ClassTable, IdentityFiles, PeerClass, SpiffeId,
    ca::Request,
    files::certificates,
    inspect::{Summary, summarise},
    join::{JoinClaims, JoinKind, JoinToken},
    secret,
};
use tars_runtime::{clock::Clock, config::Config};
use zeroize::Zeroizing;

/// How long a certificate lives that nobody named days for.
const USUAL_DAYS: u64 = 30;

/// The authority's files, unless a process works on them that must be asked instead.
pub(super) fn take_at_hand(config: &Config) -> Result<Option<Hold>, CommandError> {
    if !Authority::exists(&ca_dir(config)) {
        return Ok(None);
    }
    match Hold::whole(&config.data.dir) {
        Err(StartError::Locked { .. }) => Ok(None),
        other => Ok(Some(other?)),
    }
}

pub(super) fn init(config: &Config) -> Result<(), CommandError> {
    let _hold = Hold::whole(&config.data.dir)?;
    let authority = open_authority(config, &Clock::system())?;
    say!("{}", authority.bundle_path().display());
    Ok(())
}

pub(super) fn id(config: &Config, path: &str) -> Result<SpiffeId, CommandError> {
    SpiffeId::new(&config.trust.domain, path).map_err(|e| CommandError::Usage(e.to_string()))
}

pub(super) fn issue(config: &Config, path: &str, leaf: Leaf) -> Result<(), CommandError> {
    let clock = Clock::system();
    let (id, class) = known(config, path)?;
    let authority = open_authority(config, &clock)?;
    let asked = Asked(leaf.days);
    let mut request = Request::new(id.clone(), asked.or(USUAL_DAYS));
    // Who is nobody's server has no names of one.
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
    tell(&id, &files, asked, (now, issued.not_after));
    Ok(())
}

/// Says what was issued, where it is and when it ends.
pub(super) fn tell(
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

/// One that no pattern knows could do nothing: whoever asks for it is mistaken, as Auth says, too.
fn known(config: &Config, path: &str) -> Result<(SpiffeId, PeerClass), CommandError> {
    let id = id(config, path)?;
    let known = class(config, &id)?;
    let class = known.ok_or_else(|| {
        CommandError::Usage(format!(
            "no pattern of certificates.classes knows {id}: it could do nothing"
        ))
    })?;
    Ok((id, class))
}

/// What an identity is to the mesh.
pub(super) fn class(config: &Config, id: &SpiffeId) -> Result<Option<PeerClass>, CommandError> {
    let rules = config.certificates.classes.iter();
    let classes = ClassTable::new(rules.map(|r| (r.pattern.as_str(), r.class.as_str())))
        .map_err(|e| CommandError::Failed(e.to_string()))?;
    Ok(classes.classify(id))
}

/// A join token, and when it ends.
pub(super) struct Token {
    pub(super) text: Zeroizing<String>,
    pub(super) ends: String,
}

pub(super) fn join_token(config: &Config, path: &str, ttl: u32) -> Result<Token, CommandError> {
    let clock = Clock::system();
    let authority = open_authority(config, &clock)?;
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
    Ok(open_authority(config, &Clock::system())?.bundle_pem())
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

/// How near its end a certificate is: `soon` in the last third of its life, when a renewal is late.
fn standing(summary: &Summary, now: i64) -> &'static str {
    let life = summary.not_after - summary.not_before;
    match summary.not_after - now {
        left if left <= 0 => "EXPIRED",
        left if left < life / 3 => "soon",
        _ => "ok",
    }
}

/// Exits with 1 when a certificate has expired.
pub(super) fn inspect(file: &Path, json: bool) -> Result<ExitCode, CommandError> {
    let certs = certificates(file).map_err(|e| CommandError::Failed(e.to_string()))?;
    let summaries: Vec<Summary> = certs.iter().filter_map(|c| summarise(c)).collect();
    if summaries.len() != certs.len() {
        return Err(CommandError::Failed(format!(
            "{}: holds something that is no certificate",
            file.display()
        )));
    }
    let now = i64::try_from(Clock::system().now_s()).unwrap_or(i64::MAX);
    if json {
        let text = serde_json::to_string_pretty(&summaries);
        say!("{}", text.unwrap_or_default());
    } else {
        let rows: Vec<Vec<String>> = summaries
            .iter()
            .map(|s| {
                vec![
                    s.spiffe_id.clone().unwrap_or_else(|| s.subject.clone()),
                    s.issuer.clone(),
                    s.serial.clone(),
                    if s.is_ca { "yes" } else { "no" }.to_owned(),
                    left(s.not_after, now),
                    standing(s, now).to_owned(),
                ]
            })
            .collect();
        let head = [
            "identity",
            "issuer",
            "serial",
            "ca",
            "expires in",
            "standing",
        ];
        output::table(&head, &rows);
    }
    let mut expired = false;
    for summary in &summaries {
        let name = summary.spiffe_id.as_ref().unwrap_or(&summary.subject);
        match standing(summary, now) {
            "EXPIRED" => {
                expired = true;
                note!("warning: {name} has expired");
            }
            "soon" => note!("warning: {name} is in the last third of its life"),
            _ => {}
        }
    }
    Ok(ExitCode::from(u8::from(expired)))
}
