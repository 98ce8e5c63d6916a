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
            NoSession::None | NoSession::Unknown(_) | NoSession::OtherMesh { .. } => {
                Self::NotLoggedIn(why.to_string())
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_session_has_the_exit_code_of_a_missing_login_and_a_reason() {
        let other = NoSession::OtherMesh {
            username: "eve".to_owned(),
            gateway: "http://localhost:1".to_owned(),
        };
        for why in [NoSession::None, NoSession::Unknown("a".to_owned()), other] {
            let error = CommandError::from(why).in_json_if(true);
            assert_eq!(error.exit_code(), 77, "{error}");
            let json: serde_json::Value = serde_json::from_str(&error.to_string()).unwrap();
            assert_eq!(json["reason"], "NOT_LOGGED_IN");
            let text = json["message"].as_str().unwrap();
            assert!(text.contains("tars login"), "{text}");
        }
        let several = CommandError::from(NoSession::Several(vec!["a".to_owned()]));
        assert_eq!(several.exit_code(), 64, "it is not clear which is meant");
    }
}
