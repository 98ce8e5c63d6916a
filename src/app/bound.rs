//! The ports of a process, all bound before anything serves, so that everything that is wrong with
//! them is reported at once.

use crate::app::{Process, Ready, StartError, operator_identity, password_file, service::Service};
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
            let listener = binder.bind(service.listen(listen), service.as_str()).await;
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
        let at = |service| self.address(service).map(|addr| addr.to_string());
        connect(at)
    }

    fn address(&self, service: Service) -> Result<SocketAddr, StartError> {
        let mut services = self.services.iter();
        let found = services.find(|(s, _)| *s == service);
        let (_, listener) = found.ok_or(StartError::NoTarget(service.as_str()))?;
        local_addr(listener)
    }

    /// What a user needs to reach the mesh, with an operator identity made for it.
    pub(crate) fn ready(&self, process: &Process) -> Result<Ready, StartError> {
        ready(self, process)
    }
}

macro_rules! addresses {
    ($($variant:ident, $name:ident, $title:literal, $port:literal, $implementation:path;)*) => {
        fn connect(
            at: impl Fn(Service) -> Result<String, StartError>,
        ) -> Result<Connect, StartError> {
            Ok(Connect {
                auth: at(Service::Auth)?,
                $($name: at(Service::$variant)?,)*
                ..Connect::default()
            })
        }

        fn ready(bound: &Bound, process: &Process) -> Result<Ready, StartError> {
            let https = |service| Ok::<_, StartError>(format!("https://{}", bound.address(service)?));
            let http = |addr: SocketAddr| format!("http://{addr}");
            let bootstrap = bound.bootstrap.as_ref().map(local_addr).transpose()?;
            let operator = operator_identity(process)?;
            Ok(Ready {
                auth: https(Service::Auth)?,
                $($name: https(Service::$variant)?,)*
                gateway: http(bound.address(Service::Gateway)?),
                admin: http(local_addr(&bound.admin)?),
                observe: http(local_addr(&bound.observe)?),
                bootstrap: bootstrap.map(|addr| format!("https://{addr}")),
                ca: operator.ca,
                client_cert: operator.cert,
                client_key: operator.key,
                admin_user: "admin".to_owned(),
                admin_password_file: password_file(&process.config().data.dir),
                trust_domain: process.config().trust.domain.clone(),
            })
        }
    };
}
tars_certs::for_each_service!(addresses);

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
