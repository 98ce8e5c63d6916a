//! The services of the mesh, listed once.
//!
//! Every list of services in the tree follows from the entries of [`for_each_service!`]. Code that
//! only needs to go through the services uses [`Service`]; the macro is for types that have a field
//! or a variant for each: peer classes, the addresses in the configuration, the ready file, and the
//! table of implementations. One more service is one more entry.
//!
//! [`for_each_service!`]: crate::for_each_service

/// Calls a macro with one entry for each service that is served over mutual TLS and follows Auth.
///
/// An entry is `Variant, name, "Title", port, implementation;`. The name is the service's SPIFFE
/// path, its key in the configuration, and the second segment of its proto package
/// (`tars.<name>.v1`). The port is the default of its listener on loopback. The implementation is a
/// path that only the crate which assembles services resolves.
///
/// Auth, which the others follow, and the gateway, which speaks HTTP, are in every mesh and are
/// written out where they are needed.
#[macro_export]
macro_rules! for_each_service {
    ($callback:ident) => {
        $callback! {
            Orchestration, orchestration, "Orchestration", 8094, tars_orchestration::Orchestration;
            Automl, automl, "AutoML", 8097, tars_automl::Automl;
            Hypersync, hypersync, "HyperSync", 8098, tars_hypersync::HyperSync;
        }
    };
}

macro_rules! services {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        /// A service of the mesh.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Service {
            /// Users, credentials, certificates and the audit list.
            Auth,
            $(
                #[doc = $title]
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

            /// The name in documentation and help.
            pub fn title(self) -> &'static str {
                match self {
                    Self::Auth => "Auth",
                    $(Self::$variant => $title,)*
                    Self::Gateway => "the REST gateway",
                }
            }
        }

        /// The names of the services that follow Auth.
        pub const SERVICES: &[&str] = &[$(stringify!($name),)*];
    };
}
crate::for_each_service!(services);

impl Service {
    /// The service with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.as_str() == name)
    }

    /// The services that speak gRPC over mutual TLS: all but the gateway.
    pub fn over_tls() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|s| s.is_over_tls())
    }

    /// Whether the service speaks gRPC over mutual TLS.
    pub fn is_over_tls(self) -> bool {
        self != Self::Gateway
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerClass;

    #[test]
    fn every_service_is_known_by_its_name_and_is_a_peer_class() {
        for service in Service::ALL {
            assert_eq!(Service::parse(service.as_str()), Some(*service));
            let class = PeerClass::parse(service.as_str()).unwrap();
            assert!(class.is_workload(), "{service:?}");
        }
        assert_eq!(Service::parse("worker"), None);
    }
}
