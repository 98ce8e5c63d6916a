//! The pages of the admin port: what this process is and whom it is connected to.

use crate::app::{Process, Service};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tars_certs::{IdentityHandle, TrustFeed};
use tars_runtime::ports::Page;

impl Process {
    /// The admin port's pages, by path.
    pub(crate) fn pages(&self) -> BTreeMap<&'static str, Page> {
        let (config, connections) = (self.config.clone(), self.connections.clone());
        let policy = self.policy.clone();
        let config = move || serde_json::to_value(&config).unwrap_or_default();
        BTreeMap::from([
            ("certs", self.certificates_page()),
            ("policy", Arc::new(move || policy.report()) as Page),
            ("connections", Arc::new(move || connections.report())),
            ("config", Arc::new(config)),
        ])
    }

    fn certificates_page(&self) -> Page {
        let members: Vec<_> = self
            .members
            .iter()
            .map(|(s, m)| (*s, m.source, m.identity.clone(), m.feed.clone()))
            .collect();
        Arc::new(move || {
            let rows: Vec<_> = members
                .iter()
                .map(|(service, source, handle, feed)| describe(*service, source, handle, feed))
                .collect();
            json!({ "certificates": rows })
        })
    }

    /// One page of the admin port.
    pub fn admin_page(&self, name: &str) -> Option<Value> {
        self.pages().get(name).map(|page| page())
    }

    /// The open connections of this process, as the admin port shows them.
    pub fn connections(&self) -> Value {
        self.connections.report()
    }
}

/// One line of `/certs`.
fn describe(service: Service, source: &str, handle: &IdentityHandle, feed: &TrustFeed) -> Value {
    let (identity, health) = (handle.current(), handle.health());
    let leaf = identity.leaf();
    let roots: Vec<String> = identity
        .trust()
        .root_keys()
        .map(|k| k.to_string())
        .collect();
    json!({
        "service": service.as_str(),
        "source": source,
        "spiffe_id": leaf.id.to_string(),
        "serial": leaf.serial.as_str(),
        "issuer": identity.verified().name().issuer.to_string(),
        "root": identity.verified().anchor.to_string(),
        "not_before": leaf.not_before.as_secs(),
        "not_after": leaf.not_after.as_secs(),
        "trusted_roots": roots,
        "revocations": feed.revocations.current().len(),
        "revoked": health.revoked,
        "failures": health.failures,
        "last_error": health.last_error,
    })
}
