//! One call: it is sent to an address, to another one when it was not processed or may be repeated, and ends
//! by its deadline.
//!
//! A server that works ends a call at its deadline by itself, with what it knows. One that does not respond
//! any more must not hold a caller, so the channel ends the call a moment later.

use super::{
    Shared,
    addresses::{Lease, LeaseError},
    answer::answered,
    body::ChannelBody,
    ending::{Ending, code_in},
    error::ChannelError,
    health::end,
    metrics::{Counted, PeerMetrics},
    retry::{NoRetry, Pushback},
    sending::{Failure, Lost, Sending, Trouble},
};
use crate::replay::never_processed;
use http::{Request, Response};
use hyper::client::conn::TrySendError;
use std::{sync::Arc, time::Duration};
use tars_proto::timeout::expired;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::{Status, body::Body};

type Answer = Result<Response<ChannelBody>, Status>;

impl Shared {
    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let now = Instant::now();
        let call = Sending::new(request, now);
        let mut counted = Counted::new(self.metrics(), call.wanted.outline, now);
        let answer = match call.end() {
            None => self.send_until_answered(call).await,
            Some(end) => {
                let answer = timeout_at(end, self.send_until_answered(call)).await;
                answer.unwrap_or_else(|_| Err(expired()))
            }
        };
        match answer {
            Ok(mut answer) => {
                match code_in(answer.headers()) {
                    Some(code) => counted.end(code),
                    None => answer.body_mut().count(counted),
                }
                Ok(answer)
            }
            Err(status) => {
                counted.end(status.code());
                Err(status)
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
                    left => {
                        self.metrics().resends.inc();
                        call.resends = left;
                    }
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
        let sent = sender.try_send_request(Request::from_parts(head, body));
        let sent = match self.patience(call, &lease) {
            None => sent.await,
            Some(patience) => match timeout(patience, sent).await {
                Ok(sent) => sent,
                Err(_) => return Err(silent(call, lease)),
            },
        };
        match sent {
            Ok(response) => answered(call, lease, response).await,
            Err(error) => Err(self.unanswered(call, lease, error)),
        }
    }

    /// How long a response is waited for before the call is sent elsewhere; `None` for as long as the caller
    /// does.
    fn patience(&self, call: &Sending, lease: &Lease) -> Option<Duration> {
        let patience = lease.trial.as_ref()?.patience()?;
        let goes_elsewhere = call.wanted.is_repeatable() && self.addresses.has_other(&call.wanted);
        goes_elsewhere.then_some(patience)
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
        let ending = match unsent {
            true => Ending::Other,
            false => call.ending_of_lost(),
        };
        end(trial, ending);
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
        // When reading the request failed, there is nothing to send.
        if !call.wanted.is_repeatable() || call.replay.has_failed() {
            return None;
        }
        match self.allowed(call, failure) {
            Ok(pause) => {
                self.metrics().retries.inc();
                Some(pause)
            }
            Err(why) => {
                self.metrics().refuse_retry(why.label());
                None
            }
        }
    }

    fn allowed(&self, call: &mut Sending, failure: &Failure) -> Result<Duration, NoRetry> {
        if !call.replay.is_retained() {
            return Err(NoRetry::Body);
        }
        let (pushback, waits) = match failure {
            Failure::Lost(_) | Failure::Silent(_) => (Pushback::Unsaid, false),
            Failure::Unavailable {
                pushback, waits, ..
            } => (*pushback, *waits),
        };
        let elsewhere = self.addresses.has_other(&call.wanted);
        let pause = call.retries.next(pushback, elsewhere, waits)?;
        if !call.outlasts(pause) {
            return Err(NoRetry::Deadline);
        }
        // What is not sent takes nothing from it.
        match self.budget.take() {
            true => Ok(pause),
            false => Err(NoRetry::Budget),
        }
    }

    fn metrics(&self) -> &Arc<PeerMetrics> {
        &self.addresses.dialer.metrics
    }

    fn failed(&self, failure: Failure) -> Answer {
        match failure {
            Failure::Lost(lost) => Err(self.lost(lost)),
            Failure::Silent(connected) => {
                let target = connected.name.to_string();
                Err(self.unreachable(&ChannelError::Silent { target }))
            }
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

/// Gives a probe up.
fn silent(call: &mut Sending, lease: Lease) -> Trouble {
    end(lease.trial, Ending::Failed);
    call.wanted.failed.push(lease.endpoint);
    Trouble::Failed(Failure::Silent(lease.connected))
}
