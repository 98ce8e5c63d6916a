//! What can go wrong in Auth, and how each is told to clients.

use std::{io, time::Duration};
use tars_certs::{CaError, ca::csr::CsrError};
use tars_proto::fault;
use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the credentials are not valid")]
    InvalidCredentials,
    #[error("too many failures; try again later")]
    Throttled(Duration),
    #[error("too many logins at once")]
    Busy,
    #[error("there is no {0} {1:?}")]
    NotFound(&'static str, String),
    #[error("there is already a user {0:?}")]
    UserExists(String),
    #[error("unknown role {0:?}")]
    UnknownRole(String),
    #[error("unknown or unheld permission {0:?}")]
    Scope(String),
    #[error("the last administrator must stay")]
    LastAdmin,
    #[error("the key is revoked")]
    KeyRevoked,
    #[error("somebody else changed it at the same time")]
    Conflict,
    #[error("{0}")]
    PageToken(&'static str),
    #[error("the new password is the old one")]
    SamePassword,
    #[error("the audit list is not reachable: {0}")]
    Store(#[from] tars_runtime::db::Error),
    #[error("file: {0}")]
    Io(#[from] io::Error),
    #[error("cryptography failed: {0}")]
    Crypto(&'static str),
    #[error("this mesh's certificates come from elsewhere: there is no own authority")]
    NoAuthority,
    #[error("the join token is not valid")]
    JoinToken,
    #[error("the certificate was not issued by this mesh's authority")]
    NotIssuedHere,
    #[error(
        "the certificate can be renewed no more: its lineage has ended or is revoked; join anew"
    )]
    LineageEnded,
    #[error("not every peer is ready: {}", .0.join(", "))]
    PeersNotReady(Vec<String>),
    #[error("this would cut off: {}; reissue these, or allow it with cut_off", .0.join(", "))]
    WouldCutOff(Vec<String>),
    #[error("{1}")]
    Field(&'static str, String),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        let text = error.to_string();
        match error {
            AuthError::InvalidCredentials => {
                fault::status(Code::Unauthenticated, "INVALID_CREDENTIALS", &text)
            }
            AuthError::Throttled(retry) => fault::exhausted("LOGIN_THROTTLED", "login", retry),
            AuthError::Busy => fault::exhausted("LOGIN_BUSY", "login", Duration::from_secs(1)),
            AuthError::NotFound(kind, name) => fault::not_found(kind, &name),
            AuthError::UserExists(_) => fault::status(Code::AlreadyExists, "USER_EXISTS", &text),
            AuthError::UnknownRole(_) => fault::invalid_field("roles", &text),
            AuthError::Scope(_) => fault::invalid_field("scopes", &text),
            AuthError::LastAdmin => fault::precondition("LAST_ADMIN", "users", &text),
            AuthError::KeyRevoked => fault::precondition("KEY_REVOKED", "api_keys", &text),
            AuthError::Conflict => fault::status(Code::Aborted, "CONFLICT", &text),
            AuthError::PageToken(field) => {
                fault::invalid_field(field, "is not a token of this list")
            }
            AuthError::SamePassword => fault::invalid_field("new_password", &text),
            AuthError::Store(e) => {
                tracing::error!(error = %e, "the database failed");
                fault::unavailable(
                    "STORE",
                    "the database is not available",
                    Duration::from_secs(1),
                )
            }
            AuthError::NoAuthority => fault::precondition("NO_AUTHORITY", "certificates", &text),
            AuthError::JoinToken => {
                fault::status(Code::Unauthenticated, "INVALID_JOIN_TOKEN", &text)
            }
            AuthError::NotIssuedHere => {
                fault::precondition("NOT_ISSUED_HERE", "certificates", &text)
            }
            AuthError::LineageEnded => fault::precondition("LINEAGE_ENDED", "certificates", &text),
            AuthError::PeersNotReady(_) => fault::precondition("PEERS_NOT_READY", "roots", &text),
            AuthError::WouldCutOff(_) => fault::precondition("WOULD_CUT_OFF", "roots", &text),
            AuthError::Ca(CaError::Order(_)) => fault::precondition("ROOT_ORDER", "roots", &text),
            AuthError::Field(field, problem) => fault::invalid_field(field, &problem),
            AuthError::Csr(e) | AuthError::Ca(CaError::Csr(e)) => {
                fault::invalid_field("csr", &e.to_string())
            }
            AuthError::Io(_) | AuthError::Crypto(_) | AuthError::Ca(_) => {
                tracing::error!(error = text, "auth failed");
                fault::status(
                    Code::Internal,
                    "INTERNAL",
                    "the service failed; see its log",
                )
            }
        }
    }
}
