//! Falls because the mesh does not keep its latency objective.

use super::*;

/// A step where some calls are slow, from where the version wants to go.
fn step_while_slow(service: &Orchestration, share: f32, slow: f32) -> Action {
    let slot = resource(service);
    let space = &slot.definition.space;
    let mut seen = vec![0.0; space.observation.len()];
    seen[space.position("share").unwrap()] = share;
    seen[space.position("slow").unwrap()] = slow;
    let asker = Asker {
        name: "user:dev",
        owner: "dev",
        counts: true,
    };
    slot.answer(asker, None, &seen).unwrap()
}

#[tokio::test]
async fn what_is_active_falls_when_the_mesh_does_not_keep_its_objective() {
    let dir = tempfile::tempdir().unwrap();
    let service = in_stage(dir.path(), 100, Stage::Canary).await;
    let (version, reached) = climb_to_active(&service).await;
    let share = std::cell::Cell::new(reached);
    let step = |slow: f32| {
        let acted = step_while_slow(&service, share.get(), slow);
        // Where the shield blocked, that is what the mesh is like next.
        share.set(acted.action.number());
        acted
    };
    // As slow as it may be, for longer than the window; then a breach that ends before it is most of the window.
    for _ in 0..60 {
        assert_eq!(step(0.05).weights_version, version);
    }
    for slow in [[0.5; 25], [0.0; 25]].concat() {
        assert_eq!(step(slow).weights_version, version);
    }
    assert_eq!(fell(&service).await, 0);
    eventually("it has fallen", async || {
        for _ in 0..10 {
            step(0.5);
        }
        resource(&service).live().rule.is_some()
    })
    .await;
    assert_eq!(fell(&service).await, 1);
    let (listed, _) = service.versions(&resource(&service), "", 0).await.unwrap();
    let fallen = listed.into_iter().find(|v| v.row.version == version);
    let why = fallen.unwrap().fell.unwrap();
    assert!(
        why.starts_with("the latency objective of the mesh was breached in "),
        "{why}"
    );
    // The rule that answers instead is where a fall ends.
    for _ in 0..100 {
        step(1.0);
    }
    assert_eq!(resource(&service).live().row.weights_version, version + 1);
    assert_eq!(fell(&service).await, 1);
}
