//! Games over the wire: what is asked in every form, what certifies the answers, what is refused;
//! and conflicts, resolved by games.

#![allow(clippy::unwrap_used)]

use http::Method;
use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{TestMesh, eventually, reason, refusal};

const NASH: &str = "/api/v1/orchestration/nash";

fn pennies() -> Value {
    json!({ "players": [
        { "name": "row", "actions": ["h", "t"], "payoffs": [1, -1, -1, 1] },
        { "name": "column", "actions": ["h", "t"], "payoffs": [-1, 1, 1, -1] },
    ]})
}

/// Stag hunt: hunting together is best, alone it is worst.
fn hunt() -> Value {
    json!({ "players": [
        { "name": "a", "actions": ["stag", "hare"], "payoffs": [4, 0, 3, 2] },
        { "name": "b", "actions": ["stag", "hare"], "payoffs": [4, 3, 0, 2] },
    ]})
}

/// Three who want to differ, drawn payoffs: no pure equilibrium.
fn three() -> Value {
    json!({ "players": [
        { "name": "a", "actions": ["x", "y"], "payoffs": [1, 1, 0, 0, 0, 0, 1, 1] },
        { "name": "b", "actions": ["x", "y"], "payoffs": [1, 0, 0, 1, 1, 0, 0, 1] },
        { "name": "c", "actions": ["x", "y"], "payoffs": [0, 1, 0, 1, 1, 0, 1, 0] },
    ]})
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

async fn solved(rest: &Rest, body: Value) -> Value {
    let answer = rest.post(NASH, body).await.unwrap();
    assert_eq!(answer["converged"], true, "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn games_are_answered_with_what_certifies_them() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let even = solved(&developer, pennies()).await;
    assert_eq!(even["method"], "linear_programme");
    let row = even["strategy_profile"]["row"]["probabilities"]
        .as_array()
        .unwrap();
    assert!(
        row.iter()
            .all(|p| (p.as_f64().unwrap() - 0.5).abs() < 1e-12)
    );
    assert!(even["nash_conv"].as_f64().unwrap() < 1e-9);
    assert_eq!(
        even["history"].as_array().unwrap().last().unwrap()["nash_conv"],
        even["nash_conv"]
    );
    assert_eq!(
        solved(&developer, pennies()).await,
        even,
        "the same game, the same answer"
    );

    let mixed = solved(&developer, three()).await;
    assert_eq!(mixed["expected_payoffs"].as_object().unwrap().len(), 3);
    assert!(mixed["relative_regret"].as_f64().unwrap() <= mixed["tolerance"].as_f64().unwrap());

    // The same game, sparse: what is not listed is worth nothing.
    let sparse = json!({
        "players": [
            { "name": "a", "actions": ["stag", "hare"] }, { "name": "b", "actions": ["stag", "hare"] },
        ],
        "outcomes": [
            { "actions": ["stag", "stag"], "payoffs": [4, 4] }, { "actions": ["hare", "hare"], "payoffs": [2, 2] },
            { "actions": ["hare", "stag"], "payoffs": [3, 0] }, { "actions": ["stag", "hare"], "payoffs": [0, 3] },
        ],
    });
    let welfare = json!({ "preference": "EQUILIBRIUM_PREFERENCE_WELFARE" });
    for game in [hunt(), sparse] {
        let best = solved(&developer, with(game, "options", welfare.clone())).await;
        assert_eq!(best["expected_payoffs"], json!({ "a": 4.0, "b": 4.0 }));
        assert_eq!(
            (&best["considered"], &best["considered_all"]),
            (&json!(3), &json!(true))
        );
    }
    let logit = json!({ "preference": "EQUILIBRIUM_PREFERENCE_LOGIT" });
    let safe = solved(&developer, with(hunt(), "options", logit)).await;
    assert_eq!(safe["method"], "logit_homotopy");

    // The seeds' form.
    let candidates = json!({
        "agent_payoffs": { "policy": 1.0, "ethical": 1.0, "resource": 0.5 },
        "candidate_actions": [
            { "policy": 2.0, "ethical": 0.5, "resource": 9.0 },
            { "policy": 1.5, "ethical": 1.5, "resource": 1.0 },
            { "policy": 1.1, "ethical": 1.1, "resource": 0.6 },
        ],
    });
    let agreed = solved(&developer, candidates).await;
    assert_eq!(
        agreed["strategy_profile"]["ethical"]["probabilities"],
        json!([0.0, 1.0, 0.0])
    );
    assert_eq!(agreed["is_pure"], true);

    let rough = json!({ "algorithm": "NASH_ALGORITHM_FICTITIOUS_PLAY", "rounds": "10" });
    let rough = developer
        .post(NASH, with(pennies(), "options", rough))
        .await
        .unwrap();
    assert_eq!(rough["method"], "fictitious_play");
    let within = rough["relative_regret"].as_f64() <= rough["tolerance"].as_f64();
    assert_eq!(rough["converged"], within);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_game_is_refused_with_the_wrong_field() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let mut short = pennies();
    short["players"][0]["payoffs"] = json!([1, 2, 3]);
    let mut twins = pennies();
    twins["players"][1]["name"] = json!("row");
    let mut same = pennies();
    same["players"][0]["actions"] = json!(["h", "h"]);
    let mut huge = pennies();
    huge["players"][1]["payoffs"][2] = json!(1e305);
    let mut nan = pennies();
    nan["players"][1]["payoffs"][2] = json!("NaN");
    let both = with(
        pennies(),
        "outcomes",
        json!([{ "actions": ["h", "h"], "payoffs": [1, 1] }]),
    );
    let mut named = with(
        json!({}),
        "outcomes",
        json!([{ "actions": ["h", "?"], "payoffs": [1, 1] }]),
    );
    named["players"] =
        json!([{ "name": "a", "actions": ["h"] }, { "name": "b", "actions": ["h"] }]);
    let options = |o: Value| with(pennies(), "options", o);
    let cases = [
        (json!({ "players": [] }), "players"),
        (short, "players[0].payoffs"),
        (twins, "players"),
        (same, "players[0].actions"),
        (huge, "players[1].payoffs[2]"),
        (nan, "players[1].payoffs[2]"),
        (both, "players[0].payoffs"),
        (named, "outcomes[0].actions"),
        (options(json!({ "tolerance": -1 })), "options.tolerance"),
        (
            options(json!({ "time_limit": "-1s" })),
            "options.time_limit",
        ),
        (
            with(
                three(),
                "options",
                json!({ "algorithm": "NASH_ALGORITHM_LEMKE_HOWSON" }),
            ),
            "options.algorithm",
        ),
        (
            with(
                hunt(),
                "options",
                json!({ "algorithm": "NASH_ALGORITHM_LINEAR_PROGRAMME" }),
            ),
            "options.algorithm",
        ),
        (
            options(json!({
                "algorithm": "NASH_ALGORITHM_LEMKE_HOWSON", "preference": "EQUILIBRIUM_PREFERENCE_LOGIT"
            })),
            "options.preference",
        ),
        (json!({ "agent_payoffs": { "a": 1 } }), "candidate_actions"),
        (
            json!({ "agent_payoffs": { "a": 1, "b": 1 }, "candidate_actions": [{ "a": 1 }] }),
            "candidate_actions[0]",
        ),
        (
            json!({ "agent_payoffs": { "a": 1 }, "candidate_actions": [{ "a": 1, "c": 2 }] }),
            "candidate_actions[0]",
        ),
        (
            with(pennies(), "agent_payoffs", json!({ "a": 1 })),
            "agent_payoffs",
        ),
    ];
    for (body, field) in cases {
        let (status, refused) = refusal(developer.post(NASH, body.clone()).await);
        assert_eq!(
            (status, reason(&refused).as_str()),
            (400, "INVALID_FIELD"),
            "{body}"
        );
        let details = refused["details"].to_string();
        assert!(
            details.contains(&format!("\"{field}\"")),
            "{field}: {refused}"
        );
    }
    // Who may not solve games is told so before anything is looked at.
    let viewer = mesh.user("view", "viewer").await;
    assert_eq!(refusal(viewer.post(NASH, pennies()).await).0, 403);
    mesh.mesh.stop().await;
}

/// Five players whose payoffs sum to nothing.
fn hard() -> Value {
    let shape = [6usize; 5];
    let cells: usize = shape.iter().product();
    let mut state = 7u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        f64::from((state >> 40) as u32) / f64::from(1u32 << 24)
    };
    let mut payoffs = vec![Vec::with_capacity(cells); shape.len()];
    for _ in 0..cells {
        let drawn: Vec<f64> = shape.iter().map(|_| draw()).collect();
        let mean = drawn.iter().sum::<f64>() / shape.len() as f64;
        payoffs
            .iter_mut()
            .zip(drawn)
            .for_each(|(t, v)| t.push(v - mean));
    }
    let players = payoffs.into_iter().enumerate().map(|(i, payoffs)| {
        let actions: Vec<String> = (0..6).map(|a| format!("a{a}")).collect();
        json!({ "name": format!("p{i}"), "actions": actions, "payoffs": payoffs })
    });
    json!({ "players": players.collect::<Vec<_>>() })
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_over_gives_the_best_so_far() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let options = json!({ "algorithm": "NASH_ALGORITHM_REGRET_MATCHING_PLUS", "rounds": "100000000", "time_limit": "0.2s" });
    let rough = developer
        .post(NASH, with(hard(), "options", options.clone()))
        .await
        .unwrap();
    assert_eq!(rough["converged"], false);
    assert!(rough["relative_regret"].as_f64().unwrap() < 0.5, "{rough}");

    // The same as a stream: each improvement, then the certificate; resumed without what was seen.
    let body = json!({ "game": hard(), "options": options });
    let watch = |after: u64| {
        let body = with(body.clone(), "after_sequence", json!(after.to_string()));
        let developer = developer.clone();
        async move {
            let mut items = Vec::new();
            let path = format!("{NASH}/watch");
            developer
                .stream(Method::POST, &path, Some(body), |item| {
                    items.push(item.clone());
                    true
                })
                .await
                .unwrap();
            items
        }
    };
    let items = watch(0).await;
    let sequence = |item: &Value| item["sequence"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(items.len() > 3);
    assert!(
        items
            .iter()
            .enumerate()
            .all(|(k, item)| sequence(item) == k as u64 + 1)
    );
    let (last, points) = items.split_last().unwrap();
    assert!(
        points
            .iter()
            .all(|p| p["progress"]["nash_conv"].is_number())
    );
    assert_eq!(last["equilibrium"]["method"], "regret_matching_plus");
    let resumed = watch(2).await;
    assert_eq!(sequence(&resumed[0]), 3);
    assert_eq!(resumed[0]["progress"], items[2]["progress"]);

    // Who goes away stops its solve: more of them than one caller may have, and there is room again.
    let forever =
        json!({ "algorithm": "NASH_ALGORITHM_REGRET_MATCHING_PLUS", "rounds": "100000000" });
    let body = json!({ "game": hard(), "options": forever });
    let path = format!("{NASH}/watch");
    for _ in 0..20 {
        eventually("a solve begins", || async {
            let mut begun = false;
            let watched = developer.stream(Method::POST, &path, Some(body.clone()), |_| {
                begun = true;
                false
            });
            watched.await.is_ok() && begun
        })
        .await;
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_correlated_verified_and_ranked() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let post =
        async |path: &str, body: Value| developer.post(&format!("{NASH}/{path}"), body).await;
    let all = post("all", json!({ "game": hunt() })).await.unwrap();
    assert_eq!(
        (
            all["equilibria"].as_array().unwrap().len(),
            &all["complete"]
        ),
        (3, &json!(true))
    );
    let many = post("all", json!({ "game": three() })).await.unwrap();
    assert_eq!(
        many["complete"], false,
        "of more players that cannot be said"
    );
    assert!(!many["equilibria"].as_array().unwrap().is_empty());

    let chicken = json!({ "players": [
        { "name": "a", "actions": ["yield", "dare"], "payoffs": [6, 2, 7, 0] },
        { "name": "b", "actions": ["yield", "dare"], "payoffs": [6, 7, 2, 0] },
    ]});
    let best = post("correlated", json!({ "game": chicken }))
        .await
        .unwrap();
    assert_eq!(
        (&best["converged"], &best["optimal"]),
        (&json!(true), &json!(true))
    );
    assert!(
        (best["expected_payoffs"]["a"].as_f64().unwrap() - 5.25).abs() < 1e-6,
        "{best}"
    );
    assert_eq!(best["lottery"].as_array().unwrap().len(), 3);
    let weighted = json!({ "game": chicken, "objective": "CORRELATED_OBJECTIVE_WEIGHTED" });
    assert_eq!(refusal(post("correlated", weighted.clone()).await).0, 400);
    let weighted = with(weighted, "weights", json!({ "a": 1, "b": 0 }));
    let selfish = post("correlated", weighted).await.unwrap();
    assert!((selfish["expected_payoffs"]["a"].as_f64().unwrap() - 7.0).abs() < 1e-6);
    let coarse = json!({ "game": chicken, "concept": "CORRELATED_CONCEPT_COARSE", "objective": "CORRELATED_OBJECTIVE_FAIRNESS" });
    assert_eq!(post("correlated", coarse).await.unwrap()["converged"], true);

    let profile = |p: f64| json!({ "row": { "probabilities": [p, 1.0 - p] }, "column": { "probabilities": [0.5, 0.5] } });
    let verify = json!({ "game": pennies(), "strategy_profile": profile(0.5) });
    let right = post("verify", verify.clone()).await.unwrap();
    assert_eq!(right["equilibrium"]["converged"], true);
    let wrong = post(
        "verify",
        with(verify.clone(), "strategy_profile", profile(0.75)),
    )
    .await
    .unwrap();
    assert_eq!(wrong["equilibrium"]["converged"], false);
    assert_eq!(
        wrong["equilibrium"]["regret"],
        json!({ "row": 0.0, "column": 0.5 })
    );
    for bad in [
        json!({ "row": { "probabilities": [0.5, 0.5] } }),
        json!({ "row": { "probabilities": [0.5, 0.6] }, "column": { "probabilities": [0.5, 0.5] } }),
        json!({ "row": { "probabilities": [1] }, "column": { "probabilities": [0.5, 0.5] } }),
        json!({ "row": { "probabilities": [1.5, -0.5] }, "column": { "probabilities": [0.5, 0.5] } }),
    ] {
        let (status, refused) =
            refusal(post("verify", with(verify.clone(), "strategy_profile", bad)).await);
        assert_eq!((status, reason(&refused).as_str()), (400, "INVALID_FIELD"));
    }

    let ranked = post("rank", json!({ "game": hunt() })).await.unwrap();
    assert_eq!(ranked["ranking"].as_array().unwrap().len(), 4);
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_resolved_and_explained() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let resolve = async |body: Value| {
        developer
            .post("/api/v1/orchestration/conflicts/resolve", body)
            .await
    };
    let sexes = json!({
        "game": { "players": [
            { "name": "a", "actions": ["opera", "football"], "payoffs": [5, 0, 0, 2] },
            { "name": "b", "actions": ["opera", "football"], "payoffs": [1, 0, 0, 4] },
        ]},
        "actions": { "a": "opera", "b": "football" },
    });
    let answer = resolve(sexes.clone()).await.unwrap();
    let answer = &answer["resolution"];
    assert_eq!(answer["conflicts"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(
        answer["raw_actions"],
        json!({ "a": "opera", "b": "football" })
    );
    assert_eq!(
        answer["resolved_actions"],
        json!({ "a": "football", "b": "football" })
    );
    assert_eq!(
        (&answer["method"], &answer["nash_equilibrium_reached"]),
        (&json!("nash_bargaining"), &json!(true))
    );
    assert_eq!(answer["resolved_payoffs"], json!({ "a": 2.0, "b": 4.0 }));
    assert_eq!(answer["efficient"].as_array().unwrap().len(), 2);

    let closed = json!([{ "name": "no_football", "conditions": [
        { "player": "b", "comparison": "COMPARISON_EQUAL", "value": 1 } ] }]);
    let other = resolve(with(sexes.clone(), "constraints", closed))
        .await
        .unwrap();
    let other = &other["resolution"];
    assert_eq!(
        other["resolved_actions"],
        json!({ "a": "opera", "b": "opera" })
    );
    assert_eq!(
        (&other["allowed"], &other["joint_actions"]),
        (&json!("2"), &json!("4"))
    );
    assert!(
        other["conflicts"][0]["description"]
            .as_str()
            .unwrap()
            .contains("football")
    );

    let shut = json!([{ "name": "shut", "conditions": [
        { "player": "a", "comparison": "COMPARISON_BELOW", "value": 9 } ] }]);
    let (_, refused) = refusal(resolve(with(sexes.clone(), "constraints", shut)).await);
    assert_eq!(reason(&refused), "NOTHING_ALLOWED");
    let stranger = json!([{ "name": "x", "conditions": [
        { "player": "c", "comparison": "COMPARISON_BELOW", "value": 9 } ] }]);
    for (field, bad) in [
        ("constraints", stranger),
        ("actions", json!({ "a": "opera" })),
        ("actions", json!({ "a": "opera", "b": "ballet" })),
        ("weights", json!({ "a": 1 })),
        ("disagreement", json!({ "a": 1, "b": 1, "c": 1 })),
    ] {
        let (status, _) = refusal(resolve(with(sexes.clone(), field, bad)).await);
        assert_eq!(status, 400, "{field}");
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_in_conflict_returns_both_actions_and_is_remembered() {
    let mesh = TestMesh::start().await;
    let developer = mesh.user("dev", "developer").await;
    let path = "/api/v1/orchestration/agents/policy/train";
    let run = developer
        .post(path, json!({ "steps": "500", "seed": "1" }))
        .await
        .unwrap();
    let events = format!(
        "/api/v1/orchestration/training/{}/events",
        run["run"]["run_id"].as_str().unwrap()
    );
    developer.follow(&events, |_| true).await.unwrap();
    let step = "/api/v1/orchestration/step";
    let state =
        json!({ "policy_state": { "agent_type": "dqn", "state_vector": [0.0, 0.1, 0.02, -0.1] } });
    let calm = developer.post(step, state.clone()).await.unwrap();
    assert_eq!(calm["agent_actions"], calm["resolved_actions"]);
    assert_eq!(
        (&calm["conflicts_detected"], &calm["resolution_method"]),
        (&json!([]), &json!(""))
    );
    assert_eq!(calm["nash_equilibrium_reached"], true);
    let list = "/api/v1/orchestration/conflicts";
    assert_eq!(developer.get(list).await.unwrap()["total"], "0");

    // What it would do is not allowed now.
    let raw = &calm["agent_actions"]["policy"];
    let forbidden = json!([{ "name": "maintenance", "conditions": [
        { "player": "policy", "comparison": "COMPARISON_EQUAL", "value": raw["action"] } ] }]);
    let mended = developer
        .post(step, with(state.clone(), "constraints", forbidden))
        .await
        .unwrap();
    assert_eq!(&mended["agent_actions"]["policy"], raw);
    let resolved = &mended["resolved_actions"]["policy"];
    assert_ne!(resolved["action"], raw["action"]);
    assert_eq!(mended["conflicts_detected"][0]["name"], "maintenance");
    assert_eq!(mended["resolution_method"], "nash_bargaining");
    assert_eq!(
        mended["nash_equilibrium_reached"], false,
        "it would rather do otherwise"
    );
    // Payoffs are the network's own values, and what they differ by is the regret.
    let value = |action: &Value| {
        let at = action["action"].as_u64().unwrap() as usize;
        raw["action_values"][at].as_f64().unwrap()
    };
    let regret = mended["resolution"]["regret"]["policy"].as_f64().unwrap();
    assert!(
        (value(raw) - value(resolved) - regret).abs() < 1e-9,
        "{mended}"
    );

    let listed = developer.get(list).await.unwrap();
    assert_eq!(
        (&listed["total"], &listed["conflicts"][0]["step_id"]),
        (&json!("1"), &mended["step_id"])
    );
    assert_eq!(
        listed["conflicts"][0]["resolved_actions"]["policy"],
        resolved["action_name"]
    );
    let never = json!([{ "name": "stop", "conditions": [
        { "player": "policy", "comparison": "COMPARISON_ABOVE", "value": -1 } ] }]);
    let (_, refused) = refusal(
        developer
            .post(step, with(state, "constraints", never))
            .await,
    );
    assert_eq!(reason(&refused), "NOTHING_ALLOWED");
    mesh.mesh.stop().await;
}
