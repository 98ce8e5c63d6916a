//! Why a call ends as UNAVAILABLE, and what that says of the server that answered so.
//!
//! A client that has several servers to choose from leaves one alone that fails. Most refusals tell nothing of
//! the server: they are about one caller, one agent, one account, or about another server further on, and any
//! other one would answer the same. So each reason says here what it says of its server, and UNAVAILABLE is sent
//! with these reasons alone.

use crate::reason;

/// What an answer says of the server that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// It does not work.
    Failed,
    /// It works, and others are asked rather.
    Busy,
    /// Nothing.
    Nothing,
}

macro_rules! unavailable {
    ($($(#[$doc:meta])* $name:ident: $reason:ident, $says:ident;)*) => {
        /// Why a call is UNAVAILABLE.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Unavailable {
            $($(#[$doc])* $name,)*
        }

        impl Unavailable {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the reason in the `ErrorInfo`.
            pub fn reason(self) -> &'static str {
                match self {
                    $(Self::$name => reason::$reason,)*
                }
            }

            /// Returns what it says of the server.
            pub fn says(self) -> Says {
                match self {
                    $(Self::$name => Says::$says,)*
                }
            }
        }
    };
}

unavailable! {
    /// Every place is taken.
    Overloaded: OVERLOADED, Busy;
    /// The listener has as many connections as it may.
    TooManyConnections: TOO_MANY_CONNECTIONS, Busy;
    /// Too many answers have not been read by their clients.
    UnreadAnswers: UNREAD_ANSWERS, Busy;
    /// The database does not answer.
    Store: STORE, Failed;
    /// The answer of a commit was lost.
    OutcomeUnknown: OUTCOME_UNKNOWN, Failed;
    /// The server is stopping.
    Stopping: STOPPING, Failed;
    /// It does not know what is live.
    ReplicaBehind: REPLICA_BEHIND, Failed;
    /// Its own certificate is revoked, so that it can call nobody.
    OwnCertificateRevoked: OWN_CERTIFICATE_REVOKED, Failed;
    /// It has not heard from Auth for too long. That is rarely its own fault.
    StaleCredentials: STALE_CREDENTIALS, Busy;
    /// What it would have to record has no room, because Auth does not take it.
    AuditFull: AUDIT_FULL, Busy;
    /// What it calls in turn cannot be reached.
    Unreachable: UNREACHABLE, Nothing;
    /// What the caller has used is not known yet.
    UsageUnknown: USAGE_UNKNOWN, Nothing;
    /// Too many passwords wait to be checked; whatever else is called does not wait for that.
    LoginBusy: LOGIN_BUSY, Nothing;
    /// A change is stored, and not announced yet.
    Unannounced: UNANNOUNCED, Nothing;
    /// Another replica works on the resource.
    OwnedElsewhere: OWNED_ELSEWHERE, Nothing;
    /// Not every replica serves the change yet.
    RolloutPending: ROLLOUT_PENDING, Nothing;
    /// The caller did not read the response.
    Stalled: STALLED, Nothing;
    /// The connection has reached its age.
    ConnectionClosing: CONNECTION_CLOSING, Nothing;
}

/// Returns what a status that is UNAVAILABLE for this reason says of the server. One that gives no reason, or a reason
/// that this version does not know, says that it failed.
pub fn says(reason: Option<&str>) -> Says {
    let mut all = Unavailable::ALL.iter();
    let known = all.find(|known| Some(known.reason()) == reason);
    known.map_or(Says::Failed, |known| known.says())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Written by hand, as a second opinion.
    const FAILED: [&str; 5] = [
        "OUTCOME_UNKNOWN",
        "OWN_CERTIFICATE_REVOKED",
        "REPLICA_BEHIND",
        "STOPPING",
        "STORE",
    ];
    const BUSY: [&str; 5] = [
        "AUDIT_FULL",
        "OVERLOADED",
        "STALE_CREDENTIALS",
        "TOO_MANY_CONNECTIONS",
        "UNREAD_ANSWERS",
    ];

    #[test]
    fn each_reason_says_of_the_server_what_it_is_about() {
        let reasons: BTreeSet<_> = Unavailable::ALL.iter().map(|why| why.reason()).collect();
        assert_eq!(reasons.len(), Unavailable::ALL.len());
        for why in Unavailable::ALL {
            let expected = match why.reason() {
                reason if FAILED.contains(&reason) => Says::Failed,
                reason if BUSY.contains(&reason) => Says::Busy,
                _ => Says::Nothing,
            };
            let told = says(Some(why.reason()));
            assert_eq!((told, why.says()), (expected, expected), "{why:?}");
        }
    }

    #[test]
    fn what_gives_no_reason_that_is_known_says_that_the_server_failed() {
        for unknown in [None, Some("NEW"), Some("")] {
            assert_eq!(says(unknown), Says::Failed, "{unknown:?}");
        }
    }
}
