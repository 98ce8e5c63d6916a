//! What places are for.

use tars_certs::PeerClass;
use tars_proto::table::{Method, Principal};

/// What a place is for, which is also the index of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Calls,
    Streams,
    OwnCalls,
    OwnStreams,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Calls, Kind::Streams, Kind::OwnCalls, Kind::OwnStreams];

impl Kind {
    /// What a call of `method` by a peer of `class` needs.
    pub(super) fn of(class: Option<PeerClass>, method: &Method) -> Self {
        let workload = class.is_some_and(PeerClass::is_workload);
        let itself = matches!(method.rule.principal, Principal::Workload | Principal::Peer);
        match (workload && itself, method.server_streaming) {
            (false, false) => Self::Calls,
            (false, true) => Self::Streams,
            (true, false) => Self::OwnCalls,
            (true, true) => Self::OwnStreams,
        }
    }

    /// The value of the metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Streams => "streams",
            Self::OwnCalls => "own_calls",
            Self::OwnStreams => "own_streams",
        }
    }

    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::Streams | Self::OwnStreams)
    }

    /// The word in the message of a refusal.
    pub(super) fn plural(self) -> &'static str {
        if self.is_stream() { "streams" } else { "calls" }
    }
}
