//! A call in the course of its attempts, and what an attempt may come to.

use super::{
    addresses::Wanted,
    body::ChannelBody,
    connected::Connected,
    retry::{Pushback, Retries},
};
use crate::replay::Replay;
use http::{HeaderValue, Request, Response, request::Parts, uri::PathAndQuery};
use std::{sync::Arc, time::Duration};
use tars_proto::{attempt, timeout};
use tokio::time::Instant;
use tonic::{Status, body::Body};

/// How much later than the server the channel ends a call.
const GRACE: Duration = Duration::from_millis(100);

/// A call, and what it takes to send it again.
pub(super) struct Sending {
    head: Parts,
    pub(super) replay: Replay,
    pub(super) wanted: Wanted,
    deadline: Option<Instant>,
    pub(super) retries: Retries,
    /// How often it may still be sent again because no server had processed it; `None` before the first time.
    transparent_retries: Option<usize>,
    /// Whether an attempt may have been charged to the caller.
    pub(super) charged: bool,
}

impl Sending {
    pub(super) fn new(request: Request<Body>, now: Instant) -> Self {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let left = head.headers.get(timeout::HEADER);
        let left = left.and_then(|value| timeout::parse(value.to_str().ok()?));
        Self {
            head,
            replay: Replay::new(body),
            wanted: Wanted::new(path),
            deadline: left.and_then(|left| now.checked_add(left)),
            retries: Retries::default(),
            transparent_retries: None,
            charged: false,
        }
    }

    /// When the channel ends the call.
    pub(super) fn end(&self) -> Option<Instant> {
        self.deadline.and_then(|at| at.checked_add(GRACE))
    }

    pub(super) fn head(&mut self, connected: &Connected) -> Result<Parts, Status> {
        let uri = connected.absolute(self.wanted.method.clone());
        self.head.uri = uri.map_err(|e| Status::internal(e.to_string()))?;
        Ok(self.head.clone())
    }

    /// Prepares a further attempt, which has what is left of the timeout and tells of those before it.
    pub(super) fn prepare_again(&mut self) {
        self.shorten();
        let headers = &mut self.head.headers;
        if self.retries.done() > 0 {
            headers.insert(attempt::PREVIOUS, self.retries.done().into());
        }
        if self.charged {
            headers.insert(attempt::CHARGED, HeaderValue::from_static("1"));
        }
    }

    fn shorten(&mut self) {
        let Some(at) = self.deadline else {
            return;
        };
        let left = at.saturating_duration_since(Instant::now());
        if let Ok(value) = HeaderValue::try_from(timeout::format(left)) {
            self.head.headers.insert(timeout::HEADER, value);
        }
    }

    /// Allows as many transparent retries as there are connections, when the first is needed: all of them may be
    /// closing.
    pub(super) fn allow_transparent_retries(&mut self, connections: impl FnOnce() -> usize) {
        self.transparent_retries.get_or_insert_with(connections);
    }

    /// Takes a transparent retry, if one is left.
    pub(super) fn take_transparent_retry(&mut self) -> bool {
        let left = self.transparent_retries.unwrap_or(0).checked_sub(1);
        self.transparent_retries = left.or(Some(0));
        left.is_some()
    }

    /// Whether the call would still be running after a pause.
    pub(super) fn outlasts(&self, pause: Duration) -> bool {
        self.deadline.is_none_or(|at| Instant::now() + pause < at)
    }
}

/// Why an attempt brought no answer, or one that may not be the last.
pub(super) enum Trouble {
    /// There is nowhere to send it, or it cannot be sent.
    Refused(Status),
    /// It was not processed.
    Unsent(Lost),
    /// A probe was not responded to in time, and a retry is taken for it.
    Silent,
    /// It may have been processed.
    Failed(Failure),
}

/// What a connection was lost by.
pub(super) struct Lost {
    pub(super) connected: Arc<Connected>,
    pub(super) error: hyper::Error,
}

pub(super) enum Failure {
    Lost(Lost),
    /// The service is unavailable.
    Unavailable {
        answer: Box<Response<ChannelBody>>,
        pushback: Pushback,
        /// Whether the server asks to wait.
        waits: bool,
        /// Whether it may have charged the call to its caller.
        charged: bool,
    },
}

impl Failure {
    /// Whether the call may have been charged to its caller.
    pub(super) fn may_be_charged(&self) -> bool {
        match self {
            Self::Lost(_) => true,
            Self::Unavailable { charged, .. } => *charged,
        }
    }
}
