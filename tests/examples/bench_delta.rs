//! What one change of one API key costs a process that knows a hundred thousand, in CPU time of the
//! thread that applies it, against copying a `HashMap` of as many rows, which is what a table without
//! structural sharing would do.

use std::{collections::HashMap, hint::black_box, sync::Arc, time::Duration};
use tars_credentials::{Follower, View, apikey::ApiKey};
use tars_proto::auth::v1::{KeyView, SecretView, UserView, WatchCredentialsResponse};
use tars_search::quantile;

const KEYS: u64 = 100_000;
const NOW_S: u64 = 1_000_000;

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(t.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or_default())
}

fn row(key: &ApiKey, revision: u64) -> KeyView {
    KeyView {
        key_id: key.id.clone(),
        owner_id: "u".into(),
        secrets: vec![SecretView {
            sha256: key.hash.to_vec(),
            expires_at: None,
        }],
        scopes: vec!["agents.read".into()],
        revision,
        ..Default::default()
    }
}

fn whole(keys: &[ApiKey]) -> WatchCredentialsResponse {
    WatchCredentialsResponse {
        reset: true,
        sequence: 1,
        users: vec![UserView {
            user_id: "u".into(),
            username: "ada".into(),
            ..Default::default()
        }],
        api_keys: keys.iter().map(|key| row(key, 1)).collect(),
        ..Default::default()
    }
}

fn delta(key: &ApiKey, sequence: u64) -> WatchCredentialsResponse {
    WatchCredentialsResponse {
        sequence,
        api_keys: vec![KeyView {
            revoked: true,
            ..row(key, sequence)
        }],
        ..Default::default()
    }
}

fn median(samples: Vec<f64>) -> f64 {
    quantile::median(samples).expect("there is at least one round")
}

fn microseconds(work: impl FnOnce()) -> f64 {
    let before = cpu_time();
    work();
    (cpu_time() - before).as_secs_f64() * 1e6
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let rounds: u64 = if has("--quick") { 40 } else { 400 };
    let keys: Vec<ApiKey> = (0..KEYS).map(|_| ApiKey::generate()).collect();
    let view = View::default();
    let mut follower = Follower::new(view.clone(), tars_certs::TrustFeed::default());
    let whole_us = microseconds(|| follower.apply(&whole(&keys), NOW_S).expect("a whole view"));
    let rows: HashMap<String, Arc<KeyView>> = keys
        .iter()
        .map(|key| (key.id.clone(), Arc::new(row(key, 1))))
        .collect();
    let (mut ours, mut copies) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let item = delta(&keys[usize::try_from(round)?], round + 2);
        ours.push(microseconds(|| {
            follower.apply(&item, NOW_S).expect("the next item");
        }));
        copies.push(microseconds(|| drop(black_box(rows.clone()))));
    }
    let (revoked, good) = (&keys[0], keys.last().ok_or("no keys")?);
    if view.check_api_key(&revoked.text, NOW_S).is_some()
        || view.check_api_key(&good.text, NOW_S).is_none()
    {
        return Err("the view does not say what was applied".into());
    }
    let (delta_us, copy_us) = (median(ours), median(copies));
    let report = serde_json::json!({
        "bench": "delta",
        "baseline": "a copy of a HashMap of as many rows",
        "keys": KEYS,
        "rounds": rounds,
        "delta_us": delta_us,
        "baseline_copy_us": copy_us,
        "ratio": delta_us / copy_us,
        "whole_view_ms": whole_us / 1e3,
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
