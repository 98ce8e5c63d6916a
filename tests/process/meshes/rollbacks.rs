//! A proposal that does not improve, from the command line.

use crate::{
    governed::{Developer, proposed_with},
    home::{Desk, stderr},
};
use serde_json::{Value, json};
use tars_tests::governed;

/// A study whose trial changes nothing: a larger buffer than ever gets full. On every seed both sides learn the same, so
/// that luck decides nothing.
async fn of_no_use(developer: &Developer) -> String {
    let body = json!({
        "n_trials": 1, "steps": "1000", "seed": "1", "sampler_type": "random",
        "search_space": [{ "name": "buffer_size", "int": { "low": "20000", "high": "30000" } }],
    });
    let answer = developer.rest.post("/api/v1/optimize", body).await;
    let study = governed::text(&answer.unwrap()["optimization_id"]);
    governed::finished(&developer.rest, &study).await;
    study
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_an_error_that_says_why_and_how_to_go_on() {
    let desk = Desk::new();
    let developer = Developer::new(&desk).await;
    let study = of_no_use(&developer).await;
    for json in [false, true] {
        let id = proposed_with(&developer, &study, "2");
        let shown = desk.json(&["proposals", "show", &id]);
        assert_eq!(shown["verification_seeds"].as_array().unwrap().len(), 2);
        desk.good(&["proposals", "approve", &id, "--without-assessment"]);
        let apply = ["proposals", "apply", &id, "--json"];
        let done = desk.run(&apply[..3 + usize::from(json)]);
        assert_eq!(done.status.code(), Some(1), "{}", stderr(&done));
        let error = match json {
            false => stderr(&done),
            true => {
                let error: Value = serde_json::from_str(&stderr(&done)).unwrap();
                governed::text(&error["message"])
            }
        };
        for part in [
            &format!("the proposal {id} was rolled back: the confidence interval"),
            &format!("tars proposals show {id}"),
            &format!("tars proposals propose {study} --verification-seeds 4"),
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        // Who looks at it later sees the same.
        let later = desk.refused(&["proposals", "watch", &id]);
        assert!(later.contains("was rolled back: the confidence"), "{later}");
    }
}
