//! What happens to every call, one tower layer per file.
//!
//! Three shapes recur: an *observer* sees a call begin and end (trace, metrics, audit); a *check*
//! passes it or answers in its place (admission, served here, flood guard, authentication,
//! authorisation, usage); places are both. The others (panic, deadline, stream guard, rate limit, gzip) have
//! a form of their own. [`decide`] holds the one decision about what is allowed, for admission, for
//! authorisation and for open streams. All futures are named: the stack allocates one shared record
//! per call, and nothing per layer.

#![deny(missing_docs)]

pub mod audit;
pub mod authenticate;
pub mod call;
mod check;
pub mod client;
mod compress;
mod deadline;
pub mod decide;
#[cfg(test)]
mod fixtures;
mod flight;
pub mod flood;
mod holders;
pub mod limits;
pub mod metrics;
mod observe;
pub mod overload;
mod panic;
mod places;
pub mod policy;
pub mod served;
pub mod stack;
pub mod store;
mod stream_guard;
pub mod trace;
pub mod usage;

pub use call::{Call, contract};
pub use policy::{Policy, PolicyHandle};
pub use stack::{Stack, StackOptions};
