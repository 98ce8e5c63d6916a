//! The calls of one connection.

use super::{
    Handler, Reply, ServeOptions,
    answer::{self, Answering},
    excess::RefusalBudget,
};
use crate::{MeshMetrics, framed::Framed};
use http::Request;
use hyper::body::Incoming;
use std::{cell::RefCell, sync::Arc};
use tars_certs::peer::PeerInfo;
use tonic::body::Body;

pub(super) struct Calls<S> {
    /// Borrowed for each call: a clone per call would update the reference counts that all layers
    /// share.
    service: RefCell<S>,
    peer: Arc<PeerInfo>,
    refusals: Option<Arc<RefusalBudget>>,
    metrics: MeshMetrics,
    max_message_bytes: usize,
}

impl<S> Calls<S> {
    pub(super) fn new(
        options: &ServeOptions,
        peer: Arc<PeerInfo>,
        refusals: Option<Arc<RefusalBudget>>,
        service: S,
    ) -> Self {
        Self {
            service: RefCell::new(service),
            refusals,
            peer,
            metrics: options.metrics.clone(),
            max_message_bytes: options.limits.max_message_bytes,
        }
    }

    pub(super) fn answer<B: Reply>(&self, request: Request<Incoming>) -> Answering<S::Future>
    where
        S: Handler<B>,
    {
        if let Some((reason, response)) = answer::refusal(&request) {
            self.metrics.refuse_request(reason);
            if let Some(refusals) = &self.refusals {
                refusals.charge();
            }
            return Answering::refused(response, request.into_body());
        }
        let framed = |body| Body::new(Framed::request(body, self.max_message_bytes));
        let mut request = request.map(framed);
        request.extensions_mut().insert(Arc::clone(&self.peer));
        let future = self.service.borrow_mut().call(request);
        Answering::passed(future, self.refusals.clone())
    }
}
