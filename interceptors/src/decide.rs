//! Authorisation: whether a call is allowed, decided in one place for new calls, before and after
//! their caller is known, and for open streams.

use crate::{
    Call,
    check::Check,
    policy::{Denial, PolicyHandle},
};
use std::{fmt, sync::Arc};
use tars_certs::PeerClass;
use tars_proto::{
    fault, reason,
    table::{Permission, Principal},
};
use tonic::{Code, Status};

/// The decision about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The call is allowed.
    Allowed,
    /// The peer may make the call on behalf of a caller who holds the permission, but no credential
    /// has been presented yet.
    NeedsCredential,
    /// The call is not allowed.
    Refused(Refusal),
}

/// Why a call is not allowed. For the log: a peer is not told which rule excluded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The policy does not admit the peer.
    Peer(Denial),
    /// The method is reserved for workloads of the mesh.
    NoWorkload,
    /// The method requires a proven identity.
    NoIdentity,
    /// The caller does not hold this permission.
    Permission(Permission),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(why) => why.fmt(f),
            Self::NoWorkload => f.write_str("the peer is not a workload of the mesh"),
            Self::NoIdentity => f.write_str("the peer proves no identity"),
            Self::Permission(missing) => write!(f, "the caller does not hold {missing}"),
        }
    }
}

/// Decides about a call from its peer and, once there is one, from its caller.
pub fn decide(policy: &PolicyHandle, call: &Call) -> Verdict {
    if let Err(denial) = policy.admits(call) {
        return Verdict::Refused(Refusal::Peer(denial));
    }
    let allowed = |allowed, refusal| match allowed {
        true => Verdict::Allowed,
        false => Verdict::Refused(refusal),
    };
    match call.principal() {
        Principal::Public => Verdict::Allowed,
        Principal::Peer => allowed(call.peer.verified.is_some(), Refusal::NoIdentity),
        Principal::Workload => {
            let workload = call.peer.class.is_some_and(PeerClass::is_workload);
            allowed(workload, Refusal::NoWorkload)
        }
        Principal::Permission(needed) => holds(call, needed),
    }
}

fn holds(call: &Call, needed: Permission) -> Verdict {
    match call.caller() {
        None => Verdict::NeedsCredential,
        Some(caller) if caller.permissions.holds(needed) => Verdict::Allowed,
        Some(_) => Verdict::Refused(Refusal::Permission(needed)),
    }
}

/// Names the missing permission, so that an administrator can be asked for it, but not the caller,
/// their key or their roles.
pub(crate) fn refusal(call: &Call, why: &Refusal) -> Status {
    let (actor, method) = (call.actor(), &call.method.path);
    tracing::info!(actor, method, %why, "call refused");
    match why {
        Refusal::Peer(_) => peer_not_allowed(),
        Refusal::Permission(missing) => fault::missing_permission(missing.as_str()),
        Refusal::NoWorkload => denied("only a workload of the mesh may do this"),
        Refusal::NoIdentity => denied("only a peer that proves an identity may do this"),
    }
}

fn denied(message: &str) -> Status {
    fault::status(Code::PermissionDenied, reason::PERMISSION_DENIED, message)
}

pub(crate) fn peer_not_allowed() -> Status {
    fault::status(
        Code::PermissionDenied,
        reason::PEER_NOT_ALLOWED,
        "this peer may not call this method",
    )
}

/// The check before authentication: refuses what no credential could allow.
#[derive(Debug, Clone)]
pub struct Admit(pub PolicyHandle);

impl Check for Admit {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        match decide(&self.0, call) {
            Verdict::Allowed | Verdict::NeedsCredential => Ok(()),
            Verdict::Refused(why) => Err(refusal(call, &why)),
        }
    }
}

/// The check after authentication: passes nothing that is not allowed.
#[derive(Debug, Clone)]
pub struct Authorise(pub PolicyHandle);

impl Check for Authorise {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        match decide(&self.0, call) {
            Verdict::Allowed => Ok(()),
            Verdict::Refused(why) => Err(refusal(call, &why)),
            Verdict::NeedsCredential => Err(Status::internal("the call has no caller")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Policy, contract,
        fixtures::{by_peer, caller},
    };
    use tars_credentials::Permissions;

    const LIST: &str = "/tars.automl.v1.StudyService/ListStudies";
    const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
    const WATCH: &str = "/tars.auth.v1.CredentialService/WatchCredentials";
    const REFLECT: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

    fn of_peer(method: &str, class: PeerClass, path: &str) -> Verdict {
        decide(&PolicyHandle::default(), &by_peer(method, class, path))
    }

    #[test]
    fn a_peer_is_sufficient_where_the_contract_says_so() {
        assert_eq!(
            of_peer(LOGIN, PeerClass::Gateway, "/gateway"),
            Verdict::Allowed
        );
        assert_eq!(
            of_peer(WATCH, PeerClass::Automl, "/automl"),
            Verdict::Allowed
        );
        assert_eq!(
            of_peer(REFLECT, PeerClass::Operator, "/operator/ada"),
            Verdict::Allowed
        );
    }

    #[test]
    fn a_peer_is_not_sufficient_where_a_permission_is_required() {
        let asked = [(LIST, PeerClass::Gateway), (REFLECT, PeerClass::Client)];
        for (method, class) in asked {
            assert_eq!(
                of_peer(method, class, "/x"),
                Verdict::NeedsCredential,
                "{method}"
            );
        }
    }

    #[test]
    fn a_peer_outside_of_the_contract_is_refused_on_behalf_of_anyone() {
        let refused = Verdict::Refused(Refusal::Peer(Denial::Contract));
        for class in [PeerClass::Auth, PeerClass::Client, PeerClass::Operator] {
            assert_eq!(of_peer(WATCH, class, "/x"), refused, "{class:?}");
        }
    }

    fn by_holder(permissions: Permissions) -> Arc<Call> {
        let call = by_peer(LIST, PeerClass::Gateway, "/gateway");
        call.set_caller(caller("ada", "user:ada", permissions));
        call
    }

    #[test]
    fn a_caller_needs_the_very_permission() {
        let policy = PolicyHandle::default();
        let needed = Permissions::of(["studies.read"]);
        assert_eq!(decide(&policy, &by_holder(needed)), Verdict::Allowed);
        let others = [Permissions::default(), Permissions::ALL.without(needed)];
        for permissions in others {
            let verdict = decide(&policy, &by_holder(permissions));
            let Verdict::Refused(Refusal::Permission(missing)) = verdict else {
                panic!("{permissions:?}: {verdict:?}");
            };
            assert_eq!(missing.as_str(), "studies.read");
        }
    }

    #[test]
    fn a_narrowed_policy_refuses_what_it_admitted_before() {
        let text = format!(
            "[[rule]]\nname = \"none\"\nmethods = [{:?}]\ndeny = true",
            &LIST[1..]
        );
        let policy = PolicyHandle::default();
        let call = by_holder(Permissions::ALL);
        assert_eq!(decide(&policy, &call), Verdict::Allowed);
        policy.replace(Policy::parse(&text, contract().unwrap()).unwrap());
        assert!(matches!(
            decide(&policy, &call),
            Verdict::Refused(Refusal::Peer(Denial::Rule(_)))
        ));
    }
}
