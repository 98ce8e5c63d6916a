//! One call: it is sent to an address, to another one when it was not processed or may be repeated, and ends
//! by its deadline.
//!
//! A server that works ends a call at its deadline by itself, with what it knows. One that does not respond
//! any more must not hold a caller, so the channel ends the call a moment later.

use super::{
    Shared,
    addresses::{Lease, LeaseError, Wanted},
    body::ChannelBody,
    connected::Connected,
    error::ChannelError,
    health::{Ending, Trial},
    retry::{Pushback, Retries},
};
use crate::replay::{Replay, never_processed};
use http::{HeaderValue, Request, Response, request::Parts, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::TrySendError};
use std::{sync::Arc, time::Duration};
use tars_proto::{fault, timeout};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, body::Body};

/// How much later than the server the channel ends a call.
const GRACE: Duration = Duration::from_millis(100);

type Answer = Result<Response<ChannelBody>, Status>;

/// A call, and what it takes to send it again.
struct Sending {
    head: Parts,
    replay: Replay,
    wanted: Wanted,
    deadline: Option<Instant>,
    retries: Retries,
    /// How often it may still be sent because it was not processed; `None` before the first time.
    resends: Option<usize>,
}

impl Sending {
    fn new(request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let left = head.headers.get(timeout::HEADER);
        let left = left.and_then(|value| timeout::parse(value.to_str().ok()?));
        Self {
            head,
            replay: Replay::new(body),
            wanted: Wanted::new(path),
            deadline: left.and_then(|left| Instant::now().checked_add(left)),
            retries: Retries::default(),
            resends: None,
        }
    }

    /// When the channel ends the call.
    fn end(&self) -> Option<Instant> {
        self.deadline.and_then(|at| at.checked_add(GRACE))
    }

    fn head(&mut self, connected: &Connected) -> Result<Parts, Status> {
        let uri = connected.absolute(self.wanted.method.clone());
        self.head.uri = uri.map_err(|e| Status::internal(e.to_string()))?;
        Ok(self.head.clone())
    }

    /// Sets the timeout to what is left of it.
    fn shorten(&mut self) {
        let Some(at) = self.deadline else {
            return;
        };
        let left = at.saturating_duration_since(Instant::now());
        if let Ok(value) = HeaderValue::try_from(timeout::format(left)) {
            self.head.headers.insert(timeout::HEADER, value);
        }
    }

    /// Whether the call would still be running after a pause.
    fn outlasts(&self, pause: Duration) -> bool {
        self.deadline.is_none_or(|at| Instant::now() + pause < at)
    }
}

/// Why an attempt brought no answer, or one that may not be the last.
enum Trouble {
    /// There is nowhere to send it, or it cannot be sent.
    Refused(Status),
    /// It was not processed.
    Unsent(Lost),
    /// It may have been processed.
    Failed(Failure),
}

/// What a connection was lost by.
struct Lost {
    connected: Arc<Connected>,
    error: hyper::Error,
}

enum Failure {
    Lost(Lost),
    /// The service is unavailable.
    Unavailable {
        answer: Box<Response<ChannelBody>>,
        pushback: Pushback,
        /// Whether the server asks to wait.
        waits: bool,
    },
}

