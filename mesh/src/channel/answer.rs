//! What a response tells: whether the call failed, and with it the address.
//!
//! A call has failed that ends with UNAVAILABLE before a message, whether its status is in the headers alone or
//! in trailers after them. Where the response is one message, it is waited for here: its caller has no use for
//! headers without it, and what failed until then can be sent again. A stream is passed on with its headers,
//! since its first message may take long, or be an answer to what its caller sends next.

use super::{
    addresses::Lease,
    body::ChannelBody,
    ending::{Ending, code_in, unavailable},
    health::{Trial, end},
    retry::Pushback,
    sending::{Failure, Lost, Sending, Trouble},
};
use http::Response;
use hyper::body::Incoming;
use tars_proto::fault;

/// Judges the beginning of a response.
pub(super) async fn answered(
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
    let mut answer = response.map(|body| ChannelBody::new(body, slot, call.end()));
    if code_in(answer.headers()).is_none() {
        if !call.wanted.is_answered_once() {
            if let Some(trial) = trial.and_then(Trial::accepted) {
                answer.body_mut().judge(trial);
            }
            return Ok(answer);
        }
        answer.body_mut().read_first().await;
    }
    if let Some(error) = answer.body_mut().take_failure() {
        end(trial, call.ending_of_lost());
        call.wanted.failed.push(endpoint);
        return Err(Trouble::Failed(Failure::Lost(Lost { connected, error })));
    }
    let last = answer.body().first_trailers().unwrap_or(answer.headers());
    end(trial, Ending::of(last));
    let Some(status) = unavailable(last) else {
        return Ok(answer);
    };
    call.wanted.failed.push(endpoint);
    Err(Trouble::Failed(Failure::Unavailable {
        pushback: Pushback::of(last),
        waits: fault::retry_after(&status).is_some(),
        answer: Box::new(answer),
    }))
}
