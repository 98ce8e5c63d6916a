//! What a channel needs to know, and how its connections are used.

use super::{
    health::Common,
    metrics::{ChannelMetrics, PeerMetrics},
};
use crate::ConnectionTable;
use std::{sync::Arc, time::Duration};
use tars_certs::{Identity, IdentityHandle, Revocations, SpiffeId};
use tars_runtime::clock::Clock;

/// The time to connect, TLS and HTTP/2 included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a channel needs to connect.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// The server's addresses: one `host:port`, or several separated by commas. A name counts as all of
    /// the addresses that it has.
    pub target: String,
    /// The only identity that is accepted from the server.
    pub expected: SpiffeId,
    /// The identity of this process.
    pub identity: IdentityHandle,
    /// The certificates and identities that are revoked.
    pub revocations: Revocations,
    /// The clock by which certificates expire.
    pub clock: Clock,
    /// Where the connections are listed, for the admin port.
    pub table: ConnectionTable,
    /// Where calls and connections are counted.
    pub metrics: ChannelMetrics,
    /// The service that the connections are listed under.
    pub service: &'static str,
    /// Who reads the errors.
    pub audience: Audience,
}

/// Who reads why a call could not be made, and how much they may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The operator of this program: the whole cause, with addresses.
    Operator,
    /// Strangers, through a service that calls another one on their behalf: only which service failed.
    /// Its address and the cause are in the log.
    Strangers,
}

impl ChannelOptions {
    /// Returns the options of a program that is not a service: no revocations are pushed to it.
    pub fn alone(target: &str, expected: SpiffeId, identity: Identity, clock: Clock) -> Self {
        Self {
            target: target.to_owned(),
            expected,
            identity: IdentityHandle::new(identity),
            revocations: Revocations::default(),
            clock,
            table: ConnectionTable::default(),
            metrics: ChannelMetrics::default(),
            service: "client",
            audience: Audience::Operator,
        }
    }

    /// The name of the server's workload.
    pub(super) fn workload(&self) -> &str {
        let path = self.expected.path();
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// What a channel is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Short exchanges. Each may fill the connection's window for a moment, and one that finds no
    /// stream free waits for another to end.
    Calls,
    /// Streams that stay open. The connection's window holds all of theirs, so that one that nobody reads
    /// takes nothing from the others; waiting for one to end could take for ever.
    Streams,
}

impl Traffic {
    pub(super) fn stream_window(self) -> u32 {
        match self {
            Self::Calls => 1 << 20,
            Self::Streams => 64 << 10,
        }
    }

    pub(super) fn connection_window(self) -> u32 {
        match self {
            Self::Calls => 4 << 20,
            Self::Streams => 16 << 20,
        }
    }

    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Calls => Duration::from_secs(1),
            Self::Streams => Duration::ZERO,
        }
    }
}

/// What every connection of one channel has in common.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) options: ChannelOptions,
    pub(super) traffic: Traffic,
    pub(super) metrics: Arc<PeerMetrics>,
    /// What the addresses are compared by.
    pub(super) common: Arc<Common>,
}

impl Dialer {
    pub(super) fn new(options: ChannelOptions, traffic: Traffic) -> Self {
        let metrics = options.metrics.of(options.expected.as_str());
        let measures = traffic == Traffic::Calls;
        Self {
            common: Arc::new(Common::new(measures, &metrics)),
            options,
            traffic,
            metrics,
        }
    }
}
