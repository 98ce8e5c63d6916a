//! `tars certs revoke`: a name is looked up in the list of certificates before anything is revoked.

use super::{
    list::print_revocations,
    local,
    remote::{failed, full_id},
};
use crate::{
    app::{OPERATOR, connect_failure::issue_command},
    commands::{CommandError, confirm::Confirm, listing, mesh::Mesh},
    rest::Rest,
};
use clap::Args;
use http::StatusCode;
use serde_json::{Value, json};
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tars_certs::{
    PeerClass, Serial, SpiffeId, ca::ManagedBy, files::certificates, inspect::summarise,
    trust::key_id,
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
    /// Revoke what the mesh has not issued: an id in advance, or what another authority issued.
    #[arg(long)]
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
        let named = self.named(config)?;
        let rest = mesh.session().await?.rest();
        let listed = Listed::fetch(&rest, &named).await?;
        if !self.force {
            listed.has(&named)?;
        }
        self.ask(config, &named, &listed)?;
        let answer = rest
            .post("/admin/certificates/revoke", named.body(&self.reason))
            .await?;
        self.print(&answer["revocations"]);
        Ok(())
    }

    fn named(&self, config: &Config) -> Result<Named, CommandError> {
        if let Some(file) = &self.file {
            return Named::in_file(file, self.ca.as_deref());
        }
        if let Some(serial) = &self.serial {
            return Ok(Named::Certificate {
                issuer: self.issuer.clone().unwrap_or_default(),
                serial: self::serial(serial)?,
                holder: None,
            });
        }
        let id = full_id(config, self.id.as_deref().unwrap_or_default())?;
        Ok(Named::Identity(id))
    }

    /// Asks before a service is revoked, which stops it, and before the operator's identity is, without
    /// which the mesh cannot be operated; not for people and outside clients.
    fn ask(&self, config: &Config, named: &Named, listed: &Listed) -> Result<(), CommandError> {
        let Some(id) = listed.holder(named) else {
            return self.confirm.ask(
                "the holder of this certificate is not known: it may be a service of the mesh",
            );
        };
        let what = match local::class(config, &id)? {
            Some(PeerClass::Client | PeerClass::Operator) => {
                return self.confirm_operator(&id, listed);
            }
            Some(_) => "is a service of the mesh",
            None => "has no class here, and may be a service of the mesh",
        };
        self.confirm.ask(&format!(
            "{id} {what}: its peers end their connections with it at once, and it comes back by a new join token only"
        ))
    }

    fn confirm_operator(&self, id: &SpiffeId, listed: &Listed) -> Result<(), CommandError> {
        if id.path() != OPERATOR && !listed.is_managed_by_mesh() {
            return Ok(());
        }
        self.confirm.ask(&format!(
            "{id} is the identity that the mesh wrote for its operator: what uses its files is locked out at once; another is issued by `{}`",
            issue_command(id.path(), &"DIR")
        ))
    }

    fn print(&self, revocations: &Value) {
        let rows = revocations.as_array().cloned().unwrap_or_default();
        if self.json {
            return print_revocations(&rows, true);
        }
        if rows.is_empty() {
            say!("it was already revoked");
            return;
        }
        print_revocations(&rows, false);
        if rows.iter().all(|r| r["serial"] == "") {
            note!("no valid certificate was affected");
        }
    }
}

fn serial(text: &str) -> Result<Serial, CommandError> {
    text.parse()
        .map_err(|e| CommandError::Usage(format!("--serial {text}: {e}")))
}

/// What is to be revoked.
enum Named {
    Certificate {
        /// Empty for whichever issued it here.
        issuer: String,
        serial: Serial,
        /// According to its file.
        holder: Option<SpiffeId>,
    },
    Identity(SpiffeId),
}

impl Named {
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
        Ok(Self::Certificate {
            issuer: issuer.to_string(),
            serial: leaf.serial.parse().map_err(failed)?,
            holder: leaf.spiffe_id.and_then(|id| id.parse().ok()),
        })
    }

    fn body(&self, reason: &str) -> Value {
        match self {
            Self::Certificate { issuer, serial, .. } => {
                json!({ "reason": reason, "issuer": issuer, "serial": serial.as_str() })
            }
            Self::Identity(id) => json!({ "reason": reason, "spiffe_id": id.as_str() }),
        }
    }

    /// Where the mesh lists it, if it does.
    fn list(&self) -> String {
        let id = match self {
            Self::Certificate { holder, .. } => holder.as_ref(),
            Self::Identity(id) => Some(id),
        };
        id.map_or_else(
            || "/admin/certificates".to_owned(),
            |id| format!("/admin/certificates?spiffe_id={id}"),
        )
    }

    /// Whether a row of the list is it, or of it.
    fn is(&self, row: &Value) -> bool {
        match self {
            Self::Identity(id) => row["spiffe_id"] == id.as_str(),
            Self::Certificate { issuer, serial, .. } => {
                row["serial"] == serial.as_str()
                    && (issuer.is_empty() || row["issuer"] == issuer.to_lowercase())
            }
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => write!(f, "a certificate for {id}"),
            Self::Certificate { serial, holder, .. } => {
                write!(f, "the certificate with the serial {serial}")?;
                holder.iter().try_for_each(|id| write!(f, " of {id}"))
            }
        }
    }
}

