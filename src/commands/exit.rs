//! What a command ends with.

use super::CommandError;
use crate::{app::StartError, rest::RestError};

/// The exit codes of all commands, as in sysexits.h where that has one.
pub(super) const STATUS: [(&str, &str); 8] = [
    ("0", "The command did what it was asked to do."),
    (
        "1",
        "It failed, or what it followed did not come to a good end.",
    ),
    ("2", "The command line cannot be parsed."),
    (
        "64",
        "The configuration or a value has a mistake, it is not clear which mesh is meant, or a confirmation (--yes) is missing.",
    ),
    (
        "69",
        "The mesh cannot be reached or was lost, or an address or the data directory is in use.",
    ),
    ("77", "Not logged in, or not permitted."),
    ("130", "Interrupted."),
    ("141", "The reader of the output closed it."),
];

impl CommandError {
    /// The exit code of a command that failed.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Log(_)
            | Self::Usage(_)
            | Self::Start(StartError::DataDir(_) | StartError::Files(_)) => 64,
            Self::Start(StartError::Bind(_) | StartError::Locked { .. })
            | Self::Rest(RestError::Unreachable { .. } | RestError::Silent { .. })
            | Self::Away { .. } => 69,
            Self::Connection(e) if e.failure.is_absence() => 69,
            Self::NotLoggedIn(_) => 77,
            Self::Rest(error) if error.is_denied() => 77,
            Self::Advised { error, .. } if error.is_denied() => 77,
            Self::Interrupted | Self::Unfollowed { .. } => 130,
            Self::Json(error) => error.exit_code(),
            _ => 1,
        }
    }
}
