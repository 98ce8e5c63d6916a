//! What happens to every call, one tower layer a file.
//!
//! Three shapes: an *observer* sees a call begin and end (trace, metrics, audit); a *check* lets
//! it pass or answers in its place (admission, served here, flood guard, authentication,
//! authorisation); places are both; the rest (panic, deadline, stream ends, rate limit) have a form
//! of their own. What is allowed at all, [`decide`] says, for admission, for authorisation and for
//! streams that are open. All futures are named: the stack allocates one shared record a call, and
//! nothing a layer.

pub mod audit;
pub mod authenticate;
pub mod call;
pub mod check;
pub mod client;
pub mod deadline;
pub mod decide;
pub mod drain;
pub mod flood;
pub mod limiter;
pub mod metrics;
pub mod observe;
pub mod panic;
pub mod places;
pub mod policy;
pub mod rate_limit;
pub mod served;
pub mod stack;
pub mod store;
pub mod trace;

pub use call::{Call, contract};
pub use policy::{Policy, PolicyHandle};
pub use stack::{Stack, StackOptions};
