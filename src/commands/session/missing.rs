//! Why there is no session to use.

use super::store;
use crate::commands::CommandError;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSession {
    #[error("no session{}; run `tars login` first", left_behind())]
    None,
    #[error("no session for {mesh}; run `tars login` for it first{old}", mesh = .0, old = left_behind())]
    Unknown(String),
    #[error(
        "several meshes could be meant; name one with --gateway URL or --data-dir DIR, or end a session with `tars logout --gateway URL`:\n  {}",
        .0.join("\n  ")
    )]
    Several(Vec<String>),
    #[error(
        "the session of {username} at {gateway} is for another mesh than the one there now (its roots are others: it was made anew, or another took its place); run `tars login` again"
    )]
    OtherMesh { username: String, gateway: String },
}

impl From<NoSession> for CommandError {
    fn from(why: NoSession) -> Self {
        match why {
            NoSession::Several(_) => Self::Usage(why.to_string()),
            _ => Self::Failed(why.to_string()),
        }
    }
}

/// A session file of earlier versions, which does not say whose mesh it is for.
fn left_behind() -> String {
    match store::of_old() {
        Some(path) => format!(
            " ({} is of an earlier version, and does not say which mesh it is for; it goes with the next login)",
            path.display()
        ),
        None => String::new(),
    }
}
