//! What places are for.

/// What a place is for, which is also the index of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Calls,
    Streams,
    OwnCalls,
    OwnStreams,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Calls, Kind::Streams, Kind::OwnCalls, Kind::OwnStreams];

impl Kind {
    /// What a call needs: `is_own` tells whether a workload makes it on its own behalf.
    pub(crate) fn of(is_own: bool, streams: bool) -> Self {
        match (is_own, streams) {
            (false, false) => Self::Calls,
            (false, true) => Self::Streams,
            (true, false) => Self::OwnCalls,
            (true, true) => Self::OwnStreams,
        }
    }

    /// The value of the metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Streams => "streams",
            Self::OwnCalls => "own_calls",
            Self::OwnStreams => "own_streams",
        }
    }

    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Streams | Self::OwnStreams)
    }

    /// The word in the message of a refusal.
    pub(crate) fn plural(self) -> &'static str {
        if self.is_stream() { "streams" } else { "calls" }
    }
}
