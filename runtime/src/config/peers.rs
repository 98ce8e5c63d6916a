//! What peers and callers may hold, and how long they are waited for.

use crate::{listen::Pace, network::Sites};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Limits on what a peer can hold open on a mesh listener. A share is the most that one peer may hold
/// while there is room; shares shrink as the total runs out, so that a newcomer finds a place even
/// when several peers have taken all they could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// Maximum number of open connections.
    pub max: usize,
    /// Maximum number of connections from one IPv4 address or IPv6 /64, of all clients behind one NAT
    /// together. Workloads are exempt, so that people and services behind the same address, as in
    /// `tars up`, cannot keep the services from each other.
    pub max_by_address: usize,
    /// Maximum number of connections with one SPIFFE id. A client needs one or two.
    pub max_by_identity: usize,
    /// Maximum number of connections with one workload's SPIFFE id: all of its replicas, and twice as
    /// many while identities are renewed.
    pub max_by_workload: usize,
    /// Maximum number of handshakes in progress, with silent peers among them: high enough that a
    /// crowd of those keeps nobody out.
    pub max_handshakes: usize,
    /// Maximum number of handshakes in progress from one address. Beyond it, a newcomer displaces the
    /// one that has waited longest or, when none has waited for half a second, one at random.
    pub max_handshakes_by_address: usize,
    /// Maximum time in seconds from accepting a connection to its HTTP/2 preface, TLS included.
    pub handshake_timeout_seconds: u64,
    /// Maximum age of a connection in seconds, varied by a tenth so that clients do not reconnect all
    /// at once.
    pub max_age_seconds: u64,
    /// Maximum time in seconds that calls in flight may take to finish after GOAWAY.
    pub max_age_grace_seconds: u64,
    /// Maximum number of concurrent calls and streams on one connection.
    pub max_streams: u32,
    /// Maximum size of a message in bytes; a larger one is refused with RESOURCE_EXHAUSTED.
    pub max_message_bytes: usize,
    /// Time in seconds between the moment at which a process that stops reports that it is not ready and the
    /// one at which it takes no more calls. Behind a load balancer, at least its interval of checks.
    pub notice_seconds: u64,
    /// Maximum time in seconds that open streams may take to finish by themselves once the process takes no
    /// more calls; then they are told to resume elsewhere. Streams by which workloads follow each other end
    /// at once.
    pub drain_streams_seconds: u64,
    /// Maximum time in seconds that calls in flight may take to finish once the process takes no more.
    pub drain_seconds: u64,
    /// Maximum number of calls in flight in one service; further ones are shed. Calls that workloads
    /// make for themselves are counted apart, up to the same number.
    pub max_in_flight: usize,
    /// Maximum number of open server streams in one service; further ones are shed. Streams that
    /// workloads open for themselves are counted apart, up to the same number.
    pub max_open_streams: usize,
    /// Maximum time in seconds until a stream without a deadline begins to answer, receiving its
    /// request included.
    pub open_seconds: u64,
    /// Maximum time in seconds for which a peer may read nothing of an answer, or less than 16 KiB of a
    /// long one, before its stream is reset.
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
            notice_seconds: 0,
            drain_streams_seconds: 5,
            drain_seconds: 10,
            max_in_flight: 4096,
            max_open_streams: 4096,
            open_seconds: 10,
            stream_stall_seconds: 30,
        }
    }
}

impl Connections {
    /// Returns `handshake_timeout_seconds` as a duration.
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_seconds)
    }
}

/// How long peers are waited for, on every listener. Transfers must keep a minimum rate: a stall is
/// the longest time without any progress, and a peer below the rate uses it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Maximum time in seconds from accepting a connection, or from the first byte of a later request,
    /// to the end of the request's head; HTTP/1 only.
    pub head_seconds: u64,
    /// Maximum time in seconds between a response and the next request on a kept-alive connection;
    /// HTTP/1 only.
    pub idle_seconds: u64,
    /// Maximum stall of a request body in seconds; HTTP/1 only.
    pub body_stall_seconds: u64,
    /// Minimum rate of a request body in bytes per second.
    pub body_bytes_per_second: u32,
    /// Maximum stall in seconds of a peer that does not read what is written to it.
    pub write_stall_seconds: u64,
    /// Minimum rate at which a peer must read, in bytes per second.
    pub write_bytes_per_second: u32,
    /// Time in seconds without traffic on an HTTP/2 connection before a PING is sent; a connection may
    /// stay idle for as long as its peer answers.
    pub ping_seconds: u64,
    /// Maximum time in seconds until a PING is answered.
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
    /// Returns `head_seconds` as a duration.
    pub fn head(&self) -> Duration {
        Duration::from_secs(self.head_seconds)
    }

    /// Returns `idle_seconds` as a duration.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }

    /// Returns the minimum pace of a request body.
    pub(crate) fn body_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.body_stall_seconds),
            rate: self.body_bytes_per_second,
        }
    }

    /// Returns the minimum pace at which a peer must read.
    pub fn write_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.write_stall_seconds),
            rate: self.write_bytes_per_second,
        }
    }

    /// Returns these timeouts with none longer than `most` seconds, for listeners with short answers.
    #[must_use]
    pub(crate) fn at_most(&self, most: u64) -> Self {
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

/// Limits of the admin port and of the observe port, each. Their file descriptors are reserved before
/// those of all other listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum number of connections from one address: enough for a probe, a scraper and a person's
    /// browser.
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

/// When a process sheds calls because it has more to do than it can: the number of calls in flight at which
/// it does follows how much slower they are than usual. Calls that wait in a queue of their own are not
/// counted, and what withdraws a credential or a session is not shed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Overload {
    /// The number of calls in flight in the whole process below which none is shed, however slow they are.
    pub floor: u32,
    /// The number of calls in flight in the whole process beyond which further ones are shed, however fast
    /// they are. Calls of services on behalf of others are shed at half as many again.
    pub ceiling: u32,
}

