//! Killed while a version climbs by a proposal.

use super::{locked, people, tars};
use serde_json::Value;
use std::path::Path;
use tars::rest::Rest;
use tars_runtime::clock::Clock;
use tars_tests::{
    governed,
    ladder::{ETHICAL, bound, evidence, fall, in_shadow, propose, steps},
    process::{Running, Up},
};

/// A mesh whose ethical agent is bound to it; a promotion is watched for this many seconds.
fn up(data: &Path, seconds: u64) -> Running {
    bound(Up::new(tars(), data).unlimited(), seconds).start()
}

async fn ethical(rest: &Rest) -> Value {
    rest.get(ETHICAL).await.unwrap()["agent"].take()
}

/// A version in SHADOW, with a proposal that it climbs.
async fn proposed(mesh: &Running, data: &Path) -> (Rest, Rest, String) {
    let (admin, developer) = people(mesh).await;
    in_shadow(&developer).await;
    evidence(data, Clock::system().now()).await;
    let id = propose(&developer, 1).await;
    governed::assessed(&admin, &id).await;
    (admin, developer, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_takes_a_step_up_takes_it_once() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path(), 3600);
    let (admin, _, id) = proposed(&mesh, data.path()).await;
    let lock = locked(data.path()).await;
    governed::approve_and_apply(&admin, &id).await;
    let applying = governed::in_state(&admin, &id, "PROPOSAL_STATE_APPLYING").await;
    assert_eq!(applying["state"], "PROPOSAL_STATE_APPLYING", "{applying}");
    mesh.kill();
    drop(lock);

    let mesh = up(data.path(), 3600);
    let admin = mesh.admin().await;
    let verifying = governed::in_state(&admin, &id, "PROPOSAL_STATE_VERIFYING").await;
    assert_eq!(
        verifying["state"], "PROPOSAL_STATE_VERIFYING",
        "{verifying}"
    );
    let load = steps(&admin);
    let ended = governed::final_state(&admin, &id).await;
    load.abort();
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    let agent = ethical(&admin).await;
    assert_eq!(
        (&agent["canary_version"], &agent["hold"]),
        (&"1".into(), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_is_killed_while_it_watches_a_version_goes_on_watching() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path(), 3600);
    let (admin, _, id) = proposed(&mesh, data.path()).await;
    governed::approve_and_apply(&admin, &id).await;
    let verifying = governed::in_state(&admin, &id, "PROPOSAL_STATE_VERIFYING").await;
    assert_eq!(
        verifying["state"], "PROPOSAL_STATE_VERIFYING",
        "{verifying}"
    );
    assert_eq!(ethical(&admin).await["hold"]["change_id"], id.as_str());
    mesh.kill();

    // Nobody steps; the time that it is watched for has begun before.
    let mesh = up(data.path(), 1);
    let admin = mesh.admin().await;
    let ended = governed::final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_COMPLETED", "{ended}");
    let agent = ethical(&admin).await;
    assert_eq!(
        (&agent["canary_version"], &agent["hold"]),
        (&"1".into(), &Value::Null)
    );
}

/// What the steps of the version led to is written while nobody watches it: the next process finds that it fell.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fell_while_its_mesh_was_killed_is_rolled_back() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = up(data.path(), 3600);
    let (admin, _, id) = proposed(&mesh, data.path()).await;
    governed::approve_and_apply(&admin, &id).await;
    let verifying = governed::in_state(&admin, &id, "PROPOSAL_STATE_VERIFYING").await;
    assert_eq!(
        verifying["state"], "PROPOSAL_STATE_VERIFYING",
        "{verifying}"
    );
    mesh.kill();
    fall(data.path()).await;

    let mesh = up(data.path(), 3600);
    let admin = mesh.admin().await;
    let ended = governed::final_state(&admin, &id).await;
    assert_eq!(ended["state"], "PROPOSAL_STATE_ROLLED_BACK", "{ended}");
    assert_eq!(
        ended["error_message"],
        "version 1 fell from CANARY: an action was not finite"
    );
    let agent = ethical(&admin).await;
    assert_eq!(
        (
            &agent["shadow_version"],
            &agent["canary_version"],
            &agent["hold"]
        ),
        (&"1".into(), &Value::Null, &Value::Null)
    );
}
