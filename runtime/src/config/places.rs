//! Paths and addresses: the data directory, the listeners, and the other services.

use crate::targets::Targets;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};
use tars_certs::Service;

/// Persistent state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The directory for everything that outlives the process: databases, keys, certificates, blobs. Where
    /// it is not set, `$XDG_DATA_HOME/tars`, or `~/.local/share/tars` without that variable.
    pub dir: PathBuf,
}

impl Default for Data {
    fn default() -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let base = std::env::var_os("XDG_DATA_HOME")
            .map_or_else(|| home.join(".local/share"), PathBuf::from);
        Self {
            dir: base.join("tars"),
        }
    }
}

macro_rules! places {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// The addresses to listen on; port 0 picks a free port.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Listen {
            /// Auth, over mutual TLS.
            pub auth: SocketAddr,
            $(
                #[doc = concat!($title, ", over mutual TLS.")]
                pub $name: SocketAddr,
            )*
            /// The REST gateway; must be a loopback address, as the gateway does not terminate
            /// TLS.
            pub gateway: SocketAddr,
            /// The admin port: certificates, policy, connections and configuration of this
            /// process. Must be a loopback address.
            pub admin: SocketAddr,
            /// The observe port: probes and metrics.
            pub observe: SocketAddr,
            /// The bootstrap listener, where a process without a certificate obtains its first
            /// one; off unless it is set.
            pub bootstrap: Option<SocketAddr>,
        }

        impl Default for Listen {
            fn default() -> Self {
                Self {
                    auth: loopback(8093),
                    $($name: loopback($port),)*
                    gateway: loopback(3001),
                    admin: loopback(9900),
                    observe: loopback(9901),
                    bootstrap: None,
                }
            }
        }

        impl Listen {
            /// Returns addresses of which each is a free loopback port, for tests and demonstrations.
            pub fn free() -> Self {
                Self {
                    auth: loopback(0),
                    $($name: loopback(0),)*
                    gateway: loopback(0),
                    admin: loopback(0),
                    observe: loopback(0),
                    bootstrap: None,
                }
            }

            /// Returns the addresses, each as `change` returns it for the listener's key.
            #[must_use]
            pub fn map(
                &self,
                mut change: impl FnMut(&'static str, SocketAddr) -> SocketAddr,
            ) -> Self {
                Self {
                    auth: change("auth", self.auth),
                    $($name: change(stringify!($name), self.$name),)*
                    gateway: change("gateway", self.gateway),
                    admin: change("admin", self.admin),
                    observe: change("observe", self.observe),
                    bootstrap: self.bootstrap.map(|addr| change("bootstrap", addr)),
                }
            }

            /// The address on which a service listens.
            pub fn of(&self, service: Service) -> SocketAddr {
                match service {
                    Service::Auth => self.auth,
                    $(Service::$variant => self.$name,)*
                    Service::Gateway => self.gateway,
                }
            }
        }

        /// Where `tars serve` finds the other services: one `host:port` each, or those of all
        /// replicas, separated by commas. A name that has several addresses counts as several, and is
        /// looked up again every 30 seconds and after failures. `tars up` does not use this section,
        /// as it runs all services.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Connect {
            /// Auth's listener.
            pub auth: String,
            $(
                #[doc = concat!($title, "'s listener.")]
                pub $name: String,
            )*
            /// Auth's bootstrap listener, for a process that joins the mesh.
            pub bootstrap: String,
        }

        impl Default for Connect {
            fn default() -> Self {
                Self {
                    auth: loopback(8093).to_string(),
                    $($name: loopback($port).to_string(),)*
                    bootstrap: loopback(8092).to_string(),
                }
            }
        }

        impl Connect {
            /// Where the services are, each as a list of `host:port`; the bootstrap listener is left
            /// at its default.
            ///
            /// # Errors
            ///
            /// The first error of `target`.
            pub fn from_fn<E>(target: impl Fn(Service) -> Result<String, E>) -> Result<Self, E> {
                Ok(Self {
                    auth: target(Service::Auth)?,
                    $($name: target(Service::$variant)?,)*
                    ..Self::default()
                })
            }

            /// Where a service is, as a list of `host:port`; `None` for the gateway, which no service
            /// calls.
            pub fn of(&self, service: Service) -> Option<&str> {
                match service {
                    Service::Auth => Some(&self.auth),
                    $(Service::$variant => Some(&self.$name),)*
                    Service::Gateway => None,
                }
            }
        }
    };
}
tars_certs::for_each_service!(places);

impl Connect {
    /// What is wrong with the addresses, each for the operator.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let services = Service::over_tls().filter_map(|s| Some((s.as_str(), self.of(s)?)));
        let lists = services.chain([("bootstrap", self.bootstrap.as_str())]);
        let mistakes = lists.flat_map(|(key, list)| {
            let mistakes = Targets::parse(list).err().into_iter().flatten();
            mistakes.map(move |mistake| format!("connect.{key}: {mistake}"))
        });
        mistakes.collect()
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
