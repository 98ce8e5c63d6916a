//! The judge of a response that has begun: what follows shows whether its address works.

use super::{ending::Ending, trial::Trial};
use crate::replay::Replay;
use bytes::Bytes;
use http_body::Frame;
use std::error::Error;
use tonic::Status;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;
pub(super) type Item = Result<Frame<Bytes>, BoxError>;

/// Until what a fault of the response is one of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The first message of a stream, which may end later for any reason.
    Message,
    /// The end of a response that is one message.
    End,
}

/// Judges an address by what follows the beginning of a response.
#[derive(Debug)]
pub(super) struct Judge {
    trial: Trial,
    request: Replay,
    until: Until,
}

impl Judge {
    /// Begins with a response that has begun.
    pub(super) fn new(mut trial: Trial, request: Replay, until: Until) -> Self {
        trial.responded();
        Self {
            trial,
            request,
            until,
        }
    }

    /// Looks at what follows; `None` for the end. Returns itself where more has to follow.
    pub(super) fn see(self, frame: Option<&Item>) -> Option<Self> {
        let ending = match frame {
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => Ending::of(trailers),
                None if self.until == Until::End => return Some(self),
                None => Ending::Served,
            },
            // This side refuses it, for its length.
            Some(Err(error)) if error.is::<Status>() => Ending::Answered,
            Some(Err(_)) => ending_of_lost(&self.request),
            // A response ends with a status.
            None => Ending::Failed,
        };
        self.trial.end(ending);
        None
    }
}

/// What it tells of the address that a response was lost. When the request failed, that was the caller's.
pub(super) fn ending_of_lost(request: &Replay) -> Ending {
    match request.has_failed() {
        true => Ending::Other,
        false => Ending::Failed,
    }
}
