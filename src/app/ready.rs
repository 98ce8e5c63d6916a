//! What `--ready-file` holds: where everything is, written whole once everything serves.

use crate::app::{Process, Service, StartError, bound::Bound, operator_identity, password_file};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
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
            /// The replicas that serve, where `tars up` has started several.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub replicas: Vec<Replica>,
        }

        impl Ready {
            /// Describes a mesh whose ports are bound, and makes an operator identity for it.
            pub(crate) fn new(bound: &Bound, process: &Process) -> Result<Self, StartError> {
                let https =
                    |service| Ok::<_, StartError>(format!("https://{}", bound.address(service)?));
                let http = |addr: SocketAddr| format!("http://{addr}");
                let operator = operator_identity(process)?;
                Ok(Self {
                    auth: https(Service::Auth)?,
                    $($name: https(Service::$variant)?,)*
                    gateway: http(bound.address(Service::Gateway)?),
                    admin: http(bound.admin_address()?),
                    observe: http(bound.observe_address()?),
                    bootstrap: bound.bootstrap_address()?.map(|addr| format!("https://{addr}")),
                    ca: operator.ca,
                    client_cert: operator.cert,
                    client_key: operator.key,
                    admin_user: "admin".to_owned(),
                    admin_password_file: password_file(&process.config().data.dir),
                    trust_domain: process.config().trust.domain.clone(),
                    replicas: Vec::new(),
                })
            }

            /// A service's URL.
            pub fn url(&self, service: Service) -> &str {
                match service {
                    Service::Auth => &self.auth,
                    $(Service::$variant => &self.$name,)*
                    Service::Gateway => &self.gateway,
                }
            }
        }
    };
}
tars_certs::for_each_service!(ready);

/// A replica of the mesh: its process, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Counted from 1.
    pub number: u32,
    /// The id of its process.
    pub pid: u32,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The URL of each listener, by its key in the section `listen`.
    #[serde(flatten)]
    pub urls: BTreeMap<String, String>,
}

impl Replica {
    pub(crate) fn new(number: u32, pid: u32, data_dir: &Path, ready: &Ready) -> Self {
        let services = Service::ALL.iter().map(|s| (s.as_str(), ready.url(*s)));
        let own = [("admin", ready.admin.as_str()), ("observe", &ready.observe)];
        let bootstrap = ready
            .bootstrap
            .iter()
            .map(|url| ("bootstrap", url.as_str()));
        let urls = services.chain(own).chain(bootstrap);
        Self {
            number,
            pid,
            data_dir: data_dir.to_owned(),
            urls: urls
                .map(|(key, url)| (key.to_owned(), url.to_owned()))
                .collect(),
        }
    }
}

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
