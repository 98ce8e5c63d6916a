//! The file descriptors of the process, budgeted over its listeners.
//!
//! A connection costs one descriptor. When they run out nothing can be accepted, opened or dialled, on
//! any port. So what databases, files and outgoing channels need is reserved first, then what the
//! admin and observe ports need, so that probes are answered under attack; the other listeners share
//! the rest.

use crate::{config::Config, listen};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fmt;

/// For the runtime, the log, the data directory, and one listening socket each.
const OF_THE_PROCESS: usize = 64;
/// For what stands behind one listener: its database with write-ahead log and readers, blobs, and its
/// channels to other services.
const BEHIND_A_LISTENER: usize = 40;
/// The minimum of connections that is of any use.
const LEAST: usize = 8;
/// Connections of one listener with which a machine of ordinary size is not short of them.
const AMPLE: usize = 512;

/// Raises the soft limit on open files to the hard one, and returns the resulting limit. The default
/// soft limit of 1,024 exists for programs that use `select`, which this one does not.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(e) => {
            tracing::warn!(error = %e, "the limit on open files cannot be raised");
            limit.current
        }
    };
    current
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX)
}

/// The listeners of a process besides its admin and observe ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listeners {
    /// The number of mutual TLS listeners and bootstrap listeners.
    pub mesh: usize,
    /// Whether the process runs the gateway.
    pub gateway: bool,
}

/// The limits that apply because there are too few descriptors for the configured ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowered {
    /// The limit on open files.
    pub limit: usize,
    /// The number of descriptors that the configured connections would need.
    pub wanted: usize,
    /// Open connections of each mesh listener.
    pub connections: usize,
    /// Handshakes in progress on each mesh listener.
    pub handshakes: usize,
    /// Open connections of the gateway.
    pub gateway: usize,
    /// Whether an operator should act: fewer connections are left than a mesh of ordinary size
    /// needs, or than somebody configured. The defaults are made for a high limit, so that lowering
    /// them is ordinary.
    pub is_tight: bool,
}

impl fmt::Display for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, wanted, .. } = self;
        write!(
            f,
            "the process may have {limit} open files, and the configured connections need {wanted}: \
             a listener of the mesh now has {} connections and {} handshakes, the gateway has {}; to \
             have them all, raise the hard limit (`ulimit -Hn {wanted}`, `LimitNOFILE={wanted}` of a \
             systemd unit, in Kubernetes the limit of the node's container runtime), or configure \
             fewer",
            self.connections, self.handshakes, self.gateway
        )
    }
}

/// Lowers the configured connections to what `limit` descriptors allow. Returns the new limits, or
/// `None` when nothing had to be lowered.
pub fn fit(config: &mut Config, listeners: Listeners, limit: usize) -> Option<Lowered> {
    let aside = set_aside(config, listeners);
    let left = limit.saturating_sub(aside);
    let connections = &config.connections;
    let mesh = connections.max.saturating_add(connections.max_handshakes);
    let gateway = (config.gateway.max_connections).saturating_add(listen::FINAL_RESPONSES);
    let (to_mesh, to_gateway) = share_out(left, listeners, mesh, gateway);
    if to_mesh >= mesh && to_gateway >= gateway {
        return None;
    }
    let of_the_gateway = if listeners.gateway { gateway } else { 0 };
    let wanted = aside
        .saturating_add(mesh.saturating_mul(listeners.mesh))
        .saturating_add(of_the_gateway);
    let configured = is_configured(config);
    if to_mesh < mesh {
        lower_mesh(config, to_mesh.max(LEAST));
    }
    if to_gateway < gateway {
        let most = to_gateway
            .saturating_sub(listen::FINAL_RESPONSES)
            .max(LEAST);
        lower_gateway(config, most);
    }
    Some(Lowered {
        limit,
        wanted,
        connections: config.connections.max,
        handshakes: config.connections.max_handshakes,
        gateway: config.gateway.max_connections,
        is_tight: configured || config.connections.max.min(config.gateway.max_connections) < AMPLE,
    })
}

/// Whether the numbers of connections are other than the defaults.
fn is_configured(config: &Config) -> bool {
    let default = Config::default();
    let of = |c: &Config| {
        let (mesh, gateway) = (&c.connections, &c.gateway);
        [mesh.max, mesh.max_handshakes, gateway.max_connections]
    };
    of(config) != of(&default)
}

fn set_aside(config: &Config, listeners: Listeners) -> usize {
    let port = (config.ports.max_connections).saturating_add(listen::FINAL_RESPONSES);
    let behind = listeners.mesh + usize::from(listeners.gateway);
    port.saturating_mul(2)
        .saturating_add(OF_THE_PROCESS + BEHIND_A_LISTENER * behind)
        .saturating_add(to_the_server(config) * listeners.mesh)
}

/// The connections of a service to a database server.
fn to_the_server(config: &Config) -> usize {
    let database = &config.database;
    match database.is_server() {
        true => (database.readers + database.writers) as usize,
        false => 0,
    }
}

/// Gives every listener the same, and what one does not need to the others.
fn share_out(left: usize, of: Listeners, mesh: usize, gateway: usize) -> (usize, usize) {
    let (many, one) = (of.mesh, usize::from(of.gateway));
    let equal = left / (many + one).max(1);
    let mesh_beside = (left - gateway.min(left)) / many.max(1);
    let gateway_beside = left.saturating_sub(mesh.saturating_mul(many));
    let to_mesh = if one == 0 || gateway <= equal {
        mesh_beside.max(equal)
    } else {
        equal
    };
    (
        if many == 0 { mesh } else { to_mesh.min(mesh) },
        if one == 0 {
            gateway
        } else {
            gateway_beside.max(equal).min(gateway)
        },
    )
}

