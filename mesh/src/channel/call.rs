//! One call: it is sent to an address, to another one when it was not processed or may be repeated, and ends
//! by its deadline.
//!
//! A server that works ends a call at its deadline by itself, with what it knows. One that does not respond
//! any more must not hold a caller, so the channel ends the call a moment later.

use super::{
    Shared,
    addresses::{Choice, Lease, LeaseError},
    answer::{answered, begun},
    body::ChannelBody,
    connected::Connected,
    ending::Ending,
    error::ChannelError,
    judge::ending_of_lost,
    metrics::{Counted, PeerMetrics},
    retry::{NoRetry, Pushback},
    sending::{Failure, Lost, Sending, Trouble},
    trial::{Trial, end},
};
use crate::replay::never_processed;
use http::{Request, Response};
use hyper::client::conn::TrySendError;
use std::{pin::pin, sync::Arc, time::Duration};
use tars_proto::{fault::code_in, timeout::expired};
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
            let pause = match trouble {
                Trouble::Refused(status) => return Err(status),
                Trouble::Silent => {
                    // It may be responded to yet.
                    call.charged = true;
                    Duration::ZERO
                }
                Trouble::Unsent(lost) => match self.retry_transparently(&mut call) {
                    false => return Err(self.lost(lost)),
                    true => Duration::ZERO,
                },
                // The stream of what failed is free again during the pause.
                Trouble::Failed(failure) => match self.retry(&mut call, &failure) {
                    None => return self.failed(failure),
                    Some(pause) => {
                        call.charged |= failure.may_be_charged();
                        pause
                    }
                },
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
            call.prepare_again();
        }
    }

    async fn attempt(&self, call: &mut Sending) -> Result<Response<ChannelBody>, Trouble> {
        call.wanted.spare = self.has_spare(call);
        let lease = self.addresses.lease(&call.wanted).await;
        let Lease { choice, slot } = lease.map_err(|e| Trouble::Refused(self.unleased(&e)))?;
        let request = self.request(call, &choice.connected)?;
        let mut sender = choice.connected.sender.clone();
        let sent = sender.try_send_request(request);
        let what = (call.end(), call.wanted.is_answered_once());
        let begun = begun(sent, &choice.connected, slot, what);
        match self
            .within_patience(call, choice.trial.as_ref(), begun)
            .await
        {
            Some(Ok(response)) => answered(call, choice, response),
            Some(Err(error)) => Err(self.unanswered(call, choice, error)),
            None => Err(silent(call, choice)),
        }
    }

    fn request(&self, call: &mut Sending, connected: &Connected) -> Result<Request<Body>, Trouble> {
        let head = call.head(connected).map_err(Trouble::Refused)?;
        let Some(body) = call.replay.body() else {
            let target = connected.name.to_string();
            let moved = ChannelError::Moved { target };
            return Err(Trouble::Refused(self.unreachable(&moved)));
        };
        Ok(Request::from_parts(head, body))
    }

    /// Waits for the beginning of a response; `None` when that of a probe takes so long that the call is sent
    /// elsewhere. Where it cannot be, it waits on.
    async fn within_patience<T>(
        &self,
        call: &mut Sending,
        trial: Option<&Trial>,
        begun: impl Future<Output = T>,
    ) -> Option<T> {
        let Some(patience) = trial.and_then(Trial::patience) else {
            return Some(begun.await);
        };
        let mut begun = pin!(begun);
        match timeout(patience, &mut begun).await {
            Ok(begun) => Some(begun),
            Err(_) if self.goes_elsewhere(call) => None,
            Err(_) => Some(begun.await),
        }
    }

    /// Whether a call could be sent again, as far as is known before it is sent.
    fn has_spare(&self, call: &Sending) -> bool {
        let is_left = || call.retries.has_one() && self.budget.has_one();
        call.wanted.is_repeatable() && call.replay.is_retained() && is_left()
    }

    /// Takes a retry for a call without a response, if it can be sent to another address now.
    fn goes_elsewhere(&self, call: &mut Sending) -> bool {
        let is_possible = call.wanted.is_repeatable() && self.addresses.has_other(&call.wanted);
        is_possible && self.take_retry(call, Pushback::Unsaid, false).is_ok()
    }

    /// What a failed attempt comes to: what was not sent because its connection was closing is told apart from
    /// what may have been processed.
    fn unanswered(
        &self,
        call: &mut Sending,
        choice: Choice,
        mut error: TrySendError<Request<Body>>,
    ) -> Trouble {
        let Choice {
            endpoint,
            connected,
            trial,
        } = choice;
        let is_unsent = error.take_message().is_some() || never_processed(error.error());
        let error = error.into_error();
        let lost = Lost { connected, error };
        if is_unsent {
            end(trial, Ending::Other);
            call.allow_transparent_retries(|| self.addresses.connections());
            endpoint.forget(&lost.connected);
            return Trouble::Unsent(lost);
        }
        end(trial, ending_of_lost(&call.replay));
        call.wanted.failed.push(endpoint);
        Trouble::Failed(Failure::Lost(lost))
    }

    /// Takes a retry of a call that no server has processed.
    fn retry_transparently(&self, call: &mut Sending) -> bool {
        let taken = call.take_transparent_retry();
        if taken {
            self.metrics().transparent_retries.inc();
        }
        taken
    }

    /// Returns after what pause a failed call is sent again, if it is.
    fn retry(&self, call: &mut Sending, failure: &Failure) -> Option<Duration> {
        // When reading the request failed, there is nothing to send.
        if !call.wanted.is_repeatable() || call.replay.has_failed() {
            return None;
        }
        let (pushback, waits) = match failure {
            Failure::Lost(_) => (Pushback::Unsaid, false),
            Failure::Unavailable {
                pushback, waits, ..
            } => (*pushback, *waits),
        };
        let taken = self.take_retry(call, pushback, waits);
        let refused = taken.inspect_err(|why| self.metrics().refuse_retry(why.label()));
        refused.ok()
    }

    /// Takes a retry of a call that may be repeated, and returns after what pause it is sent.
    fn take_retry(
        &self,
        call: &mut Sending,
        pushback: Pushback,
        waits: bool,
    ) -> Result<Duration, NoRetry> {
        if !call.replay.is_retained() {
            return Err(NoRetry::Body);
        }
        let elsewhere = self.addresses.has_other(&call.wanted);
        let pause = call.retries.next(pushback, elsewhere, waits)?;
        if !call.outlasts(pause) {
            return Err(NoRetry::Deadline);
        }
        // What is not sent takes nothing from it.
        if !self.budget.take() {
            return Err(NoRetry::Budget);
        }
        call.retries.record();
        self.metrics().retries.inc();
        Ok(pause)
    }

    fn metrics(&self) -> &Arc<PeerMetrics> {
        &self.addresses.dialer.metrics
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

/// Gives a probe up.
fn silent(call: &mut Sending, choice: Choice) -> Trouble {
    end(choice.trial, Ending::Failed);
    call.wanted.failed.push(choice.endpoint);
    Trouble::Silent
}
