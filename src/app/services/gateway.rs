//! The REST gateway: it has no database and serves no gRPC, but follows Auth as the others do.

use super::{follow::watch_auth, layers::log_serving};
use crate::app::{Process, Service, StartError};
use std::time::Duration;
use tars_gateway::{Backends, Documents, Flood, Gateway, Listening};
use tars_runtime::config::{Config, Connect};
use tokio::net::TcpListener;

/// Streams have their time, and then what is left of the drain to end.
fn drain(config: &Config) -> Duration {
    let limits = &config.connections;
    Duration::from_secs(limits.drain_streams_seconds + limits.drain_seconds)
}

pub(super) fn start(
    process: &Process,
    listener: TcpListener,
    connect: &Connect,
) -> Result<(), StartError> {
    watch_auth(process, Service::Gateway, connect)?;
    let mut backends = Backends::default();
    for to in Service::over_tls() {
        let channel = process.dial(Service::Gateway, to, connect)?;
        backends.add(to.as_str(), channel);
    }
    let config = process.config();
    let documents = Documents::new(
        process.readiness(),
        &config.limits,
        process.clock().clone(),
        process.metrics(),
    );
    let settings = config.gateway.clone();
    let tracer = process.tracer(Service::Gateway)?;
    let flood = Flood::new(&config.limits, process.clock().clone());
    let gateway = Gateway::new(backends, settings, tracer, documents, flood);
    let gateway = gateway.map_err(StartError::Gateway)?;
    let metrics = process.listener_metrics.of(Service::Gateway.as_str());
    let listening = Listening::new(&config.gateway, &config.timeouts, drain(config), metrics);
    let listening = listening.map_err(|wrong| {
        let wrong: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        StartError::Gateway(wrong.join("; "))
    })?;
    log_serving(Service::Gateway.as_str(), &listener);
    let stop = process.work.stop_edge_token();
    process
        .work
        .serve_edge(listening.serve(listener, gateway, stop));
    Ok(())
}