/// A quarter goes to handshakes: they are short, and without one nobody gets in.
fn lower_mesh(config: &mut Config, places: usize) {
    let c = &mut config.connections;
    let handshakes = c.max_handshakes.min((places / 4).max(1));
    let max = c.max.min(places - handshakes);
    for share in [
        &mut c.max_by_address,
        &mut c.max_by_identity,
        &mut c.max_by_workload,
    ] {
        *share = scaled(*share, max, c.max);
    }
    c.max_handshakes_by_address = scaled(c.max_handshakes_by_address, handshakes, c.max_handshakes);
    (c.max, c.max_handshakes) = (max, handshakes);
}

fn lower_gateway(config: &mut Config, max: usize) {
    let g = &mut config.gateway;
    for share in [
        &mut g.max_connections_by_address,
        &mut g.max_connections_by_proxy,
    ] {
        *share = scaled(*share, max, g.max_connections);
    }
    g.max_connections = max;
}

fn scaled(share: usize, new: usize, old: usize) -> usize {
    (share.saturating_mul(new) / old.max(1)).clamp(1, new.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Listeners = Listeners {
        mesh: 4,
        gateway: true,
    };

    fn used(config: &Config, listeners: Listeners) -> usize {
        let mesh = config.connections.max + config.connections.max_handshakes;
        let gateway = if listeners.gateway {
            config.gateway.max_connections + listen::FINAL_RESPONSES
        } else {
            0
        };
        set_aside(config, listeners) + mesh * listeners.mesh + gateway
    }

    #[test]
    fn sufficient_descriptors_change_nothing() {
        let mut config = Config::default();
        assert_eq!(fit(&mut config, UP, 1 << 20), None);
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_small_limit_is_shared_and_never_exceeded() {
        for limit in [640, 1024, 4096, 20_000, 26_000] {
            for listeners in [
                UP,
                Listeners {
                    mesh: 1,
                    gateway: false,
                },
                Listeners {
                    mesh: 0,
                    gateway: true,
                },
                Listeners {
                    mesh: 2,
                    gateway: false,
                },
            ] {
                let mut config = Config::default();
                fit(&mut config, listeners, limit);
                let used = used(&config, listeners);
                assert!(used <= limit, "{listeners:?}: {used} of {limit}");
                assert!(config.connections.max >= LEAST / 2);
            }
        }
    }

    #[test]
    fn shares_are_lowered_in_proportion() {
        let mut config = Config::default();
        let lowered = fit(&mut config, UP, 1024).unwrap();
        assert_eq!(lowered.gateway, config.gateway.max_connections);
        assert!(config.gateway.max_connections < 200 && config.connections.max < 200);
        assert!(config.connections.max_by_address <= config.connections.max / 4 + 1);
        let again: Result<Config, _> =
            Config::load(None, Vec::new(), config.to_toml().parse().unwrap());
        assert_eq!(again.unwrap(), config);
    }

    #[test]
    fn the_warning_names_the_limit_the_need_and_the_remedy() {
        let mut config = Config::default();
        let lowered = fit(&mut config, UP, 1024).unwrap();
        assert_eq!(lowered.wanted, used(&Config::default(), UP));
        assert_eq!(fit(&mut Config::default(), UP, lowered.wanted), None);
        let text = lowered.to_string();
        for part in [
            "may have 1024 open files".to_owned(),
            format!("need {}", lowered.wanted),
            format!("ulimit -Hn {}", lowered.wanted),
            format!("LimitNOFILE={}", lowered.wanted),
            "Kubernetes".to_owned(),
        ] {
            assert!(text.contains(&part), "{part} in {text}");
        }
    }

    #[test]
    fn only_a_limit_that_somebody_would_miss_is_tight() {
        let is_tight = |config: &mut Config, limit| fit(config, UP, limit).unwrap().is_tight;
        assert!(!is_tight(&mut Config::default(), 20_000), "the defaults");
        assert!(is_tight(&mut Config::default(), 1024), "too few for a mesh");
        let mut config = Config::default();
        config.connections.max += 1;
        assert!(is_tight(&mut config, 20_000), "more was configured");
    }

    #[test]
    fn a_gateway_without_mesh_listeners_gets_everything() {
        let mut config = Config::default();
        let gateway = Listeners {
            mesh: 0,
            gateway: true,
        };
        fit(&mut config, gateway, 1024);
        assert!(config.gateway.max_connections > 600);
        assert_eq!(config.connections, Config::default().connections);
    }

    #[test]
    fn no_configured_number_overflows() {
        let mut config = Config::default();
        config.ports.max_connections = usize::MAX;
        config.gateway.max_connections = usize::MAX;
        config.connections.max = usize::MAX;
        config.connections.max_handshakes = usize::MAX;
        assert!(fit(&mut config, UP, 1024).is_some());
        assert!(config.connections.max <= 1024 && config.gateway.max_connections <= 1024);
    }

    #[test]
    fn even_a_limit_that_is_far_too_small_leaves_some_connections() {
        let mut config = Config::default();
        fit(&mut config, UP, 64);
        assert!(config.connections.max >= 1 && config.gateway.max_connections >= LEAST);
    }
}
