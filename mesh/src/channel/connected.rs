//! An open connection to one address of a server.

use super::slots::StreamSlots;
use http::{
    Uri,
    uri::{Authority, PathAndQuery},
};
use hyper::client::conn::http2::SendRequest;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tars_certs::{Identity, peer::PeerInfo};
use tonic::body::Body;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) sender: SendRequest<Body>,
    /// The identity with which it was opened.
    pub(super) identity: Arc<Identity>,
    pub(super) server: Server,
    pub(super) slots: Arc<StreamSlots>,
    /// The server's address, for errors.
    pub(super) name: Arc<str>,
    pub(super) authority: Authority,
    /// Whether it carried a response.
    pub(super) proven: AtomicBool,
}

/// What is known of a server after the handshake.
#[derive(Debug, Clone)]
pub struct Server {
    /// The server's address and verified certificate.
    pub peer: Arc<PeerInfo>,
    /// The key exchange group, as a metric label.
    pub key_exchange: &'static str,
}

/// What a connection was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    Nothing,
    Responses,
}

impl Connected {
    /// Adds scheme and authority, which HTTP/2 requires, to the path that tonic's clients give.
    pub(super) fn absolute(&self, path: PathAndQuery) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    /// Whether it is open, and was opened with `identity`.
    pub(super) fn is_usable(&self, identity: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.identity, identity) && !self.sender.is_closed()
    }

    /// Records that the server responds.
    pub(super) fn record_response(&self) {
        // Reading first keeps the cache line shared between threads.
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
    }

    /// Returns what it was good for until now.
    pub(super) fn carried(&self) -> Carried {
        match self.proven.load(Ordering::Relaxed) {
            true => Carried::Responses,
            false => Carried::Nothing,
        }
    }
}
