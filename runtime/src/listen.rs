//! What all listeners of the process have in common, whatever they speak: they accept, count, and end
//! what is slow or silent.
//!
//! A peer costs a place and a file descriptor from the moment it is accepted, so every phase in which
//! the process waits for the peer is bounded: a request's head, its body and the reading of responses
//! must keep a minimum rate, and an idle connection is closed. Places are shared by address, and a
//! connection that only waits for its peer makes way for a newcomer. A request that cannot be parsed,
//! or in two ways, is answered before hyper sees it. Refusals and cuts are counted by reason.
//!
//! hyper has a timer for heads only, and none for bodies and writes. A timeout per read, as other
//! servers have it, can be put off for ever by a byte now and then; hence the minimum rates.

mod accept;
mod body;
mod final_response;
mod gate;
mod holding;
mod http1;
mod metrics;
mod pace;
mod phase;
mod request;
mod stream;

pub use accept::Acceptor;
pub(crate) use body::PacedBody;
pub use body::TooSlow;
pub(crate) use final_response::AT_ONCE as FINAL_RESPONSES;
pub use final_response::FinalResponse;
pub use gate::{Gate, Seat};
pub use holding::HoldingBody;
pub use http1::{Answers, Handler, Http1, Peer};
pub use metrics::{ListenerMetrics, PortMetrics};
pub use pace::Pace;
pub use stream::{PacedStream, Unread};

#[cfg(test)]
mod tests;
