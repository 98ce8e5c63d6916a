//! What `--ready-file` holds: where everything is, written whole once everything serves.

use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};
use tars_certs::secret;

macro_rules! ready {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// Where a running mesh is, and what a client needs to reach it.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Ready {
            /// Auth's URL.
            pub auth: String,
            $(
                #[doc = concat!($title, "'s URL.")]
                pub $name: String,
            )*
            /// The REST gateway's URL.
            pub gateway: String,
            /// The admin port's URL.
            pub admin: String,
            /// The URL of health and metrics.
            pub observe: String,
            /// The URL of the bootstrap listener, where it is on.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub bootstrap: Option<String>,
            /// The roots to trust, as a PEM file.
            pub ca: PathBuf,
            /// The operator's certificate chain, as a PEM file.
            pub client_cert: PathBuf,
            /// The operator's private key, as a PEM file.
            pub client_key: PathBuf,
            /// The first administrator's name.
            pub admin_user: String,
            /// The file with the first administrator's password.
            pub admin_password_file: PathBuf,
            /// The mesh's SPIFFE trust domain.
            pub trust_domain: String,
        }
    };
}
tars_certs::for_each_service!(ready);

impl Ready {
    /// Where a running mesh leaves it for the other commands.
    pub fn default_path(data: &Path) -> PathBuf {
        data.join("ready.json")
    }

    /// Writes the file, readable by its owner alone.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        secret::write(path, text.as_bytes())
    }

    /// Reads the file of a running mesh.
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }
}
