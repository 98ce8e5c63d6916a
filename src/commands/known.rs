//! What is known of a mesh: where its gateway is, and which roots it trusts.

use super::CommandError;
use crate::{
    app::{Ready, ca_bundle},
    rest::Rest,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::path::{Path, PathBuf};
use tars_certs::{files::certificates, trust::key_id};
use tars_proto::reason;
use tars_runtime::count::counted;

/// A gateway's URL in one spelling: with its scheme, in small letters, without slashes at its end.
pub(crate) fn plain_url(text: &str) -> String {
    let url = text.trim().trim_end_matches('/').to_ascii_lowercase();
    if url.contains("://") {
        url
    } else {
        format!("http://{url}")
    }
}

/// What is known of a mesh without asking it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) gateway: Option<String>,
    /// Key ids of its roots; none when its authority is elsewhere.
    pub(crate) roots: Vec<String>,
    /// For messages.
    pub(crate) name: String,
    /// What a session keeps of it, to find the mesh again.
    pub(crate) data_dir: Option<PathBuf>,
}

impl Known {
    pub(crate) fn at(gateway: &str) -> Self {
        Self {
            gateway: Some(gateway.to_owned()),
            name: gateway.to_owned(),
            ..Self::default()
        }
    }

    /// The mesh of a data directory, if there is one: its ready file has the address, its authority the
    /// roots.
    pub(crate) fn in_dir(dir: &Path) -> Option<Self> {
        let ready = Ready::load(&Ready::default_path(dir)).ok();
        // Replicas have an authority in their own directories.
        let bundle = match &ready {
            Some(ready) if !ready.replicas.is_empty() => ready.ca.clone(),
            _ => ca_bundle(dir),
        };
        let roots = certificates(&bundle).unwrap_or_default();
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

/// A client that waits and repeats a call that a busy mesh asks to repeat.
pub(crate) fn rest_at(gateway: &str) -> Rest {
    Rest::new(gateway).with_patience(|wait| {
        let seconds = counted(wait.as_secs(), "second");
        note!("the mesh is busy; trying again in {seconds}");
    })
}

/// The key ids of the roots of the mesh that answers at a gateway. The call needs no credential, and
/// none is sent before the answer is known.
pub(crate) async fn roots_at(gateway: &str) -> Result<Vec<String>, CommandError> {
    let answer = match rest_at(gateway).get("/api/v1/certificates/bundle").await {
        Ok(answer) => answer,
        // Its certificates come from elsewhere.
        Err(e) if e.reason() == Some(reason::NO_AUTHORITY) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let roots = answer["bundle"]["roots"].as_array().into_iter().flatten();
    let der = |v: &serde_json::Value| STANDARD.decode(v.as_str()?).ok();
    Ok(roots.filter_map(|v| key_id(&der(v)?)).map(text).collect())
}
