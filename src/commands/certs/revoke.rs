//! `tars certs revoke`: what a name means is looked up before anything is cut off.

use super::{
    local,
    remote::{failed, full_id, pages, print_revocations},
};
use crate::{
    commands::{CommandError, confirm::Confirm, mesh::Mesh},
    rest::{Rest, RestError},
};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tars_certs::{
    PeerClass, Serial, SpiffeId, files::certificates, inspect::summarise, trust::key_id,
};
use tars_runtime::config::Config;

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "serial", "id"])))]
pub(crate) struct Revoke {
    /// A PEM file with the certificate and, behind it, the one that signed it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where the signing certificate is, if not in FILE.
    #[arg(long, value_name = "FILE", requires = "file")]
    ca: Option<PathBuf>,
    /// A certificate by its serial number, in hexadecimal.
    #[arg(long)]
    serial: Option<String>,
    /// SHA-256 of the issuer's public key; needed for certificates that the mesh did not issue.
    #[arg(long, requires = "serial", value_name = "KEY_ID")]
    issuer: Option<String>,
    /// Everything that this SPIFFE id (or path) holds now.
    #[arg(long)]
    id: Option<String>,
    /// Revoke an id of which the mesh has issued nothing: in advance, or what another authority issued.
    #[arg(long, requires = "id")]
    force: bool,
    /// Why, for the list and the audit record.
    #[arg(long)]
    reason: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    confirm: Confirm,
}

impl Revoke {
    pub(super) async fn run(self, config: &Config, mesh: &Mesh) -> Result<(), CommandError> {
        let mut body = json!({ "reason": self.reason });
        let rest = mesh.session().await?.rest();
        let holder = match (&self.file, &self.serial, &self.id) {
            (Some(file), ..) => {
                let found = Found::in_file(file, self.ca.as_deref())?;
                body["issuer"] = found.issuer.into();
                body["serial"] = found.serial.into();
                found.holder
            }
            (_, Some(serial), _) => {
                body["serial"] = serial.as_str().into();
                body["issuer"] = self.issuer.clone().unwrap_or_default().into();
                match self.issuer {
                    // The list is of this mesh's own authority: another's serials mean nothing there.
                    Some(_) => None,
                    None => holder_of(&rest, serial).await?,
                }
            }
            (_, _, id) => {
                let id = full_id(config, id.as_deref().unwrap_or_default())?;
                body["spiffe_id"] = id.as_str().into();
                if !self.force {
                    somebody_holds(&rest, &id).await?;
                }
                Some(id)
            }
        };
        self.ask(config, holder.as_ref())?;
        let answer = rest.post("/admin/certificates/revoke", body).await?;
        self.tell(&answer["revocations"]);
        Ok(())
    }

    /// A person or an outside client has others than this mesh to lose; a service is a part of it.
    fn ask(&self, config: &Config, holder: Option<&SpiffeId>) -> Result<(), CommandError> {
        let Some(id) = holder else {
            return self.confirm.ask(
                "it is not known whose certificate this is: it may be that of a service of the mesh",
            );
        };
        let what = match local::class(config, id)? {
            Some(PeerClass::Client | PeerClass::Operator) => return Ok(()),
            Some(_) => "is a service of the mesh",
            None => "has no class here, and may be a service of the mesh",
        };
        self.confirm.ask(&format!(
            "{id} {what}: its peers end their connections with it at once, and it comes back by a new join token only"
        ))
    }

    fn tell(&self, revocations: &Value) {
        let rows = revocations.as_array().cloned().unwrap_or_default();
        if self.json {
            return print_revocations(&rows, true);
        }
        if rows.is_empty() {
            say!("it was revoked before");
            return;
        }
        print_revocations(&rows, false);
        if rows.iter().all(|r| r["serial"] == "") {
            note!("no certificate that still lives was cut off by it");
        }
    }
}

/// Refuses a name under which the mesh has issued nothing: most likely it is mistyped.
async fn somebody_holds(rest: &Rest, id: &SpiffeId) -> Result<(), CommandError> {
    let unknown = |why: &str| {
        Err(CommandError::Failed(format!(
            "{why} {id}, and nothing was revoked: is the name right? `tars certs list` shows all; --force revokes it nevertheless, in advance or for what another authority issued"
        )))
    };
    let path = format!("/admin/certificates?spiffe_id={id}");
    match pages(rest, &path, "certificates").await {
        Ok(rows) if rows.is_empty() => unknown("nobody holds a certificate of this mesh for"),
        Ok(_) => Ok(()),
        Err(e) if is_forbidden(&e) => {
            unknown("without the permission certificates.read nobody can tell who holds")
        }
        Err(e) => Err(e),
    }
}

fn is_forbidden(error: &CommandError) -> bool {
    matches!(error, CommandError::Rest(RestError::Refused { status, .. }) if status.as_u16() == 403)
}

/// Whose a certificate is, as far as the mesh has it in its list and may say so.
async fn holder_of(rest: &Rest, serial: &str) -> Result<Option<SpiffeId>, CommandError> {
    let wanted: Serial = serial
        .parse()
        .map_err(|e| CommandError::Usage(format!("--serial {serial}: {e}")))?;
    let rows = match pages(rest, "/admin/certificates", "certificates").await {
        Err(e) if is_forbidden(&e) => Vec::new(),
        other => other?,
    };
    let is_it = |row: &&Value| row["serial"] == wanted.as_str();
    let id = rows.iter().find(is_it).map(|row| row["spiffe_id"].as_str());
    Ok(id.flatten().and_then(|id| id.parse().ok()))
}

/// A certificate in a file.
struct Found {
    issuer: String,
    serial: String,
    holder: Option<SpiffeId>,
}

impl Found {
    /// The first certificate in a file, with the one that signed it.
    fn in_file(file: &Path, ca: Option<&Path>) -> Result<Self, CommandError> {
        let mut chain = certificates(file).map_err(failed)?;
        if let Some(ca) = ca {
            chain.truncate(1);
            chain.extend(certificates(ca).map_err(failed)?);
        }
        let leaf = summarise(&chain[0])
            .ok_or_else(|| failed("the file's first certificate does not parse"))?;
        let issuer = chain[1..]
            .iter()
            .find(|c| summarise(c).is_some_and(|s| s.subject == leaf.issuer))
            .and_then(|c| key_id(c))
            .ok_or_else(|| {
                failed(format!(
                    "{}: the certificate of {:?}, which signed it, is not in the file; name it with --ca",
                    file.display(),
                    leaf.issuer
                ))
            })?;
        Ok(Self {
            issuer: issuer.to_string(),
            serial: leaf.serial,
            holder: leaf.spiffe_id.and_then(|id| id.parse().ok()),
        })
    }
}
