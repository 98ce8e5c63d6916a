//! Services that are revoked, and fleets that go on without them.

use crate::home::{Desk, Home, stderr, text};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tars::rest::Rest;
use tars_tests::{
    eventually,
    fleet::{Fleet, Source, services},
};

/// What the admin page shows of a service's certificate.
async fn certificate(admin: &Rest, service: &str) -> Value {
    let page = admin.get("/certs").await.unwrap();
    let mut rows = page["certificates"].as_array().unwrap().iter();
    rows.find(|r| r["service"] == service).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_service_is_unready_and_a_rotation_does_not_wait_for_it() {
    let desk = Desk::new();
    let data = text(&desk.mesh.data);
    let probe = ["probe", "automl", "--data-dir", &data];
    assert!(desk.home.good(&probe).contains("serving"));
    let listed = desk.json(&["certs", "list", "--id", "/automl"]);
    for row in listed.as_array().unwrap() {
        let serial = row["serial"].as_str().unwrap();
        desk.good(&[
            "certs", "revoke", "--serial", serial, "--yes", "--reason", "stolen",
        ]);
    }
    eventually("the probe is told so", || async {
        let probe = desk.home.run(&probe);
        !probe.status.success() && stderr(&probe).contains("revoked")
    })
    .await;
    let admin = Rest::new(&desk.mesh.ready.admin);
    let before = certificate(&admin, "automl").await;
    for service in services() {
        let row = certificate(&admin, service).await;
        assert_eq!(row["revoked"], service == "automl", "{row}");
    }
    let observe = Rest::new(&desk.mesh.ready.observe);
    eventually("it is not ready", || async {
        observe.get("/readyz").await.is_err()
    })
    .await;
    desk.good(&["certs", "root", "rotate", "--yes", "--timeout", "60"]);
    let automl = certificate(&admin, "automl").await;
    assert_eq!(automl["revoked"], true, "{automl}");
    assert_eq!(automl["serial"], before["serial"], "not renewed: {automl}");

    let log = desk.mesh.logged();
    let rejected = log.matches("peers reject it").count();
    assert_eq!(rejected, tars_tests::replicas(), "{log}");
    assert!(log.contains("restart the process"), "{log}");
    for name in ["auth", "gateway", "admin", "observe"] {
        let mut lines = log.lines();
        let line = lines.find(|l| l.contains("serving") && l.contains(name));
        assert!(
            line.is_some_and(|l| l.contains("127.0.0.1:")),
            "{name}: {log}"
        );
    }
}

async fn fleet() -> Fleet {
    let env = [("TARS__CERTIFICATES__DEPARTED_AFTER_SECONDS", "6")];
    let binary = Path::new(env!("CARGO_BIN_EXE_tars"));
    Fleet::start(binary, Source::Join, &env).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_process_comes_back_by_a_new_join_token_only() {
    let mut fleet = fleet().await;
    let admin = fleet.admin().await;
    let log = |fleet: &Fleet, name: &str| fs::read_to_string(fleet.log(name)).unwrap();
    let id = json!({ "spiffe_id": "spiffe://tars.local/automl", "reason": "stolen" });
    admin.post("/admin/certificates/revoke", id).await.unwrap();
    // No push reaches it any more; it learns of it by being refused.
    let processes = fleet.processes_of("automl");
    for name in &processes {
        eventually("it knows that it is revoked", || async {
            fleet.certificate(name).await["revoked"] == true
        })
        .await;
        eventually("it is not ready", || async {
            fleet.readiness(name).await.is_none()
        })
        .await;
        let logged = log(&fleet, name);
        assert_eq!(logged.matches("peers reject it").count(), 1, "{logged}");
        assert!(logged.contains("tars certs join-token"), "{logged}");
    }

    fleet.kill("automl");
    fleet.spawn("automl");
    for name in &processes {
        eventually("its rejoin token is refused", || async {
            log(&fleet, name).contains("only a new join token gives another")
        })
        .await;
        let path = json!({ "path": "/automl" });
        let made = admin.post("/admin/join-tokens", path).await.unwrap();
        let token = made["token"].as_str().unwrap();
        tars_certs::secret::write(&fleet.token_file(name), token.as_bytes()).unwrap();
    }
    fleet.spawn("automl");
    eventually("it is back", || async { fleet.is_ready("automl").await }).await;

    // A process that is gone does not hold back a rotation, and is named.
    fleet.kill("hypersync");
    let statuses = fleet.rotate_roots(&admin).await;
    let departed: String = statuses.iter().map(|s| s["departed"].to_string()).collect();
    assert!(
        departed.contains("spiffe://tars.local/hypersync"),
        "{departed}"
    );
    assert!(!departed.contains("orchestration"), "{departed}");
    eventually("the rest goes on", || async {
        fleet.is_ready("automl").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_find_a_fleet_by_the_configuration_that_it_runs_with() {
    let (fleet, home) = (fleet().await, Home::new());
    let places = format!(
        "[data]\ndir = {:?}\n[listen]\ngateway = \"{}\"\n[connect]\nauth = \"{}\"\n",
        fleet.data(),
        fleet.addr("gateway"),
        fleet.addr("auth"),
    );
    fs::write(home.dir("fleet.toml"), places).unwrap();
    let (config, data) = (home.path("fleet.toml"), text(fleet.data()));
    let password = text(&fleet.data().join("admin-password"));
    let login = ["login", "--username", "admin", "--password-file", &password];
    let error = home.refused(&[&login[..], &["--data-dir", &data]].concat());
    assert!(error.contains("--config"), "{error}");
    home.good(&[&login[..], &["--config", &config]].concat());
    let users = home.good(&["users", "list", "--config", &config]);
    assert!(users.contains("admin"), "{users}");
    let probe = ["probe", "auth", "--config", &config];
    assert!(home.good(&probe).contains("serving"));
    let error = home.refused(&[&probe[..], &["--identity", "nowhere"]].concat());
    assert!(
        error.contains("nowhere/tls.crt") && error.contains("--identity"),
        "{error}"
    );
    let error = home.refused(&["up", "--data-dir", &data]);
    assert!(
        error.contains("tars serve"),
        "it names who uses the directory: {error}"
    );
}
