//! What `--ready-file` holds: where everything is, written whole once everything serves.

use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};
use tars_certs::secret;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub auth: String,
    pub orchestration: String,
    pub automl: String,
    pub hypersync: String,
    pub gateway: String,
    pub admin: String,
    pub observe: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<String>,
    pub ca: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
    pub admin_user: String,
    pub admin_password_file: PathBuf,
    pub trust_domain: String,
}

impl Ready {
    /// Where a running mesh leaves it for the other commands.
    pub fn default_path(data: &Path) -> PathBuf {
        data.join("ready.json")
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        secret::write(path, text.as_bytes())
    }

    pub fn load(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }
}
