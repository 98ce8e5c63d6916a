//! The record of a call, which all layers share and the handler can see.

use crate::{flight::Flight, holders::Holder};
use futures_util::future::BoxFuture;
use http::{Extensions, HeaderMap};
use std::{
    net::IpAddr,
    sync::{Arc, LazyLock, OnceLock},
};
use tars_certs::{PEER_CLASSES, PeerClass, SERVICES, peer::PeerInfo};
use tars_credentials::{Caller, PERMISSIONS};
use tars_proto::{
    attempt, fault,
    table::{ContractErrors, Method, MethodTable, Principal, Vocabulary},
};
use tars_runtime::{
    clock::Monotonic,
    scoped::{self, ScopedCell},
    trace::{Scope, Span, TraceContext},
};
use tokio::time::Instant;
use tonic::{Request, Status};

/// Returns the method table of this build, which is made once. `main` asks for it first, so that a
/// mistake stops the process.
///
/// # Errors
///
/// Every mistake in the contract.
pub fn contract() -> Result<&'static MethodTable, &'static ContractErrors> {
    static TABLE: LazyLock<Result<MethodTable, ContractErrors>> = LazyLock::new(|| {
        MethodTable::build(Vocabulary {
            peer_classes: PEER_CLASSES,
            services: SERVICES,
            permissions: PERMISSIONS,
        })
    });
    TABLE.as_ref()
}

/// Runs work that outlives its call inside a span of its own. Futures that it wraps in
/// [`in_current_trace`] stay in that trace.
pub async fn with_trace<F: Future>(span: Span, work: F) -> F::Output {
    let output = span.scope().run(work).await;
    drop(span);
    output
}

