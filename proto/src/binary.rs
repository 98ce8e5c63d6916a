//! Metadata whose names end in `-bin`, and which travel as base64.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderName};
use tonic::Status;

/// gRPC leaves the padding to the sender.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The details of a status.
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

fn is_base64(value: &[u8]) -> bool {
    BASE64.decode(value).is_ok()
}

/// The name of a binary header that cannot be read. A header may hold several values, with commas between.
pub fn unreadable(headers: &HeaderMap) -> Option<&HeaderName> {
    let binary = headers
        .iter()
        .filter(|(name, _)| name.as_str().ends_with("-bin"));
    let mut bad = binary.filter(|(_, value)| {
        let mut values = value.as_bytes().split(|byte| *byte == b',');
        !values.all(|value| is_base64(value.trim_ascii()))
    });
    bad.next().map(|(name, _)| name)
}

/// Drops the details of a status that cannot be read: tonic's `Status::from_header_map` panics on them. What is
/// left of the status is as good as before.
pub fn drop_unreadable_details(headers: &mut HeaderMap) {
    let details = headers.get(DETAILS);
    if details.is_some_and(|details| !is_base64(details.as_bytes())) {
        headers.remove(DETAILS);
    }
}

/// The status that headers or trailers hold, without details that cannot be read.
pub fn status_in(headers: &HeaderMap) -> Option<Status> {
    let details = headers.get(DETAILS);
    if details.is_none_or(|details| is_base64(details.as_bytes())) {
        return Status::from_header_map(headers);
    }
    let mut readable = headers.clone();
    readable.remove(DETAILS);
    Status::from_header_map(&readable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn a_binary_header_is_base64_with_padding_or_without() {
        for good in ["", "AA==", "AA", "AA=", "AAA", "AAAA", "AA,AAA=", "AA, AAA"] {
            assert_eq!(unreadable(&headers("x-bin", good)), None, "{good}");
        }
        for bad in ["!", "A", "AA===", "A=A", "AB", "A_-A", "AA,!", "AAAAA"] {
            let headers = headers("x-bin", bad);
            assert_eq!(unreadable(&headers).unwrap(), "x-bin", "{bad}");
        }
        assert_eq!(unreadable(&headers("x-bind", "!")), None);
    }

    #[test]
    fn a_status_is_read_whatever_its_details_are() {
        for bad in ["!", "AB", "AA,AA", " AA"] {
            let mut headers = headers("grpc-status-details-bin", bad);
            headers.insert("grpc-status", "5".parse().unwrap());
            let read = status_in(&headers).unwrap();
            drop_unreadable_details(&mut headers);
            let status = Status::from_header_map(&headers).unwrap();
            assert_eq!((read.code(), read.details()), (status.code(), &[][..]));
            assert_eq!(
                (status.code(), status.details()),
                (tonic::Code::NotFound, &[][..])
            );
        }
        let mut good = headers("grpc-status-details-bin", "AQ");
        good.insert("grpc-status", "5".parse().unwrap());
        assert_eq!(status_in(&good).unwrap().details(), [1]);
        drop_unreadable_details(&mut good);
        assert_eq!(Status::from_header_map(&good).unwrap().details(), [1]);
    }
}
