//! The record of one call, shared by all layers and visible to the handler.

use crate::places::Holder;
use futures_util::future::BoxFuture;
use http::Extensions;
use std::{
    net::IpAddr,
    sync::{Arc, LazyLock, OnceLock},
};
use tars_certs::{PEER_CLASSES, PeerClass, peer::PeerInfo};
use tars_credentials::{Caller, PERMISSIONS};
use tars_proto::{
    fault,
    table::{ContractErrors, Method, MethodTable, Principal, Vocabulary},
};
use tars_runtime::{
    clock::Monotonic,
    lent::{self, Lent},
    trace::{Scope, Span, TraceContext},
};
use tokio::time::Instant;
use tonic::{Request, Status};

/// The contract of this build. `main` looks at it first, so that a mistake stops the process.
pub fn contract() -> Result<&'static MethodTable, &'static ContractErrors> {
    static TABLE: LazyLock<Result<MethodTable, ContractErrors>> = LazyLock::new(|| {
        MethodTable::build(Vocabulary {
            peer_classes: PEER_CLASSES,
            permissions: PERMISSIONS,
        })
    });
    TABLE.as_ref()
}

/// Runs work that outlives a call inside a span of its own; what it spawns through
/// [`in_current_trace`] stays in that trace.
pub async fn with_trace<F: Future>(span: Span, work: F) -> F::Output {
    let output = span.scope().run(work).await;
    drop(span);
    output
}

/// A future that stays in the trace of whoever makes it, wherever it runs.
pub fn in_current_trace<F: Future + Send + 'static>(work: F) -> BoxFuture<'static, F::Output> {
    match Scope::current() {
        Some(scope) => Box::pin(scope.run(work)),
        None => Box::pin(work),
    }
}

/// One call in flight.
#[derive(Debug)]
pub struct Call {
    pub method: &'static Method,
    pub peer: Arc<PeerInfo>,
    /// The peer's address, or what the gateway says its client's is.
    pub client: IpAddr,
    pub trace: TraceContext,
    pub started: Instant,
    /// The same moment, as limits measure it.
    pub arrived: Monotonic,
    caller: OnceLock<Arc<Caller>>,
    deadline: OnceLock<Instant>,
    /// The caller's own credential header, to pass on to the next service.
    credential: OnceLock<(http::HeaderName, http::HeaderValue)>,
    /// Why a layer refused the call, as the answer says it.
    refusal: OnceLock<String>,
    /// Where the caller's place is counted.
    holder: OnceLock<Arc<Holder>>,
}

thread_local! {
    static CURRENT: Lent<Arc<Call>> = const { Lent::nothing() };
}

impl Call {
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
        }
    }

    /// The call that the running task serves.
    pub fn current() -> Option<Arc<Self>> {
        lent::look(&CURRENT, Arc::clone)
    }

    /// Runs work for a call, which is back in its place afterwards.
    pub(crate) fn enter<T>(call: &mut Option<Arc<Self>>, work: impl FnOnce() -> T) -> T {
        lent::lend(&CURRENT, call, work)
    }

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

    pub fn caller(&self) -> Option<&Caller> {
        self.caller.get().map(Arc::as_ref)
    }

    /// The caller, where the rule guarantees that there is one.
    pub fn require_caller(&self) -> Result<&Caller, Status> {
        self.caller()
            .ok_or_else(|| Status::internal("the call has no caller"))
    }

    pub(crate) fn set_caller(&self, caller: Arc<Caller>) {
        // Set once, by the authentication layer.
        self.caller.set(caller).ok();
    }

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
        // Set once, by the authentication layer.
        self.credential.set((name, value)).ok();
    }

    /// The reason by which a layer refused the call.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    pub(crate) fn set_refusal(&self, status: &Status) {
        // The first layer that refuses answers.
        let reason = fault::reason(status);
        self.refusal
            .set(reason.unwrap_or_else(|| fault::code_name(status.code()).to_owned()))
            .ok();
    }

    pub(crate) fn holder(&self) -> Option<&Holder> {
        self.holder.get().map(Arc::as_ref)
    }

    pub(crate) fn set_holder(&self, holder: Arc<Holder>) {
        // Set once, by the places' check.
        self.holder.set(holder).ok();
    }

    /// Whom the rule asks for; the peer alone where its class is enough.
    pub(crate) fn principal(&self) -> Principal {
        let rule = &self.method.rule;
        let enough = |class: PeerClass| rule.enough.iter().any(|c| c == class.as_str());
        if !rule.enough.is_empty() && self.peer.class.is_some_and(enough) {
            return Principal::Peer;
        }
        rule.principal
    }

    pub fn peer_class(&self) -> Option<PeerClass> {
        self.peer.class
    }

    /// Whom limits and shares count: the person, whichever of their keys the call shows, else the
    /// peer.
    pub fn owner(&self) -> &str {
        self.caller
            .get()
            .map_or_else(|| self.peer.name(), |c| c.owner_id.as_str())
    }

    /// The person or key, else the peer: who an audit record names.
    pub fn actor(&self) -> String {
        self.caller
            .get()
            .map_or_else(|| self.peer.name().to_owned(), |c| c.label.clone())
    }
}