/// Returns a future that stays in the trace of the caller, wherever it is spawned.
pub fn in_current_trace<F: Future + Send + 'static>(work: F) -> BoxFuture<'static, F::Output> {
    match Scope::current() {
        Some(scope) => Box::pin(scope.run(work)),
        None => Box::pin(work),
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct Call {
    /// The method that is called.
    pub method: &'static Method,
    /// The peer of the connection.
    pub peer: Arc<PeerInfo>,
    /// The peer's address, or that of the client on whose behalf the gateway calls.
    pub client: IpAddr,
    /// The position of the call's span in its trace.
    pub trace: TraceContext,
    /// When the call arrived, for timers.
    pub started: Instant,
    /// The same moment on the monotonic clock, for limits.
    pub arrived: Monotonic,
    caller: OnceLock<Arc<Caller>>,
    deadline: OnceLock<Instant>,
    /// The caller's credential header, to forward to the next service.
    credential: OnceLock<(http::HeaderName, http::HeaderValue)>,
    /// The reason with which a layer refused the call.
    refusal: OnceLock<String>,
    /// Where the caller's place is counted.
    holder: OnceLock<Arc<Holder>>,
    flight: Flight,
    attempt: Attempt,
}

/// What the peer says of earlier attempts.
#[derive(Debug, Clone, Copy, Default)]
struct Attempt {
    is_retry: bool,
    is_charged: bool,
}

thread_local! {
    static CURRENT: ScopedCell<Arc<Call>> = const { ScopedCell::empty() };
}

impl Call {
    /// Creates the record of a call that arrives now.
    pub fn new(
        method: &'static Method,
        peer: Arc<PeerInfo>,
        client: IpAddr,
        trace: TraceContext,
        arrived: Monotonic,
    ) -> Self {
        Self {
            method,
            peer,
            client,
            trace,
            started: Instant::now(),
            arrived,
            caller: OnceLock::new(),
            deadline: OnceLock::new(),
            credential: OnceLock::new(),
            refusal: OnceLock::new(),
            holder: OnceLock::new(),
            flight: Flight::default(),
            attempt: Attempt::default(),
        }
    }

    /// The same as a further attempt, if its peer says so in these headers and is a workload: nobody else can claim
    /// to have been charged before.
    #[must_use]
    pub(crate) fn attempted(mut self, headers: &HeaderMap) -> Self {
        let is_trusted = self.peer.class.is_some_and(PeerClass::is_workload);
        let says = |name| is_trusted && headers.contains_key(name);
        self.attempt = Attempt {
            is_retry: says(attempt::PREVIOUS),
            is_charged: says(attempt::CHARGED),
        };
        self
    }

    /// Whether the call was attempted before.
    pub(crate) fn is_retry(&self) -> bool {
        self.attempt.is_retry
    }

    /// Whether an earlier attempt may have been charged to the caller.
    pub(crate) fn is_charged(&self) -> bool {
        self.attempt.is_charged
    }

    /// Returns the call that the running task serves.
    pub fn current() -> Option<Arc<Self>> {
        scoped::with(&CURRENT, Arc::clone)
    }

    /// Runs `work` with `call` as the current call, and puts it back afterwards.
    pub(crate) fn enter<T>(call: &mut Option<Arc<Self>>, work: impl FnOnce() -> T) -> T {
        scoped::set(&CURRENT, call, work)
    }

    /// Returns the record of the call that `request` belongs to.
    ///
    /// # Errors
    ///
    /// `INTERNAL` when the request did not pass through the trace layer.
    pub fn of<T>(request: &Request<T>) -> Result<Arc<Self>, Status> {
        request
            .extensions()
            .get::<Arc<Self>>()
            .cloned()
            .ok_or_else(|| Status::internal("the call has no record"))
    }

    pub(crate) fn in_extensions(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get()
    }

    /// Returns the authenticated caller, or `None` when the call needs none or is not yet
    /// authenticated.
    pub fn caller(&self) -> Option<&Caller> {
        self.caller.get().map(Arc::as_ref)
    }

    /// Returns the caller of a method whose rule guarantees one.
    ///
    /// # Errors
    ///
    /// `INTERNAL` when there is none.
    pub fn require_caller(&self) -> Result<&Caller, Status> {
        self.caller()
            .ok_or_else(|| Status::internal("the call has no caller"))
    }

    pub(crate) fn set_caller(&self, caller: Arc<Caller>) {
        // Set once, by the authenticate layer.
        self.caller.set(caller).ok();
    }

    /// Returns the instant by which the call must have ended; `None` for a stream without a
    /// deadline.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    pub(crate) fn set_deadline(&self, at: Instant) {
        // Set once, by the deadline layer.
        self.deadline.set(at).ok();
    }

    pub(crate) fn credential(&self) -> Option<&(http::HeaderName, http::HeaderValue)> {
        self.credential.get()
    }

    pub(crate) fn set_credential(&self, name: http::HeaderName, value: http::HeaderValue) {
        // Set once, by the authenticate layer.
        self.credential.set((name, value)).ok();
    }

    /// Returns the reason with which a layer refused the call.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    pub(crate) fn set_refusal(&self, status: &Status) {
        // The first layer that refuses the call answers it.
        let reason = fault::reason(status);
        self.refusal
            .set(reason.unwrap_or_else(|| fault::code_name(status.code()).to_owned()))
            .ok();
    }

    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.get().map(Arc::as_ref)
    }

    pub(crate) fn set_holder(&self, holder: Arc<Holder>) {
        // Set once, by the check of the places layer.
        self.holder.set(holder).ok();
    }

    /// What the call counts for in the load of the process.
    pub(crate) fn flight(&self) -> &Flight {
        &self.flight
    }

    /// The principal that the rule requires; the peer alone, where its class is sufficient.
    pub(crate) fn principal(&self) -> Principal {
        let rule = &self.method.rule;
        let enough = |class: PeerClass| rule.suffices(class.as_str());
        if !rule.enough.is_empty() && self.peer.class.is_some_and(enough) {
            return Principal::Peer;
        }
        rule.principal
    }

    /// Whether a workload makes the call on its own behalf.
    pub(crate) fn is_own(&self) -> bool {
        let itself = matches!(
            self.method.rule.principal,
            Principal::Workload | Principal::Peer
        );
        itself && self.peer.class.is_some_and(PeerClass::is_workload)
    }

    /// Whether nobody is known who makes the call: it carries no credential, and the peer proves nothing, or proves
    /// itself to carry the calls of strangers.
    pub(crate) fn is_of_stranger(&self) -> bool {
        let is_proven = self.peer.verified.is_some() && self.peer.class != Some(PeerClass::Gateway);
        self.caller().is_none() && !is_proven && !self.is_own()
    }

    /// Whether the call is one that its caller makes, as opposed to a workload on behalf of a caller whose call is
    /// limited and counted already.
    pub(crate) fn enters_the_mesh(&self) -> bool {
        let class = self.peer.class;
        !class.is_some_and(|class| class.is_workload() && class != PeerClass::Gateway)
    }

    /// The owner to whom limits and shares are charged: the person, whichever of their keys the call
    /// carries, else the peer.
    pub fn owner(&self) -> &str {
        self.caller
            .get()
            .map_or_else(|| self.peer.name(), |c| c.owner_id.as_str())
    }

    /// The name in audit records: the person or the key, else the peer.
    pub fn actor(&self) -> String {
        self.caller
            .get()
            .map_or_else(|| self.peer.name().to_owned(), |c| c.label.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_contract_is_sound() {
        let table = contract().unwrap();
        let login = table.get("/tars.auth.v1.AuthService/Login").unwrap();
        assert_eq!(login.rule.principal, Principal::Public);
        assert_eq!(login.routes[0].template.to_string(), "/auth/login");
        assert_eq!(login.workload(), Some("auth"));
        assert!(!login.summary.is_empty());
        assert!(table.get("/tars.auth.v1.AuthService/Nothing").is_none());
    }

    #[test]
    fn every_service_may_follow_auth() {
        let watch = "/tars.auth.v1.CredentialService/WatchCredentials";
        let watch = contract().unwrap().get(watch).unwrap();
        for service in SERVICES {
            assert!(watch.rule.peers.iter().any(|p| p == service), "{service}");
        }
    }

    #[test]
    fn every_peer_class_may_call_something() {
        let table = contract().unwrap();
        let admits = |class: &str| {
            table
                .iter()
                .any(|m| m.rule.peers.iter().any(|p| p == class))
        };
        let idle: Vec<_> = PEER_CLASSES.iter().filter(|c| !admits(c)).collect();
        assert!(idle.is_empty(), "{idle:?}");
    }
}