impl Shared {
    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let call = Sending::new(request);
        match call.end() {
            None => self.send_until_answered(call).await,
            Some(end) => {
                let answer = timeout_at(end, self.send_until_answered(call)).await;
                answer.unwrap_or_else(|_| Err(timeout::expired()))
            }
        }
    }

    async fn send_until_answered(&self, mut call: Sending) -> Answer {
        self.budget.record_call();
        loop {
            let trouble = match self.attempt(&mut call).await {
                Ok(response) => return Ok(response),
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Refused(status) => return Err(status),
                Trouble::Unsent(lost) => match call.resends.and_then(|left| left.checked_sub(1)) {
                    None => return Err(self.lost(lost)),
                    left => call.resends = left,
                },
                Trouble::Failed(failure) => {
                    let Some(pause) = self.retry(&mut call, &failure) else {
                        return self.failed(failure);
                    };
                    // Its stream is free again meanwhile.
                    drop(failure);
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                }
            }
            call.shorten();
        }
    }

    async fn attempt(&self, call: &mut Sending) -> Result<Response<ChannelBody>, Trouble> {
        let lease = self.addresses.lease(&call.wanted).await;
        let lease = lease.map_err(|e| Trouble::Refused(self.unleased(&e)))?;
        let head = call.head(&lease.connected).map_err(Trouble::Refused)?;
        let Some(body) = call.replay.body() else {
            let target = lease.connected.name.to_string();
            let moved = ChannelError::Moved { target };
            return Err(Trouble::Refused(self.unreachable(&moved)));
        };
        let mut sender = lease.connected.sender.clone();
        match sender
            .try_send_request(Request::from_parts(head, body))
            .await
        {
            Ok(response) => answered(call, lease, response),
            Err(error) => Err(self.unanswered(call, lease, error)),
        }
    }

    /// What is not sent because its connection was closing is told apart from what may have been
    /// processed.
    fn unanswered(
        &self,
        call: &mut Sending,
        lease: Lease,
        mut error: TrySendError<Request<Body>>,
    ) -> Trouble {
        let unsent = error.take_message().is_some() || never_processed(error.error());
        let Lease {
            endpoint,
            connected,
            trial,
            ..
        } = lease;
        let error = error.into_error();
        let lost = Lost { connected, error };
        let tells = !unsent && !call.replay.has_failed();
        end(trial, if tells { Ending::Failed } else { Ending::Other });
        if unsent {
            let open = || self.addresses.connections();
            call.resends.get_or_insert_with(open);
            endpoint.forget(&lost.connected);
        } else {
            call.wanted.failed.push(endpoint);
        }
        match unsent {
            true => Trouble::Unsent(lost),
            false => Trouble::Failed(Failure::Lost(lost)),
        }
    }

    /// Returns after what pause a failed call is sent again, if it is.
    fn retry(&self, call: &mut Sending, failure: &Failure) -> Option<Duration> {
        let (pushback, waits) = match failure {
            Failure::Lost(_) => (Pushback::Unsaid, false),
            Failure::Unavailable {
                pushback, waits, ..
            } => (*pushback, *waits),
        };
        if !call.wanted.is_repeatable() || !call.replay.is_retained() {
            return None;
        }
        let elsewhere = self.addresses.has_other(&call.wanted);
        let retry = call.retries.next(&self.budget, pushback, elsewhere, waits);
        retry.filter(|pause| call.outlasts(*pause))
    }

    fn failed(&self, failure: Failure) -> Answer {
        match failure {
            Failure::Lost(lost) => Err(self.lost(lost)),
            Failure::Unavailable { answer, .. } => Ok(*answer),
        }
    }

    fn lost(&self, Lost { connected, error }: Lost) -> Status {
        let target = connected.name.to_string();
        self.unreachable(&ChannelError::http(target, error))
    }

    fn unleased(&self, error: &LeaseError) -> Status {
        match error {
            LeaseError::Full => self.overloaded(),
            LeaseError::Unreachable(error) => self.unreachable(error),
        }
    }
}

/// Judges a response. One of headers alone with UNAVAILABLE is a failure; a status in trailers comes too late
/// for the call to be sent again.
fn answered(
    call: &mut Sending,
    lease: Lease,
    response: Response<Incoming>,
) -> Result<Response<ChannelBody>, Trouble> {
    let Lease {
        endpoint,
        connected,
        slot,
        trial,
    } = lease;
    connected.record_response();
    let code = response.headers().get("grpc-status");
    let code = code.map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    let status = match code {
        Code::Unavailable => Status::from_header_map(response.headers()),
        _ => None,
    };
    end(trial, ending(code, status.as_ref()));
    let pushback = Pushback::of(response.headers());
    let answer = response.map(|body| ChannelBody::new(body, slot, call.end()));
    let Some(status) = status else {
        return Ok(answer);
    };
    call.wanted.failed.push(endpoint);
    Err(Trouble::Failed(Failure::Unavailable {
        answer: Box::new(answer),
        pushback,
        waits: fault::retry_after(&status).is_some(),
    }))
}

/// What a response tells of the address. The limits of a caller are no business of others.
fn ending(code: Code, unavailable: Option<&Status>) -> Ending {
    match unavailable {
        Some(status) if fault::is_busy(status) => Ending::Busy,
        Some(_) => Ending::Failed,
        None if code == Code::ResourceExhausted => Ending::Other,
        None => Ending::Answered,
    }
}

fn end(trial: Option<Trial>, ending: Ending) {
    if let Some(trial) = trial {
        trial.end(ending);
    }
}
