//! The errors of Auth, and the status that each one is reported as.

use std::{io, path::PathBuf, time::Duration};
use tars_certs::{CaError, ca::csr::CsrError};
use tars_credentials::{GrantError, permission};
use tars_interceptors::store;
use tars_proto::{fault, reason, unavailable::Unavailable};
use tars_runtime::{
    db::DbError,
    lease::LeaseError,
    page::{BadToken, TOKEN_FIELD},
};
use tonic::{Code, Status};

/// The retry delay for conditions that pass on their own.
const SOON: Duration = Duration::from_secs(1);

/// Why Auth did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// A password, token or session is not valid. Nothing more specific is disclosed.
    #[error("the credentials are not valid")]
    InvalidCredentials,
    /// Too many failed logins; retry after this delay.
    #[error("too many failed logins to this account from this network")]
    Throttled(Duration),
    /// The queue of passwords to hash is full, or took too long.
    #[error("too many passwords are waiting to be checked; try again soon")]
    Busy,
    /// The caller's network has used up its share of that queue.
    #[error("too many passwords from this network are waiting to be checked")]
    BusyHere,
    /// There is no object of this kind with this name.
    #[error("there is no {0} {1:?}")]
    NotFound(&'static str, String),
    /// The name of the new user is taken.
    #[error("there is already a user {0:?}")]
    UserExists(String),
    /// There is no role with this name.
    #[error("unknown role {role:?}; the roles are {names}", role = .0, names = role_names())]
    UnknownRole(String),
    /// There is no permission with this name.
    #[error("there is no permission {0:?}")]
    UnknownScope(String),
    /// The caller may not grant or take away what this involves.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The change would leave no enabled administrator.
    #[error("the last enabled administrator cannot be disabled or demoted")]
    LastAdmin,
    /// A revoked key cannot be rotated.
    #[error("the key is revoked")]
    KeyRevoked,
    /// The row was changed concurrently.
    #[error("it was changed concurrently; read it again and retry")]
    Conflict,
    /// The page token is not one of this list.
    #[error(transparent)]
    PageToken(#[from] BadToken),
    /// A new password must differ from the current one.
    #[error("the new password equals the current one")]
    SamePassword,
    /// Periodic work belongs to another replica.
    #[error(transparent)]
    NotOwned(LeaseError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] DbError),
    /// A change is durable but was not announced in time.
    #[error("the change is stored but could not be announced yet; try again soon")]
    Unannounced,
    /// A key file could not be read or written.
    #[error("file: {0}")]
    Io(#[from] io::Error),
    /// The database's secrets are sealed with another key than the one in the named file.
    #[error(
        "the database is sealed with another key than the one in {0}: every replica uses one key, so copy \
         the file from a replica that runs on this database, or name such a copy in \
         credentials.seal_key_file"
    )]
    SealedOtherwise(PathBuf),
    /// The database's secrets are sealed, and the file that should hold their key does not exist.
    #[error(
        "the database is sealed with a key, and there is no file {0}: copy it from a replica that runs on \
         this database, or from a backup, or name such a copy in credentials.seal_key_file"
    )]
    SealKeyMissing(PathBuf),
    /// A cryptographic operation failed.
    #[error("cryptography failed: {0}")]
    Crypto(&'static str),
    /// The mesh's certificates come from another authority.
    #[error("this mesh has no authority of its own; its certificates come from elsewhere")]
    NoAuthority,
    /// The join token is invalid, expired, used or revoked. Nothing more specific is disclosed.
    #[error("the join token is not valid")]
    JoinToken,
    /// Too many join tokens are outstanding; one expires after this delay.
    #[error(
        "this credential has too many outstanding join tokens; revoke the identities they are for, or wait until some have expired"
    )]
    TooManyTokens(Duration),
    /// The certificate is below none of this authority's roots.
    #[error("the certificate was not issued by this mesh's authority")]
    NotIssuedHere,
    /// The certificate's lineage has expired or is revoked.
    #[error(
        "the certificate can no longer be renewed: its lineage has ended or is revoked; join again"
    )]
    LineageEnded,
    /// The named processes are not ready for the rotation step.
    #[error("not every peer is ready: {}", .0.join(", "))]
    PeersNotReady(Vec<String>),
    /// The rotation step would invalidate the described certificates.
    #[error(
        "certificates below the old root become invalid with it, and these are not renewed automatically; \
         renew each where its files are (`tars certs bundle --out DIR/ca.crt --force`, then `tars certs renew DIR`), \
         issue another one as shown here, or accept the loss with cut_off (--cut-off): {0}"
    )]
    WouldCutOff(String),
    /// The named field of the request has this problem.
    #[error("{1}")]
    Field(&'static str, String),
    /// The signing request is not acceptable.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The authority failed.
    #[error("certificate authority: {0}")]
    Ca(#[from] CaError),
}

fn role_names() -> String {
    let names: Vec<&str> = permission::role_names().collect();
    names.join(", ")
}

impl From<LeaseError> for AuthError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Db(error) => error.into(),
            stale @ LeaseError::Stale { .. } => Self::NotOwned(stale),
        }
    }
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        use AuthError as E;
        let text = error.to_string();
        let status = |code, reason| fault::status(code, reason, &text);
        let precondition = |reason, of| fault::precondition(reason, of, &text);
        match error {
            E::InvalidCredentials => status(Code::Unauthenticated, reason::INVALID_CREDENTIALS),
            E::Throttled(retry) => fault::spent(reason::LOGIN_THROTTLED, "login", &text, retry),
            E::Busy => fault::unavailable(Unavailable::LoginBusy, &text, SOON),
            E::BusyHere => fault::spent(reason::LOGIN_SHARE, "address", &text, SOON),
            E::NotFound(kind, name) => fault::not_found(kind, &name),
            E::UserExists(_) => status(Code::AlreadyExists, reason::USER_EXISTS),
            E::UnknownRole(_) => fault::invalid_field("roles", &text),
            E::UnknownScope(_) => fault::invalid_field("scopes", &text),
            E::Grant(GrantError::Life) => fault::invalid_field("expires_in_days", &text),
            E::Grant(GrantError::OutlivedBy) => fault::invalid_field("key_id", &text),
            E::Grant(_) => status(Code::PermissionDenied, reason::EXCEEDS_CALLER),
            E::LastAdmin => precondition(reason::LAST_ADMIN, "users"),
            E::KeyRevoked => precondition(reason::KEY_REVOKED, "api_keys"),
            E::Conflict | E::NotOwned(_) => status(Code::Aborted, reason::CONFLICT),
            E::PageToken(_) => fault::invalid_field(TOKEN_FIELD, &text),
            E::SamePassword => fault::invalid_field("new_password", &text),
            E::Store(e) => store::failed(&e),
            E::Unannounced => fault::unavailable(Unavailable::Unannounced, &text, SOON),
            E::NoAuthority => precondition(reason::NO_AUTHORITY, "certificates"),
            E::JoinToken => status(Code::Unauthenticated, reason::INVALID_JOIN_TOKEN),
            E::TooManyTokens(wait) => {
                fault::spent(reason::TOO_MANY_TOKENS, "join_tokens", &text, wait)
            }
            E::NotIssuedHere => precondition(reason::NOT_ISSUED_HERE, "certificates"),
            E::LineageEnded => precondition(reason::LINEAGE_ENDED, "certificates"),
            E::PeersNotReady(_) => precondition(reason::PEERS_NOT_READY, "roots"),
            E::WouldCutOff(_) => precondition(reason::WOULD_CUT_OFF, "roots"),
            E::Ca(CaError::Order(_)) => precondition(reason::ROOT_ORDER, "roots"),
            E::Field(field, problem) => fault::invalid_field(field, &problem),
            E::Csr(e) | E::Ca(CaError::Csr(e)) => fault::invalid_field("csr", &e.to_string()),
            E::Io(_) | E::SealedOtherwise(_) | E::SealKeyMissing(_) | E::Crypto(_) | E::Ca(_) => {
                tracing::error!(error = text, "auth failed");
                fault::internal()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(error: AuthError) -> (Code, String, String) {
        let status = Status::from(error);
        let reason = fault::reason(&status).unwrap();
        (status.code(), reason, status.message().to_owned())
    }

    #[test]
    fn a_database_failure_is_unavailable_and_leaks_nothing() {
        let secret = "SELECT password FROM users at /var/lib/tars/auth.db";
        let passing = [
            DbError::Unavailable("busy".to_owned()),
            DbError::Unavailable(secret.to_owned()),
        ];
        for error in passing {
            let (code, reason, message) = reported(error.into());
            assert_eq!((code, reason.as_str()), (Code::Unavailable, "STORE"));
            assert!(
                message.contains("database") && !message.contains("SELECT"),
                "{message}"
            );
        }
        for error in [
            DbError::Failed("no row".to_owned()),
            DbError::Failed(secret.to_owned()),
        ] {
            let (code, reason, message) = reported(error.into());
            assert_eq!((code, reason.as_str()), (Code::Internal, "INTERNAL"));
            assert!(
                !message.contains("SELECT") && !message.contains("/var"),
                "{message}"
            );
        }
        let logged = AuthError::from(DbError::Unavailable("busy".to_owned())).to_string();
        assert_eq!(logged, "the database is unavailable: busy");
    }

    #[test]
    fn an_unknown_role_is_reported_with_the_known_ones() {
        let (code, _, message) = reported(AuthError::UnknownRole("nosuch".to_owned()));
        assert_eq!(code, Code::InvalidArgument);
        for part in ["nosuch", "viewer", "developer", "admin"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_busy_login_is_not_reported_as_a_rate_limit() {
        let (code, reason, message) = reported(AuthError::Busy);
        assert_eq!((code, reason.as_str()), (Code::Unavailable, "LOGIN_BUSY"));
        assert!(!message.contains("rate limit"), "{message}");
        for error in [AuthError::BusyHere, AuthError::Throttled(SOON * 7)] {
            let (code, _, message) = reported(error);
            assert_eq!(code, Code::ResourceExhausted);
            assert!(
                !message.contains("rate limit") && message.contains("retry after"),
                "{message}"
            );
        }
    }

    #[test]
    fn an_expiry_that_is_too_late_names_the_field_of_its_method() {
        for (exceeds, field) in [
            (GrantError::Life, "expires_in_days"),
            (GrantError::OutlivedBy, "key_id"),
        ] {
            let (code, _, message) = reported(exceeds.into());
            assert_eq!(code, Code::InvalidArgument);
            assert!(message.starts_with(field), "{message}");
        }
    }

    #[test]
    fn permissions_beyond_the_callers_are_denied_by_name() {
        let lacking = GrantError::Permissions(vec!["users.write"]);
        let (code, reason, message) = reported(lacking.into());
        assert_eq!(
            (code, reason.as_str()),
            (Code::PermissionDenied, "EXCEEDS_CALLER")
        );
        assert!(message.contains("users.write"), "{message}");
    }
}
