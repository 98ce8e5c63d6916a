//! How a call ended, as far as it tells something of the address.

use http::HeaderMap;
use tars_proto::{
    binary,
    fault::{self, code_in},
    unavailable::{Says, says},
};
use tonic::{Code, Status};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With what its caller asked for.
    Served,
    /// With another response: the address works, and that is all.
    Answered,
    /// With a refusal for lack of capacity: the address is as slow as can be, but it works.
    Busy,
    /// Without a response, or with the one that says that the service does not work.
    Failed,
    /// In a way that tells nothing of the address: it was not sent, a limit of the caller's refused it, or it is about
    /// something else that is not available.
    Other,
}

impl Ending {
    /// What the last headers or trailers of a response tell of the address. The limits of a caller are no
    /// business of others.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match code_in(headers) {
            Some(Code::Ok) => Self::Served,
            Some(Code::Unavailable) => {
                match unavailable(headers).map(|status| says(fault::reason(&status).as_deref())) {
                    Some(Says::Busy) => Self::Busy,
                    Some(Says::Nothing) => Self::Other,
                    Some(Says::Failed) | None => Self::Failed,
                }
            }
            Some(Code::ResourceExhausted) => Self::Other,
            Some(_) => Self::Answered,
            None => Self::Failed,
        }
    }
}

/// Returns the status, where it is UNAVAILABLE.
pub(super) fn unavailable(headers: &HeaderMap) -> Option<Status> {
    let is_unavailable = code_in(headers) == Some(Code::Unavailable);
    is_unavailable.then(|| binary::status_in(headers))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tars_proto::{fault, unavailable::Unavailable};

    fn headers(status: &Status) -> HeaderMap {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    #[test]
    fn a_refusal_whose_details_are_no_base64_is_read_without_them() {
        let mut headers = headers(&fault::overloaded("no", Duration::from_secs(1)));
        headers.insert("grpc-status-details-bin", "!".parse().unwrap());
        assert_eq!(Ending::of(&headers), Ending::Failed);
        assert_eq!(unavailable(&headers).unwrap().message(), "no");
    }

    #[test]
    fn only_unavailability_is_a_failure_and_a_want_of_room_is_none() {
        assert_eq!(Ending::of(&HeaderMap::new()), Ending::Failed, "no status");
        for (status, expected) in [
            (Status::ok(""), Ending::Served),
            (Status::internal("no"), Ending::Answered),
            (Status::deadline_exceeded("no"), Ending::Answered),
            (Status::resource_exhausted("no"), Ending::Other),
            (Status::unavailable("no"), Ending::Failed),
            (
                fault::overloaded("no", Duration::from_secs(1)),
                Ending::Busy,
            ),
        ] {
            assert_eq!(Ending::of(&headers(&status)), expected, "{status}");
        }
    }

    #[test]
    fn what_is_unavailable_is_told_apart_by_what_its_reason_says_of_the_address() {
        for why in Unavailable::ALL {
            let status = fault::unavailable(*why, "no", Duration::from_secs(1));
            let expected = match why.says() {
                Says::Failed => Ending::Failed,
                Says::Busy => Ending::Busy,
                Says::Nothing => Ending::Other,
            };
            assert_eq!(Ending::of(&headers(&status)), expected, "{why:?}");
        }
    }
}
