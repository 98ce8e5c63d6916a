//! The services of the mesh, listed once.
//!
//! Every list of services in the tree is generated from the entries of [`for_each_service!`]: peer
//! classes here, listeners and addresses in the configuration, the flags of `tars up`, the ready
//! file, and the assembly of a process. One more service is one more entry.
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
