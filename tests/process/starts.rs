//! What the binary refuses to start with, and how it serves once it has started.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use tars::rest::Rest;
use tars_tests::{
    eventually,
    fleet::{Fleet, Source},
    governed, memory,
    process::{Running, Up},
    test_ca::TestCa,
};

fn tars() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tars"))
}

fn up(data: &Path) -> Running {
    Up::new(tars(), data).unlimited().start()
}

#[test]
fn mistakes_are_all_told_before_anything_starts() {
    let data = tempfile::tempdir().unwrap();
    let output = tars()
        .args(["up", "--data-dir"])
        .arg(data.path())
        .env("TARS__LISTEN__AUTH", "nowhere")
        .env("TARS__LIMITS__NOSUCH", "1")
        .env("TARS__TELEMETRY__SAMPLE_RATIO", "lots")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{text}");
    for mistake in ["listen.auth", "limits.nosuch", "telemetry.sample_ratio"] {
        assert!(text.contains(mistake), "{mistake} in {text}");
    }
}

#[test]
fn mistakes_in_the_files_that_it_names_are_mistakes_of_the_configuration() {
    let data = tempfile::tempdir().unwrap();
    let limits = data.path().join("limits.toml");
    fs::write(&limits, "[[override]]\nnobody = 1\n").unwrap();
    let policy = data.path().join("policy.toml");
    fs::write(
        &policy,
        "[[rule]]\nname = \"r\"\nmethods = [\"no.such/Method\"]\ndeny = true\n",
    )
    .unwrap();
    let kept = data.path().join("kept");
    for command in ["up", "config"] {
        let output = tars()
            .args([command, "--data-dir"])
            .arg(&kept)
            .env("TARS__LIMITS__FILE", &limits)
            .env("TARS__QUOTAS__FILE", data.path().join("none.toml"))
            .env("TARS__POLICY__FILE", &policy)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{command}: {text}");
        for mistake in ["limits.file: ", "quotas.file: ", "policy.file: "] {
            assert!(text.contains(mistake), "{mistake}in {text}");
        }
        assert!(!kept.exists(), "nothing was started");
    }
}

#[test]
fn a_data_directory_belongs_to_one_process() {
    let data = tempfile::tempdir().unwrap();
    let mesh = up(data.path());
    let second = tars()
        .args(["up", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(69), "{text}");
    assert!(text.contains("used by another process"), "{text}");
    let probe = tars()
        .args(["probe", "hypersync", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert!(
        probe.status.success(),
        "{}",
        String::from_utf8_lossy(&probe.stderr)
    );
    drop(mesh);
    let gone = tars()
        .args(["probe", "auth", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert!(!gone.status.success());
}

#[test]
fn the_demo_does_the_main_job() {
    let output = tars()
        .args(["demo", "--quick", "--exit", "--json"])
        .output()
        .unwrap();
    let (text, shown) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    assert!(output.status.success(), "{}: {text}{shown}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        report["improvement_low"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert_eq!(
        (&report["verified"], &report["proposal_state"]),
        (&json!(true), &json!("PROPOSAL_STATE_COMPLETED"))
    );
    assert_eq!(
        (&report["version_before"], &report["version_after"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(report["trace_id"].as_str().unwrap().len(), 32);
    assert_eq!(report["calibration"], "shipped", "{report}");
    let distance = |name: &str| report[name].as_f64().unwrap();
    for name in ["nash_conv_before", "nash_conv_after"] {
        assert!(distance(name) > 0.0, "{report}");
    }
}

/// One process a service, each with an identity from files, as in production.
#[tokio::test(flavor = "multi_thread")]
async fn services_work_each_in_its_own_process() {
    let binary = Path::new(env!("CARGO_BIN_EXE_tars"));
    let authority = Source::Files(Box::new(TestCa::root("another authority")));
    let mut fleet = Fleet::start(binary, authority, &[]).await;
    let rest = fleet.admin().await;
    let body = json!({ "n_trials": 1, "steps": "500", "sampler_type": "random" });
    let study = rest.post("/api/v1/optimize", body).await.unwrap();
    let study = governed::text(&study["optimization_id"]);
    governed::finished(&rest, &study).await;
    let proposal = json!({ "study_id": study });
    rest.post("/api/v1/sync/propose", proposal).await.unwrap();

    // Auth goes and comes back: reads go on, and so do changes afterwards.
    fleet.kill("auth");
    let read = rest.get("/api/v1/studies").await;
    read.expect("reading needs no Auth");
    fleet.spawn("auth");
    eventually("Auth is back", async || rest.get("/auth/me").await.is_ok()).await;
}

/// Of the process, in MiB.
#[cfg(target_os = "linux")]
fn resident_mib(process: &tars_tests::process::Started) -> u64 {
    memory::resident(process.id()).unwrap() >> 20
}

/// Logins of nobody, each under another name, as many at once as are let in.
#[cfg(target_os = "linux")]
async fn strangers_log_in(gateway: &str, logins: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16 {
        let rest = Rest::new(gateway);
        tasks.spawn(async move {
            for n in 0..logins / 16 {
                let name = format!("nobody-{worker}-{n}");
                rest.login(&name, "a wrong password").await.unwrap_err();
            }
        });
    }
    tasks.join_all().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn anonymous_logins_leave_memory_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let mesh = up(data.path());
    let rest = mesh.admin().await;
    strangers_log_in(&mesh.ready.gateway, 32).await;
    let before = resident_mib(&mesh.process);
    strangers_log_in(&mesh.ready.gateway, 480).await;
    let after = resident_mib(&mesh.process);
    assert!(
        after <= before + 20,
        "{before} MiB before, {after} MiB after"
    );
    let failures = rest
        .get("/admin/audit/logs?event_type=auth.login.failure&page_size=500")
        .await
        .unwrap();
    let recorded = failures["events"].as_array().unwrap().len();
    assert!(
        recorded < 100,
        "strangers filled the audit list: {recorded}"
    );
    assert!(rest.get("/auth/me").await.is_ok());
}
