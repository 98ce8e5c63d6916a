//! What each replica is started with: its data directory, its addresses, and those of all replicas.
//!
//! Replica K listens 10 × (K − 1) ports above the addresses that are configured, and on free ports where
//! the configured port is 0. The supervisor reserves all of them, so that they are the same after a restart
//! of a replica, and everything that is wrong with them is reported before anything starts.

use crate::app::StartError;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tars_certs::secret;
use tars_runtime::config::{Config, Connect, Data, Listen};
use tokio::net::TcpSocket;

/// The distance between the ports of two replicas.
const STEP: u16 = 10;

/// What one replica is started with.
#[derive(Debug)]
pub(super) struct Plan {
    /// Counted from 1.
    pub(super) number: u32,
    config: Config,
    /// Sockets that are bound to the replica's addresses, and do not listen.
    _reserved: Vec<TcpSocket>,
}

/// The data directory of a replica.
pub(crate) fn data_dir(data: &Path, number: u32) -> PathBuf {
    data.join("replicas").join(number.to_string())
}

/// Plans replicas 1 to `count`.
pub(super) fn plans(config: &Config, count: u32) -> Result<Vec<Plan>, StartError> {
    let mut reserving = Reserving::default();
    let listens: Vec<_> = (1..=count)
        .map(|number| reserving.listen(&config.listen, number))
        .collect();
    if !reserving.failed.is_empty() {
        return Err(StartError::Bind(reserving.failed));
    }
    let all: Vec<&Listen> = listens.iter().map(|(listen, _)| listen).collect();
    let shared = shared(config, count, connect(&all));
    let plans = (1..).zip(listens).map(|(number, (listen, reserved))| Plan {
        number,
        config: Config {
            data: Data {
                dir: data_dir(&config.data.dir, number),
            },
            listen,
            ..shared.clone()
        },
        _reserved: reserved,
    });
    Ok(plans.collect())
}

/// What the configurations of all replicas have in common. The key that seals Auth's secrets is where one
/// process without replicas has it.
fn shared(config: &Config, count: u32, connect: Connect) -> Config {
    let mut shared = Config {
        connect,
        ..config.clone()
    };
    shared.limits.replicas = shared.limits.replicas.max(count);
    let key = || config.data.dir.join("auth").join("seal.key");
    shared.credentials.seal_key_file.get_or_insert_with(key);
    shared
}

impl Plan {
    pub(super) fn data(&self) -> &Path {
        &self.config.data.dir
    }

    /// Writes the replica's configuration; returns the file.
    pub(super) fn save(&self) -> Result<PathBuf, StartError> {
        let file = self.data().join("config.toml");
        let failed = |e| StartError::file(&file, e);
        secret::create_dir(self.data()).map_err(failed)?;
        secret::write(&file, self.config.to_toml().as_bytes()).map_err(failed)?;
        Ok(file)
    }
}