impl Default for Overload {
    fn default() -> Self {
        Self {
            floor: 64,
            ceiling: 4096,
        }
    }
}

/// Rate limits, and shares of the calls and streams in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A file with other limits than these: other windows, and limits of single users, keys, peers and
    /// networks. Reloaded when it changes; a mistake in it stops a start, and later keeps what is in force.
    pub file: Option<PathBuf>,
    /// Logins, token refreshes and changes of secrets from one address in any minute.
    pub auth_per_minute: u32,
    /// Calls from one address in any minute for documents that need no credential (roots, revocation
    /// lists, signing keys). Every CLI command makes one.
    pub public_per_minute: u32,
    /// Calls per minute of one user, over all of their keys; a quarter of them may come at once.
    pub user_per_minute: u32,
    /// Questions of one user about themselves and their keys in any minute, counted also as calls of the
    /// user.
    pub identity_per_minute: u32,
    /// API keys that one user creates or gives a new secret in any minute. Revocation is not among them.
    pub key_changes_per_minute: u32,
    /// Calls per second of one workload; a quarter of them may come at once.
    pub internal_per_second: u32,
    /// How many replicas of this process there are: at least, where Redis tells of more. A process that cannot ask
    /// Redis admits its share of every limit: of those that Auth alone counts among its replicas, of
    /// others among all processes. `tars up --replicas` sets it for its replicas.
    pub replicas: u32,
    /// How long a call waits for Redis to count it, in milliseconds.
    pub redis_budget_ms: u64,
    /// Calls per second of one identity, or of one address where no identity is proven, that are
    /// looked at further; the rest is refused before anything expensive is done.
    pub flood_per_second: u32,
    /// The prefix of an IPv6 network that is counted as one site, as whoever has it may use any of its
    /// addresses. An address itself counts as its /64. Where a provider hands out smaller networks than
    /// /48, that is the prefix: its customers share the limits of a site otherwise.
    pub site_prefix: u32,
    /// How many times as much as one address a whole site may do, where a limit is by address; at most 100000
    /// calls in a window.
    pub site_factor: u32,
    /// Maximum number of calls in flight of one caller in one service. A caller is a user with all of
    /// their keys; a call without a credential counts by SPIFFE id, behind the gateway by address.
    pub calls_by_caller: u32,
    /// Maximum number of open server streams of one caller in one service. Keep it well below
    /// `connections.max_streams`, which all callers behind one gateway share.
    pub streams_by_caller: u32,
    /// Maximum number of calls in flight of one peer, by SPIFFE id, in one service. Workloads carry
    /// the calls of others, and may have three quarters of all.
    pub calls_by_peer: u32,
    /// Maximum number of open server streams of one peer, by SPIFFE id, in one service. Workloads may
    /// have three quarters of all.
    pub streams_by_peer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file: None,
            auth_per_minute: 10,
            public_per_minute: 600,
            user_per_minute: 600,
            identity_per_minute: 30,
            key_changes_per_minute: 10,
            internal_per_second: 1000,
            replicas: 1,
            redis_budget_ms: 5,
            flood_per_second: 100,
            site_prefix: 48,
            site_factor: 10,
            calls_by_caller: 256,
            streams_by_caller: 32,
            calls_by_peer: 1024,
            streams_by_peer: 256,
        }
    }
}

impl Limits {
    /// How the addresses of IPv6 sites are counted.
    pub fn sites(&self) -> Sites {
        Sites {
            prefix: self.site_prefix,
            factor: self.site_factor,
        }
    }
}

/// What one user may use in a calendar month (UTC), over all of their keys. 0 is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// A file with other quotas than these, also of single users and roles. Reloaded when it changes; a mistake
    /// in it stops a start, and later keeps what is in force.
    pub file: Option<PathBuf>,
    /// Calls of one user in a month.
    pub calls: u64,
    /// Steps of environments that the training runs and searches of one user take in a month.
    pub training_steps: u64,
    /// Seconds for which the games of one user are solved in a month.
    pub solver_seconds: u64,
}
