//! Credentials and what they prove: access tokens, API keys, roles and permissions, and the pushed
//! view of everything that is valid now. Nothing in this crate uses the network.

#![deny(missing_docs)]

pub mod apikey;
pub mod caller;
pub mod follow;
pub mod grant;
pub mod permission;
pub mod token;
pub mod trust;
pub mod view;

pub use caller::{Caller, Credential};
pub use follow::{Follower, Gap};
pub use grant::{GrantError, StoredKey};
pub use permission::{PERMISSIONS, Permissions};
pub use token::{Claims, TokenError};
pub use view::View;
