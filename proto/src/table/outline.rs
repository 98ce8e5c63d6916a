//! What a channel knows of the methods that it calls. Unlike the table, this needs no vocabulary.

use super::{infrastructure, pool, read};
use std::{collections::HashMap, sync::OnceLock};

/// What a channel knows of a method.
#[derive(Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its position among all of them. Positions are dense, so that per-method state can be a vector.
    pub index: usize,
    /// The gRPC path, such as `/tars.auth.v1.AuthService/Login`.
    pub path: String,
    /// Whether it may be repeated.
    pub idempotent: bool,
    /// Whether the response is a stream.
    pub server_streaming: bool,
    /// Whether it waits in a queue or for others: how long it takes tells nothing of the server.
    pub queued: bool,
}

/// Returns what is known of the method with this gRPC path; `None` of one that is not in the contract.
pub fn outline(path: &str) -> Option<&'static Outline> {
    outlines().get(path)
}

/// Returns the number of methods that have an outline.
pub fn outlined() -> usize {
    outlines().len()
}

fn outlines() -> &'static HashMap<String, Outline> {
    static OUTLINES: OnceLock<HashMap<String, Outline>> = OnceLock::new();
    OUTLINES.get_or_init(|| {
        let services = pool().services();
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        let declared = methods.map(|m| {
            (
                read::path(&m),
                read::is_idempotent(&m),
                m.is_server_streaming(),
                read::is_queued(pool(), &m),
            )
        });
        // First, as the contract declares the health service as well, without saying what may be repeated.
        let others = infrastructure::paths().map(|(path, streams)| (path, true, streams, false));
        let mut outlines = HashMap::new();
        for (path, idempotent, server_streaming, queued) in others.chain(declared) {
            let index = outlines.len();
            outlines.entry(path.clone()).or_insert(Outline {
                index,
                path,
                idempotent,
                server_streaming,
                queued,
            });
        }
        outlines
    })
}
