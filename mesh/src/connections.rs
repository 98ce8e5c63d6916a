//! The open connections of a process, for the admin port.

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

/// The table of open connections. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ConnectionTable(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Row>>,
}

#[derive(Debug)]
struct Row {
    service: &'static str,
    direction: &'static str,
    peer: Arc<PeerInfo>,
}

impl ConnectionTable {
    /// Lists a connection until the guard is dropped; `direction` is `in` or `out`.
    pub fn enter(
        &self,
        service: &'static str,
        direction: &'static str,
        peer: &Arc<PeerInfo>,
    ) -> Listed {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let row = Row {
            service,
            direction,
            peer: Arc::clone(peer),
        };
        self.0.open.lock().insert(id, row);
        Listed {
            table: self.clone(),
            id,
        }
    }

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.0.open.lock().len()
    }

    /// Returns whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the page of the admin port.
    pub fn report(&self) -> Value {
        let open = self.0.open.lock();
        let rows: Vec<Value> = open
            .iter()
            .map(|(id, row)| {
                let certificate = row.peer.verified.as_ref();
                json!({
                    "id": id,
                    "service": row.service,
                    "direction": row.direction,
                    "peer": row.peer.name(),
                    "class": row.peer.class.map(tars_certs::PeerClass::as_str),
                    "serial": certificate.map(|v| v.certificate.serial.as_str()),
                    "issuer": certificate.map(|v| v.name().issuer.to_string()),
                    "not_after": certificate.map(|v| v.certificate.not_after.as_secs()),
                    "address": row.peer.addr.to_string(),
                })
            })
            .collect();
        json!({ "connections": rows })
    }
}

/// A listed connection, until it is dropped.
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
