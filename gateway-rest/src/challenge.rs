//! `WWW-Authenticate` as RFC 6750 defines it: which credentials a caller could have sent, and what was wrong
//! with the one that it sent. A caller that sent no token is told of no error.

use http::{HeaderMap, HeaderValue, header};
use tars_proto::{fault, reason};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const API_KEY: &str = "x-api-key";
const BEARER: &str = "Bearer realm=\"tars\"";
const KEY: &str = "ApiKey realm=\"tars\", header=\"x-api-key\"";

/// The kind of credential in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Nothing,
    Token,
    ApiKey,
}

impl Sent {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        if values.any(is_bearer) {
            Self::Token
        } else if headers.contains_key(API_KEY) {
            Self::ApiKey
        } else {
            // An unknown scheme comes from a client that knows none of ours.
            Self::Nothing
        }
    }
}

fn is_bearer(value: &HeaderValue) -> bool {
    let scheme = value.as_bytes().split(|b| *b == b' ').next();
    scheme.is_some_and(|s| s.eq_ignore_ascii_case(b"bearer"))
}

/// Adds the challenges that belong to a refusal.
pub(crate) fn challenge(sent: Sent, status: &Status, headers: &mut HeaderMap) {
    let mut add = |challenge: &str| {
        let value = HeaderValue::try_from(challenge);
        headers.append(
            header::WWW_AUTHENTICATE,
            value.expect("a challenge is made of visible ASCII"),
        );
    };
    match (status.code(), sent) {
        (Code::Unauthenticated, Sent::Nothing) => [BEARER, KEY].into_iter().for_each(add),
        (Code::Unauthenticated, Sent::Token) => {
            add(&format!("{BEARER}, error=\"invalid_token\""));
            add(KEY);
        }
        (Code::Unauthenticated, Sent::ApiKey) => [KEY, BEARER].into_iter().for_each(add),
        (Code::PermissionDenied, Sent::Token) => {
            if let Some(scope) = missing_scope(status) {
                add(&format!(
                    "{BEARER}, error=\"insufficient_scope\", scope=\"{scope}\""
                ));
            }
        }
        (Code::InvalidArgument, Sent::Token)
            if fault::reason(status).as_deref() == Some(reason::AMBIGUOUS_CREDENTIALS) =>
        {
            add(&format!("{BEARER}, error=\"invalid_request\""));
        }
        _ => {}
    }
}

/// Returns the permission that a denial names.
fn missing_scope(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    let permission = info.metadata.get("permission")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    permission.bytes().all(plain).then(|| permission.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(headers: &[(&'static str, &'static str)]) -> Sent {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        Sent::of(&map)
    }

    fn challenges(sent: Sent, status: &Status) -> Vec<String> {
        let mut headers = HeaderMap::new();
        challenge(sent, status, &mut headers);
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
        values.map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn credentials_are_told_apart() {
        assert_eq!(sent(&[]), Sent::Nothing);
        assert_eq!(sent(&[("authorization", "Basic eDp5")]), Sent::Nothing);
        assert_eq!(sent(&[("authorization", "bEaReR   x")]), Sent::Token);
        assert_eq!(sent(&[("authorization", "Bearer")]), Sent::Token);
        assert_eq!(sent(&[("x-api-key", "k")]), Sent::ApiKey);
    }

    #[test]
    fn an_error_is_named_only_to_a_client_that_sent_a_token() {
        let refused = fault::status(Code::Unauthenticated, "INVALID_CREDENTIALS", "no");
        assert_eq!(challenges(Sent::Nothing, &refused), [BEARER, KEY]);
        assert_eq!(challenges(Sent::ApiKey, &refused), [KEY, BEARER]);
        assert_eq!(
            challenges(Sent::Token, &refused)[0],
            "Bearer realm=\"tars\", error=\"invalid_token\""
        );
    }

    #[test]
    fn a_denial_names_the_missing_scope() {
        let names = [("permission", "agents.read")];
        let denied = fault::status_with(Code::PermissionDenied, "PERMISSION_DENIED", "no", &names);
        assert_eq!(
            challenges(Sent::Token, &denied),
            ["Bearer realm=\"tars\", error=\"insufficient_scope\", scope=\"agents.read\""]
        );
        assert!(challenges(Sent::ApiKey, &denied).is_empty());
        let odd = [("permission", "a\"\r\nb")];
        for unnamed in [
            fault::status(Code::PermissionDenied, "PERMISSION_DENIED", "no"),
            fault::status_with(Code::PermissionDenied, "PERMISSION_DENIED", "no", &odd),
        ] {
            assert!(challenges(Sent::Token, &unnamed).is_empty());
        }
    }
}
