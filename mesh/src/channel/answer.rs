//! What a response tells: whether the call failed, and with it the address.
//!
//! A call has failed that ends with UNAVAILABLE before a message, whether its status is in the headers alone or
//! in trailers after them. Where the response is one message, it is waited for here: its caller has no use for
//! headers without it, and what failed until then can be sent again. A stream is passed on with its headers,
//! since its first message may take long, or be an answer to what its caller sends next. What follows is judged
//! where it is read, in the body.

use super::{
    addresses::Choice,
    body::ChannelBody,
    connected::Connected,
    ending::{Ending, unavailable},
    judge::{Judge, Until, ending_of_lost},
    retry::Pushback,
    sending::{Failure, Lost, Sending, Trouble},
    slots::StreamSlot,
    trial::end,
};
use http::Response;
use hyper::{body::Incoming, client::conn::TrySendError};
use tars_proto::{fault, fault::code_in};
use tokio::time::Instant;

/// What a connection has for a request.
type Sent<T> = Result<Response<Incoming>, TrySendError<T>>;

/// Waits for the beginning of a response: its headers, and where it is one message, that.
pub(super) async fn begun<T>(
    sent: impl Future<Output = Sent<T>>,
    connected: &Connected,
    slot: StreamSlot,
    (deadline, is_answered_once): (Option<Instant>, bool),
) -> Result<Response<ChannelBody>, TrySendError<T>> {
    let response = sent.await?;
    connected.record_response();
    let mut answer = ChannelBody::of(response, slot, deadline);
    if is_answered_once && code_in(answer.headers()).is_none() {
        answer.body_mut().read_first().await;
    }
    Ok(answer)
}

/// Judges the beginning of a response.
pub(super) fn answered(
    call: &mut Sending,
    choice: Choice,
    mut answer: Response<ChannelBody>,
) -> Result<Response<ChannelBody>, Trouble> {
    let Choice {
        endpoint,
        connected,
        trial,
    } = choice;
    if let Some(error) = answer.body_mut().take_failure() {
        end(trial, ending_of_lost(&call.replay));
        call.wanted.failed.push(endpoint);
        return Err(Trouble::Failed(Failure::Lost(Lost { connected, error })));
    }
    let first = answer.body().first_trailers();
    let headers = Some(answer.headers()).filter(|headers| code_in(headers).is_some());
    let Some(last) = first.or(headers) else {
        if let Some(trial) = trial {
            let until = match call.wanted.is_answered_once() {
                true => Until::End,
                false => Until::Message,
            };
            let judge = Judge::new(trial, call.replay.clone(), until);
            answer.body_mut().judge(judge);
        }
        return Ok(answer);
    };
    end(trial, Ending::of(last));
    let Some(status) = unavailable(last) else {
        return Ok(answer);
    };
    call.wanted.failed.push(endpoint);
    Err(Trouble::Failed(Failure::Unavailable {
        pushback: Pushback::of(last),
        waits: fault::retry_after(&status).is_some(),
        charged: !fault::is_uncharged(&status),
        answer: Box::new(answer),
    }))
}
