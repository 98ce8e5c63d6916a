use super::*;
use crate::{
    fixtures::{ME, again, by_credential, caller},
    limits::RateLimitLayer,
};
use futures_util::future::join_all;
use std::{convert::Infallible, time::Duration};
use tars_credentials::Permissions;
use tars_proto::fault;
use tars_runtime::{clock::Monotonic, config::Limits};
use tonic_types::StatusExt;
use tower::{ServiceExt, service_fn};

const LIST: &str = "/tars.automl.v1.StudyService/ListStudies";

fn limiter(limits: Limits) -> RateLimiter {
    RateLimiter::new(&limits, Clock::manual(Duration::from_secs(1)))
}

#[test]
fn a_refusal_for_volume_says_what_may_pass() {
    let limiter = limiter(Limits::default());
    let call = by_credential(LIST, "/gateway", "ada", "user:ada");
    let charges = limiter.plan().charges(&call);
    let passes = |at| match limiter.charge(&charges, at) {
        Charging::Ready(outcome) => outcome,
        Charging::Remote(_) => panic!("a limit of this process is decided at once"),
    };
    // Whoever has not called for a while, and then calls as often as it may for a minute.
    let begin = Monotonic::from_start(Duration::from_secs(3600));
    let tries = (0..60_000).map(|ms| passes(begin + Duration::from_millis(ms)));
    let passed = tries.filter(Outcome::passed).count();
    assert!((745..=750).contains(&passed), "{passed}: 600 and 150");
    let refused = (0..).map(|_| passes(begin + Duration::from_secs(60)));
    let refused = refused.take(2).find_map(|outcome| outcome.status().err());
    let quota = refused.unwrap().get_details_quota_failure().unwrap();
    let says = &quota.violations[0].description;
    assert_eq!(says, "600 calls in 60 s on average, 150 at once");
}

#[tokio::test]
async fn a_call_that_is_sent_again_is_charged_once_and_no_client_can_say_so() {
    let limiter = limiter(Limits {
        user_per_minute: 8,
        ..Limits::default()
    });
    let handler =
        service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
    let service = RateLimitLayer(limiter).layer(handler);
    let code = async |class| {
        let ada = caller("ada", "user:ada", Permissions::ALL);
        let mut request = Request::new(());
        request.extensions_mut().insert(again(ME, class, ada));
        let answer = service.clone().oneshot(request).await.unwrap();
        fault::code_in(answer.headers())
    };
    for _ in 0..20 {
        assert_eq!(code(PeerClass::Gateway).await, None);
    }
    // A quarter of the limit comes at once.
    let by_client = [0; 3].map(|_| code(PeerClass::Client));
    let spent = Some(tonic::Code::ResourceExhausted);
    assert_eq!(join_all(by_client).await, [None, None, spent]);
}
