//! Authentication: exactly one credential, a bearer token or an API key, checked against the pushed
//! view of what is currently valid. A refusal never tells which check failed; the metric does.

use crate::{Call, check::Check};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{sync::Arc, time::Duration};
use tars_credentials::{Caller, View};
use tars_proto::{fault, reason, table::Principal, unavailable::Unavailable};
use tars_runtime::{clock::Clock, metrics::Metrics};
use tonic::{Code, Status};

/// The header that carries an API key.
pub const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counts refused credentials by reason; one per process.
#[derive(Debug, Clone)]
pub struct Failures(Family<Reason, Counter>);

impl Failures {
    /// Registers the counter.
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.register(
            "auth_failures",
            "Refused credentials by reason",
            Family::default(),
        ))
    }
}

/// The check that authenticates the callers of one service.
#[derive(Debug, Clone)]
pub struct Authenticate {
    view: View,
    clock: Clock,
    stale_after: Duration,
    failures: Failures,
}

impl Authenticate {
    /// Creates the check. Calls that change something are refused while `view` is older than
    /// `stale_after`.
    pub fn new(view: View, clock: Clock, stale_after: Duration, failures: Failures) -> Self {
        Self {
            view,
            clock,
            stale_after,
            failures,
        }
    }

    fn refuse(&self, reason: &'static str) -> Status {
        self.failures.0.get_or_create(&Reason { reason }).inc();
        tracing::debug!(reason, "credential refused");
        fault::status(
            Code::Unauthenticated,
            reason::INVALID_CREDENTIALS,
            "the call needs a valid credential",
        )
    }

    /// Calls that change something need a fresh view; others need one of any age.
    fn check_freshness(&self, call: &Call) -> Result<(), Status> {
        let fresh = match self.view.age() {
            None => false,
            Some(age) => age <= self.stale_after || call.method.read_only,
        };
        if fresh {
            return Ok(());
        }
        let message = "this process has no fresh view of credentials";
        Err(fault::unavailable(
            Unavailable::StaleCredentials,
            message,
            Duration::from_secs(1),
        ))
    }

    fn identify(&self, call: &Call, headers: &HeaderMap) -> Result<Arc<Caller>, Status> {
        let now = self.clock.now_s();
        let several = |()| self.refuse("several_values");
        let bearer = single(headers, &AUTHORIZATION).map_err(several)?;
        let key = single(headers, &API_KEY).map_err(several)?;
        match (bearer, key) {
            (None, None) => Err(self.refuse("missing")),
            (Some(_), Some(_)) => Err(fault::status(
                Code::InvalidArgument,
                reason::AMBIGUOUS_CREDENTIALS,
                "send either authorization or x-api-key, not both",
            )),
            (Some(value), None) => {
                let token = text(value)
                    .and_then(bearer_token)
                    .ok_or_else(|| self.refuse("scheme"))?;
                let caller = self
                    .view
                    .check_token(token, now)
                    .map_err(|e| self.refuse(e.reason()))?;
                call.set_credential(AUTHORIZATION, sensitive(value));
                Ok(caller)
            }
            (None, Some(value)) => {
                let caller = text(value)
                    .and_then(|key| self.view.check_api_key(key, now))
                    .ok_or_else(|| self.refuse("api_key"))?;
                call.set_credential(API_KEY, sensitive(value));
                Ok(Arc::new(caller))
            }
        }
    }
}

/// Returns the only value of a header, or `None` when it is absent.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(()),
    }
}

fn sensitive(value: &HeaderValue) -> HeaderValue {
    let mut value = value.clone();
    value.set_sensitive(true);
    value
}

/// Accepts any UTF-8, where `HeaderValue::to_str` inspects each byte: a value that is not a
/// credential fails its check later.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// Parses a scheme in any case, one or more spaces, and a token.
fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim_start_matches(' ');
    // No early exit, so that the compiler can vectorise the loop.
    let breaks = token.bytes().filter(|b| matches!(b, b' ' | b',')).count();
    let shape = !token.is_empty() && breaks == 0;
    (scheme.eq_ignore_ascii_case("bearer") && shape).then_some(token)
}

impl Check for Authenticate {
    fn check(&self, call: &Arc<Call>, headers: &HeaderMap) -> Result<(), Status> {
        match call.principal() {
            Principal::Public => Ok(()),
            // The peer is the principal, and the peer policy has admitted it.
            Principal::Workload | Principal::Peer => self.check_freshness(call),
            Principal::Permission(_) => {
                self.check_freshness(call)?;
                call.set_caller(self.identify(call, headers)?);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bearer_token;

    #[test]
    fn bearer_tokens_are_parsed_strictly() {
        assert_eq!(bearer_token("Bearer abc"), Some("abc"));
        assert_eq!(bearer_token("bEARER abc"), Some("abc"));
        assert_eq!(bearer_token("Bearer   abc"), Some("abc"));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer   ",
            "Bearer\tabc",
            " Bearer abc",
            "Bearer abc ",
            "Bearer a b",
            "Bearer a,b",
            "Basic abc",
            "abc",
        ] {
            assert_eq!(bearer_token(bad), None, "{bad}");
        }
    }
}
