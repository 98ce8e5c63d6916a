//! A version that climbs by proposals, from the command line.

use crate::{
    governed::Developer,
    home::{Desk, Home},
};
use tars_runtime::clock::Clock;
use tars_tests::ladder::{bound, evidence, in_shadow};

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_proposed_approved_by_another_and_taken_up_the_ladder() {
    let home = Home::new();
    // Nobody steps, so that the time decides.
    let mesh = bound(home.builder("a"), 1).start();
    home.log_in(&mesh, ["--gateway", &mesh.ready.gateway]);
    let desk = Desk { home, mesh };
    let developer = Developer::new(&desk).await;
    in_shadow(&developer.rest).await;
    let refused = |args: &[&str]| developer.home.refused(&developer.with(args));
    let direct = refused(&["agents", "promote", "ethical", "1"]);
    assert!(
        direct.contains("tars proposals promote ethical"),
        "{direct}"
    );
    for stage in ["canary", "active"] {
        let staged = refused(&["agents", "promote", "ethical", "1", "--stage", stage]);
        assert!(
            staged.contains("`tars proposals promote ethical 1`"),
            "{stage}: {staged}"
        );
    }
    let promote = ["proposals", "promote", "ethical", "1"];
    let early = refused(&promote);
    assert!(early.contains("tars agents calibration"), "{early}");
    let skips = refused(&[&promote[..], &["--stage", "active"]].concat());
    assert!(skips.contains("tars agents versions ethical"), "{skips}");

    let data = desk.home.dir("a");
    evidence(&data, Clock::system().now()).await;
    let (printed, notes) = developer.good(&[&promote[..], &["--note", "held a day"]].concat());
    let (id, state) = printed.trim().split_once(": ").unwrap();
    assert_eq!(state, "pending_approval");
    assert!(notes.contains("tars proposals"), "the next step: {notes}");
    let again = refused(&promote);
    assert!(
        again.contains(&format!("tars proposals show {id}")),
        "{again}"
    );
    let (assessed, _) = developer.good(&["proposals", "watch", id, "--until", "assessed"]);
    let compared = "+0.2000 reward per step against version 2, the rule hold on 30 seeds";
    assert!(assessed.contains(compared), "{assessed}");
    let shown = desk.good(&["proposals", "show", id]);
    for part in [
        "version 1 from SHADOW to CANARY, where the rule hold answers",
        "held a day",
        compared,
        "VERDICT",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("HYPERPARAMETER"), "{shown}");
    desk.good(&["proposals", "approve", id]);
    let applied = desk.good(&["proposals", "apply", id]);
    for part in ["verifying", "completed", "answered 0 steps in CANARY"] {
        assert!(applied.contains(part), "{part}: {applied}");
    }
    let versions = desk.good(&["agents", "versions", "ethical"]);
    assert!(versions.contains("canary"), "{versions}");
}
