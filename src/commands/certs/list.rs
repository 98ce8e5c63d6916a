//! `tars certs list` and `tars certs revoked`: what the mesh has issued, and what it has cut off.

use super::remote::full_id;
use crate::{
    commands::{
        CommandError,
        listing::{self, text},
        mesh::Mesh,
    },
    rest::{Rest, RestError},
};
use clap::Args;
use serde_json::Value;
use tars_proto::reason;
use tars_runtime::{clock::Clock, config::Config, count::counted};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this identity: a SPIFFE id or path.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// List certificates that peers refuse, too: expired, revoked, or below a root that was removed.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whether peers accept a certificate that was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Valid,
    Expired,
    Revoked,
    /// Its chain ends at a root that was removed.
    RootRemoved,
}

impl Standing {
    /// `roots` are the generations that are trusted, where that is known.
    fn of(certificate: &Value, now_s: i64, roots: Option<&[u64]>) -> Self {
        let not_after = text(&certificate["not_after"]);
        let ends = OffsetDateTime::parse(&not_after, &Rfc3339);
        // 0 where it was not recorded.
        let root = certificate["root_generation"].as_u64().unwrap_or(0);
        if certificate["revoked"] == true {
            Self::Revoked
        } else if ends.is_ok_and(|ends| ends.unix_timestamp() <= now_s) {
            Self::Expired
        } else if root != 0 && roots.is_some_and(|trusted| !trusted.contains(&root)) {
            Self::RootRemoved
        } else {
            Self::Valid
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "EXPIRED",
            Self::Revoked => "REVOKED",
            Self::RootRemoved => "ROOT REMOVED",
        }
    }
}

impl List {
    pub(super) async fn run(self, config: &Config, mesh: &Mesh) -> Result<(), CommandError> {
        let filter = match &self.id {
            Some(id) => format!("?spiffe_id={}", full_id(config, id)?),
            None => String::new(),
        };
        let rest = mesh.session().await?.rest();
        let path = format!("/admin/certificates{filter}");
        let rows = listing::all(&rest, &path, "certificates").await?;
        let (now, roots) = (now_s(), trusted_roots(&rest).await?);
        let standing = |row: &Value| Standing::of(row, now, roots.as_deref());
        let found = rows.len();
        let shown: Vec<Value> = rows
            .into_iter()
            .filter(|row| self.all || standing(row) == Standing::Valid)
            .collect();
        self.print(&shown, standing);
        note_hidden(found - shown.len());
        Ok(())
    }

    fn print(&self, rows: &[Value], standing: impl Fn(&Value) -> Standing) {
        if self.json {
            say!("{:#}", Value::from(rows));
            return;
        }
        let head = [
            "identity",
            "source",
            "serial",
            "issued",
            "ends",
            "renewable until",
            "root",
            "standing",
        ];
        listing::table(&head, rows, |c| {
            vec![
                text(&c["spiffe_id"]),
                text(&c["source"]),
                text(&c["serial"]),
                text(&c["issued_at"]),
                text(&c["not_after"]),
                text(&c["lineage_ends_at"]),
                c["root_generation"].to_string(),
                standing(c).as_str().to_owned(),
            ]
        });
    }
}

fn now_s() -> i64 {
    i64::try_from(Clock::system().now_s()).unwrap_or(i64::MAX)
}

fn note_hidden(hidden: usize) {
    if hidden > 0 {
        let hidden = counted(hidden as u64, "certificate");
        note!("{hidden} that peers refuse left out; --all lists them, too");
    }
}

/// The generations of the roots that are trusted now; `None` where the mesh has no authority.
async fn trusted_roots(rest: &Rest) -> Result<Option<Vec<u64>>, RestError> {
    let status = match rest.get("/admin/roots").await {
        Err(e) if e.reason() == Some(reason::NO_AUTHORITY) => return Ok(None),
        other => other?,
    };
    let roots = status["roots"].as_array().into_iter().flatten();
    Ok(Some(
        roots.filter_map(|r| r["generation"].as_u64()).collect(),
    ))
}

pub(super) async fn revoked(mesh: &Mesh, json: bool) -> Result<(), CommandError> {
    let rest = mesh.session().await?.rest();
    let rows = listing::all(&rest, "/admin/certificates/revoked", "revocations").await?;
    print_revocations(&rows, json);
    Ok(())
}

pub(super) fn print_revocations(rows: &[Value], json: bool) {
    if json {
        say!("{:#}", Value::from(rows));
        return;
    }
    let head = ["identity", "serial", "before", "by", "at", "reason"];
    listing::table(&head, rows, |r| {
        let names = [
            "spiffe_id",
            "serial",
            "not_before",
            "revoked_by",
            "revoked_at",
            "reason",
        ];
        names.map(|n| text(&r[n])).to_vec()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_certificate_that_peers_refuse_says_why() {
        let now = 1_800_000_000;
        let (later, before) = ("2027-01-15T08:00:01Z", "2027-01-15T08:00:00Z");
        for (not_after, revoked, root, standing) in [
            (later, false, 2, Standing::Valid),
            (later, false, 0, Standing::Valid),
            (later, false, 1, Standing::RootRemoved),
            (later, true, 2, Standing::Revoked),
            (before, false, 2, Standing::Expired),
            (before, true, 1, Standing::Revoked),
        ] {
            let row =
                json!({ "not_after": not_after, "revoked": revoked, "root_generation": root });
            assert_eq!(Standing::of(&row, now, Some(&[2, 3])), standing, "{row}");
        }
        let below = json!({ "not_after": later, "revoked": false, "root_generation": 1 });
        assert_eq!(Standing::of(&below, now, None), Standing::Valid);
    }
}
