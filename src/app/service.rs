//! The services that a process can run, and where each is.

use crate::app::ready::Ready;
use std::net::SocketAddr;
use tars_runtime::config::{Connect, Listen};

macro_rules! services {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// A service of the mesh.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
        pub enum Service {
            /// Users, credentials, certificates and the audit list.
            Auth,
            $(
                #[doc = $title]
                #[value(help = $title)]
                $variant,
            )*
            /// The REST gateway.
            Gateway,
        }

        impl Service {
            /// Every service, Auth first: the others follow it.
            pub const ALL: &[Self] = &[Self::Auth, $(Self::$variant,)* Self::Gateway];

            /// The name in the contract, the configuration and SPIFFE ids.
            pub fn as_str(self) -> &'static str {
                match self {
                    Self::Auth => "auth",
                    $(Self::$variant => stringify!($name),)*
                    Self::Gateway => "gateway",
                }
            }

            pub(crate) fn listen(self, listen: &Listen) -> SocketAddr {
                match self {
                    Self::Auth => listen.auth,
                    $(Self::$variant => listen.$name,)*
                    Self::Gateway => listen.gateway,
                }
            }

            /// Where the configuration says the service is, as `host:port`. No service calls the
            /// gateway.
            pub(crate) fn target(self, connect: &Connect) -> Option<&str> {
                match self {
                    Self::Auth => Some(&connect.auth),
                    $(Self::$variant => Some(&connect.$name),)*
                    Self::Gateway => None,
                }
            }

            /// The service's URL in a running mesh.
            pub fn url(self, ready: &Ready) -> &str {
                match self {
                    Self::Auth => &ready.auth,
                    $(Self::$variant => &ready.$name,)*
                    Self::Gateway => &ready.gateway,
                }
            }
        }
    };
}
tars_certs::for_each_service!(services);

impl Service {
    /// The services that speak gRPC over mutual TLS: all but the gateway.
    pub fn over_tls() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|s| s.is_over_tls())
    }

    pub(crate) fn is_over_tls(self) -> bool {
        self != Self::Gateway
    }
}
