//! The ports of a process, all bound before anything serves, so that everything that is wrong with
//! them is reported at once.

use crate::app::{Service, StartError};
use std::net::SocketAddr;
use tars_runtime::config::{Connect, Listen};
use tokio::net::TcpListener;

/// The bound ports of a process.
pub(crate) struct Bound {
    /// In the order in which they start.
    pub(crate) services: Vec<(Service, TcpListener)>,
    pub(crate) admin: TcpListener,
    pub(crate) observe: TcpListener,
    pub(crate) bootstrap: Option<TcpListener>,
}

impl Bound {
    /// Binds the ports of some services, and the process's own.
    pub(crate) async fn bind(listen: &Listen, services: &[Service]) -> Result<Self, StartError> {
        let mut binder = Binder::default();
        let mut bound = Vec::new();
        for service in services {
            let listener = binder.bind(listen.of(*service), service.as_str()).await;
            bound.extend(listener.map(|l| (*service, l)));
        }
        let admin = binder.bind(listen.admin, "admin").await;
        let observe = binder.bind(listen.observe, "observe").await;
        let bootstrap = listen
            .bootstrap
            .filter(|_| services.contains(&Service::Auth));
        let bootstrap = match bootstrap {
            Some(addr) => binder.bind(addr, "bootstrap").await,
            None => None,
        };
        match (admin, observe) {
            (Some(admin), Some(observe)) if binder.failed.is_empty() => Ok(Self {
                services: bound,
                admin,
                observe,
                bootstrap,
            }),
            _ => Err(StartError::Bind(binder.failed)),
        }
    }

    /// Where the bound services find each other.
    pub(crate) fn connect(&self) -> Result<Connect, StartError> {
        Connect::from_fn(|service| self.address(service).map(|addr| addr.to_string()))
    }

    /// The address of a service's listener.
    pub(crate) fn address(&self, service: Service) -> Result<SocketAddr, StartError> {
        let mut services = self.services.iter();
        let found = services.find(|(s, _)| *s == service);
        let (_, listener) = found.ok_or(StartError::NoTarget(service.as_str()))?;
        local_addr(listener)
    }

    pub(crate) fn admin_address(&self) -> Result<SocketAddr, StartError> {
        local_addr(&self.admin)
    }

    pub(crate) fn observe_address(&self) -> Result<SocketAddr, StartError> {
        local_addr(&self.observe)
    }

    /// The address of the bootstrap listener, where it is on.
    pub(crate) fn bootstrap_address(&self) -> Result<Option<SocketAddr>, StartError> {
        self.bootstrap.as_ref().map(local_addr).transpose()
    }
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|e| StartError::Bind(vec![e.to_string()]))
}

#[derive(Default)]
struct Binder {
    failed: Vec<String>,
}

impl Binder {
    async fn bind(&mut self, addr: SocketAddr, what: &str) -> Option<TcpListener> {
        match TcpListener::bind(addr).await {
            Ok(listener) => Some(listener),
            Err(e) => {
                self.failed.push(format!("{what}: {addr}: {e}"));
                None
            }
        }
    }
}