/// The rows of the mesh's list of certificates that a name matches.
enum Listed {
    Rows(Vec<Value>),
    /// The caller may not read the list.
    Unseen,
}

impl Listed {
    async fn fetch(rest: &Rest, named: &Named) -> Result<Self, CommandError> {
        match listing::all(rest, &named.list(), "certificates").await {
            Ok(mut rows) => {
                rows.retain(|row| named.is(row));
                Ok(Self::Rows(rows))
            }
            Err(e) if e.status() == Some(StatusCode::FORBIDDEN) => Ok(Self::Unseen),
            Err(e) => Err(e.into()),
        }
    }

    /// Refuses what the mesh has not issued: most likely it is mistyped, or the mesh is the wrong one.
    fn has(&self, named: &Named) -> Result<(), CommandError> {
        let why = match (self, named) {
            (Self::Rows(rows), _) if !rows.is_empty() => return Ok(()),
            (Self::Rows(_), Named::Identity(id)) => {
                format!("nobody holds a certificate of this mesh for {id}")
            }
            (Self::Rows(_), _) => format!("this mesh has not issued {named}"),
            (Self::Unseen, _) => format!(
                "without the permission certificates.read it cannot be checked whether this mesh has issued {named}"
            ),
        };
        Err(CommandError::Failed(format!(
            "{why}, and nothing was revoked: are the name and the mesh right? `tars certs list` shows all; --force revokes it nevertheless, in advance or for what another authority issued"
        )))
    }

    /// Whose it is, by its name or by the list.
    fn holder(&self, named: &Named) -> Option<SpiffeId> {
        match named {
            Named::Identity(id) => Some(id.clone()),
            Named::Certificate { holder, .. } => holder.clone().or_else(|| self.first_id()),
        }
    }

    fn rows(&self) -> &[Value] {
        match self {
            Self::Rows(rows) => rows,
            Self::Unseen => &[],
        }
    }

    fn first_id(&self) -> Option<SpiffeId> {
        self.rows().first()?["spiffe_id"].as_str()?.parse().ok()
    }

    /// Whether the mesh itself writes and renews it.
    fn is_managed_by_mesh(&self) -> bool {
        let authority = ManagedBy::Authority.as_str();
        self.rows().iter().any(|row| row["source"] == authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(issuer: &str, serial: &str) -> Named {
        Named::Certificate {
            issuer: issuer.to_owned(),
            serial: self::serial(serial).unwrap(),
            holder: None,
        }
    }

    fn row(issuer: &str, serial: &str, source: &str) -> Value {
        json!({ "spiffe_id": "spiffe://tars.local/client/c3", "issuer": issuer, "serial": serial,
                "source": source })
    }

    #[test]
    fn a_certificate_is_the_same_only_with_its_issuer() {
        let listed = row("ab", "0c", "renewal");
        assert!(certificate("ab", "0c").is(&listed));
        assert!(certificate("AB", "0c").is(&listed));
        assert!(certificate("", "0c").is(&listed), "any issuer");
        assert!(!certificate("cd", "0c").is(&listed), "of another mesh");
        assert!(!certificate("ab", "0d").is(&listed));
    }

    #[test]
    fn a_certificate_of_another_issuer_is_refused_with_the_way_out() {
        let none = Listed::Rows(Vec::new());
        let id = Named::Identity("spiffe://tars.local/nobody".parse().unwrap());
        for (listed, named, why) in [
            (&none, &certificate("ab", "0c"), "has not issued"),
            (&none, &id, "nobody holds"),
            (&Listed::Unseen, &id, "certificates.read"),
        ] {
            let said = listed.has(named).unwrap_err();
            assert_eq!(said.exit_code(), 1);
            let said = said.to_string();
            assert!(said.contains(why) && said.contains("--force"), "{said}");
            assert!(said.contains("nothing was revoked"), "{said}");
        }
        let listed = Listed::Rows(vec![row("ab", "0c", "renewal")]);
        assert!(listed.has(&certificate("ab", "0c")).is_ok());
    }

    #[test]
    fn an_identity_that_the_authority_manages_is_known_by_its_source() {
        let kept = |source: &str| Listed::Rows(vec![row("ab", "0c", source)]).is_managed_by_mesh();
        assert!(kept("authority"));
        assert!(!kept("renewal") && !kept("administrator"));
        assert!(!Listed::Unseen.is_managed_by_mesh());
    }
}
