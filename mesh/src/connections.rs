//! The live connections of a process, for the admin port.

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tars_certs::peer::PeerInfo;

#[derive(Debug, Clone, Default)]
pub struct ConnectionTable(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, (&'static str, Arc<PeerInfo>)>>,
}

impl ConnectionTable {
    /// Lists a connection until the guard is dropped.
    pub fn enter(&self, service: &'static str, peer: Arc<PeerInfo>) -> Listed {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.open.lock().insert(id, (service, peer));
        Listed {
            table: self.clone(),
            id,
        }
    }

    pub fn len(&self) -> usize {
        self.0.open.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn report(&self) -> Value {
        let open = self.0.open.lock();
        let rows: Vec<Value> = open
            .iter()
            .map(|(id, (service, peer))| {
                json!({
                    "id": id,
                    "service": service,
                    "peer": peer.certificate.id.to_string(),
                    "class": peer.class.map(tars_certs::PeerClass::as_str),
                    "serial": peer.certificate.serial,
                    "not_after": peer.certificate.not_after.as_secs(),
                    "address": peer.addr.to_string(),
                })
            })
            .collect();
        json!({ "connections": rows })
    }
}

#[derive(Debug)]
pub struct Listed {
    table: ConnectionTable,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.0.open.lock().remove(&self.id);
    }
}