/// Where the services of all replicas are.
fn connect(all: &[&Listen]) -> Connect {
    let list = |of: &dyn Fn(&Listen) -> Option<SocketAddr>| {
        let addrs = all.iter().filter_map(|listen| of(listen));
        addrs
            .map(|addr| addr.to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    let bootstrap = list(&|listen| listen.bootstrap);
    let services =
        Connect::from_fn(|service| Ok::<_, Infallible>(list(&|listen| Some(listen.of(service)))));
    let Ok(mut connect) = services;
    if !bootstrap.is_empty() {
        connect.bootstrap = bootstrap;
    }
    connect
}

/// Reserves addresses, and collects what is wrong with them.
#[derive(Default)]
struct Reserving {
    taken: BTreeMap<SocketAddr, String>,
    failed: Vec<String>,
}

impl Reserving {
    fn listen(&mut self, base: &Listen, number: u32) -> (Listen, Vec<TcpSocket>) {
        let mut sockets = Vec::new();
        let listen = base.map(|name, addr| {
            let what = format!("{name} of replica {number}");
            match self.reserve(addr, number, &what) {
                Ok((addr, socket)) => {
                    sockets.push(socket);
                    addr
                }
                Err(why) => {
                    self.failed.push(format!("{what}: {why}"));
                    addr
                }
            }
        });
        (listen, sockets)
    }

    fn reserve(
        &mut self,
        base: SocketAddr,
        number: u32,
        what: &str,
    ) -> Result<(SocketAddr, TcpSocket), String> {
        let addr = moved(base, number).ok_or_else(|| format!("{base}: no port is that high"))?;
        if let Some(other) = self.taken.get(&addr) {
            return Err(format!("{addr}: that is where {other} listens"));
        }
        let (addr, socket) = bind(addr).map_err(|e| format!("{addr}: {e}"))?;
        self.taken.insert(addr, what.to_owned());
        Ok((addr, socket))
    }
}

/// The address of a replica that corresponds to one of replica 1.
fn moved(mut addr: SocketAddr, number: u32) -> Option<SocketAddr> {
    if addr.port() != 0 {
        let distance = u16::try_from(number.checked_sub(1)?)
            .ok()?
            .checked_mul(STEP)?;
        addr.set_port(addr.port().checked_add(distance)?);
    }
    Some(addr)
}

/// Binds a socket that another process can listen beside, as this one does not listen.
fn bind(addr: SocketAddr) -> io::Result<(SocketAddr, TcpSocket)> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok((socket.local_addr()?, socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, net::TcpListener};
    use tars_runtime::targets::Targets;

    fn free(dir: &Path) -> Config {
        Config {
            data: Data {
                dir: dir.to_owned(),
            },
            listen: Listen::free(),
            ..Config::default()
        }
    }

    #[tokio::test]
    async fn free_ports_differ_and_every_replica_knows_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let plans = plans(&free(dir.path()), 3).unwrap();
        let mut ports = BTreeSet::new();
        for plan in &plans {
            let _same = plan.config.listen.map(|_, addr| {
                assert!(addr.port() != 0 && ports.insert(addr), "{addr}");
                addr
            });
            let auth = Targets::parse(&plan.config.connect.auth).unwrap();
            let auth: Vec<_> = auth.iter().filter_map(|target| target.addr()).collect();
            let expected: Vec<_> = plans.iter().map(|p| p.config.listen.auth).collect();
            assert_eq!(auth, expected);
        }
        let dirs: Vec<_> = plans.iter().map(|plan| plan.data().to_owned()).collect();
        assert_eq!(
            dirs,
            [1, 2, 3].map(|n| dir.path().join("replicas").join(n.to_string()))
        );
    }

    #[tokio::test]
    async fn a_reserved_address_can_be_listened_on_and_is_not_given_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let plans = plans(&free(dir.path()), 2).unwrap();
        let addr = plans[1].config.listen.hypersync;
        for _ in 0..2 {
            let listener = TcpListener::bind(addr).unwrap();
            assert_eq!(bind(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(listener);
        }
    }

    #[tokio::test]
    async fn a_saved_plan_is_a_configuration_that_loads_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = free(dir.path());
        config.listen.bootstrap = Some("127.0.0.1:0".parse().unwrap());
        for plan in plans(&config, 2).unwrap() {
            let file = plan.save().unwrap();
            let loaded = Config::load(Some(&file), [], toml::Table::new()).unwrap();
            assert_eq!(loaded, plan.config);
            assert_eq!(
                Targets::parse(&loaded.connect.bootstrap)
                    .unwrap()
                    .iter()
                    .len(),
                2
            );
        }
    }

    #[tokio::test]
    async fn every_address_that_cannot_be_used_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = free(dir.path());
        config.listen.admin = taken.local_addr().unwrap();
        config.listen.observe = "127.0.0.1:65530".parse().unwrap();
        config.listen.automl = plans(&free(dir.path()), 1).unwrap()[0].config.listen.automl;
        let mut other = config.listen.automl;
        other.set_port(other.port() + STEP);
        config.listen.hypersync = other;
        let refused = plans(&config, 2).unwrap_err().to_string();
        for expected in [
            "admin of replica 1: 127.0.0.1:".to_owned(),
            "observe of replica 2: 127.0.0.1:65530: no port is that high".to_owned(),
            format!("{other}: that is where hypersync of replica 1 listens"),
        ] {
            assert!(refused.contains(&expected), "{expected} in {refused}");
        }
    }
}
