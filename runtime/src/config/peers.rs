//! What peers and callers may take, and how long they are waited for.

use crate::listen::Pace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bounds of what a stranger can hold open on a listener of the mesh. A share is the most that one
/// may hold while there is room; as places run out all shares shrink with what is free, so that a
/// newcomer finds a place even when several have taken what they could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// Open connections.
    pub max: usize,
    /// Connections from one IPv4 address or IPv6 /64. Workloads of the mesh are not counted here,
    /// so that people and services behind one NAT, as all of `tars up` on one host, cannot keep the
    /// services from each other; it bounds all clients behind one NAT together.
    pub max_by_address: usize,
    /// Connections that show one SPIFFE id. A client needs one or two.
    pub max_by_identity: usize,
    /// Connections that show one workload's SPIFFE id: all its replicas, twice while identities are
    /// renewed.
    pub max_by_workload: usize,
    /// Handshakes under way, silent peers among them: enough that a crowd of those keeps nobody out.
    pub max_handshakes: usize,
    /// Handshakes under way from one address; past these, one of them makes way: the one that has
    /// waited longest, or when none has for half a second, one at random.
    pub max_handshakes_by_address: usize,
    /// From the connection to the HTTP/2 preface, TLS included.
    pub handshake_timeout_seconds: u64,
    /// Life of a connection, more or less a tenth, so that clients do not come back all at once.
    pub max_age_seconds: u64,
    /// How long calls in flight may go on after a connection has been told to close.
    pub max_age_grace_seconds: u64,
    /// Calls and streams at once on one connection.
    pub max_streams: u32,
    /// The largest message that is taken; a larger one is RESOURCE_EXHAUSTED.
    pub max_message_bytes: usize,
    /// How long calls in flight may go on after a request to stop.
    pub drain_seconds: u64,
    /// Calls in flight at once in one service; more are shed. Those that workloads make for
    /// themselves have as many places of their own.
    pub max_in_flight: usize,
    /// Server streams open at once in one service; more are shed. Those that workloads open for
    /// themselves have as many places of their own.
    pub max_open_streams: usize,
    /// Seconds until a stream without a deadline of its own must have answered, the receiving of
    /// its request included.
    pub open_seconds: u64,
    /// Seconds that a peer may take nothing of an answer, or less than 16 KiB of a long one, before
    /// its stream is reset.
    pub stream_stall_seconds: u64,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max: 4096,
            max_by_address: 512,
            max_by_identity: 256,
            max_by_workload: 1024,
            max_handshakes: 2048,
            max_handshakes_by_address: 64,
            handshake_timeout_seconds: 5,
            max_age_seconds: 1800,
            max_age_grace_seconds: 300,
            max_streams: 200,
            max_message_bytes: 1 << 20,
            drain_seconds: 10,
            max_in_flight: 4096,
            max_open_streams: 4096,
            open_seconds: 10,
            stream_stall_seconds: 30,
        }
    }
}

impl Connections {
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_seconds)
    }
}

/// How long a peer is waited for, on every listener. What a peer sends or reads must go on at a
/// least rate: the stall is the longest time with nothing, and a slower peer uses it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From a connection, or from the first byte of a later request, to the end of its head; HTTP/1.
    pub head_seconds: u64,
    /// Between an answer and the next request of a kept connection; HTTP/1.
    pub idle_seconds: u64,
    /// The stall of a request's body; HTTP/1.
    pub body_stall_seconds: u64,
    /// The least rate of a request's body.
    pub body_bytes_per_second: u32,
    /// The stall of a peer that does not read what is written to it.
    pub write_stall_seconds: u64,
    /// The least rate of reading.
    pub write_bytes_per_second: u32,
    /// Silence on an HTTP/2 connection before the peer is asked whether it lives; a connection may
    /// be idle for as long as it answers.
    pub ping_seconds: u64,
    /// How long the answer to that may take.
    pub ping_timeout_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head_seconds: 5,
            idle_seconds: 20,
            body_stall_seconds: 5,
            body_bytes_per_second: 2048,
            write_stall_seconds: 15,
            write_bytes_per_second: 1024,
            ping_seconds: 20,
            ping_timeout_seconds: 10,
        }
    }
}

impl Timeouts {
    pub fn head(&self) -> Duration {
        Duration::from_secs(self.head_seconds)
    }

    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }

    pub fn body_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.body_stall_seconds),
            rate: self.body_bytes_per_second,
        }
    }

    pub fn write_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.write_stall_seconds),
            rate: self.write_bytes_per_second,
        }
    }

    /// None of them longer than `most` seconds; for listeners whose answers are short.
    #[must_use]
    pub fn at_most(&self, most: u64) -> Self {
        Self {
            head_seconds: self.head_seconds.min(most),
            idle_seconds: self.idle_seconds.min(most),
            body_stall_seconds: self.body_stall_seconds.min(most),
            write_stall_seconds: self.write_stall_seconds.min(most),
            ping_seconds: self.ping_seconds.min(most),
            ping_timeout_seconds: self.ping_timeout_seconds.min(most),
            ..self.clone()
        }
    }
}

/// The admin and the observe port, each. Their file descriptors are set aside before those of all
/// other listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// Open connections.
    pub max_connections: usize,
    /// Connections from one address: a probe, a scraper and a person with a browser fit easily.
    pub max_connections_by_address: usize,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_connections_by_address: 32,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Logins and refreshes of one address in any minute.
    pub auth_per_minute: u32,
    /// Calls for documents that need no credential (roots, revocation lists, signing keys), of one
    /// address in a minute; at most a quarter of them at once. Every command of the CLI makes one.
    pub public_per_minute: u32,
    /// Calls of one user with all their keys in a minute; at most a quarter of them at once.
    pub user_per_minute: u32,
    /// Calls of one workload in a second; at most a quarter of them at once.
    pub internal_per_second: u32,
    /// Calls of one identity, or of one address where nothing is proven, in a second, before
    /// anything expensive is done for them.
    pub flood_per_second: u32,
    /// Calls that one caller may have in flight at once in one service. A caller is a user, with all
    /// their keys; whoever shows no credential counts by SPIFFE id, behind the gateway by address.
    pub calls_by_caller: u32,
    /// Server streams that one caller may have open at once in one service. Well below
    /// `connections.max_streams`, which all callers behind one gateway share.
    pub streams_by_caller: u32,
    /// Calls that one peer, by its SPIFFE id, may have in flight at once in one service. Workloads
    /// of the mesh carry others, and may have three quarters of all.
    pub calls_by_peer: u32,
    /// Server streams that one peer may have open at once in one service; the same holds for
    /// workloads.
    pub streams_by_peer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            auth_per_minute: 10,
            public_per_minute: 600,
            user_per_minute: 600,
            internal_per_second: 1000,
            flood_per_second: 100,
            calls_by_caller: 256,
            streams_by_caller: 32,
            calls_by_peer: 1024,
            streams_by_peer: 256,
        }
    }
}
