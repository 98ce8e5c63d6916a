//! Failures of TLS, in words that name the next step.

use crate::home::{Desk, Home, stderr};
use std::{fs, path::Path};
use tars_tests::eventually;

/// A folder with the key and certificate of one identity, and the roots of another.
fn mixed(home: &Home, name: &str, identity: &str, roots: &[&str]) -> String {
    let dir = home.dir(name);
    fs::create_dir(&dir).unwrap();
    for file in ["tls.crt", "tls.key"] {
        fs::copy(Path::new(identity).join(file), dir.join(file)).unwrap();
    }
    let read = |of: &&str| fs::read_to_string(Path::new(of).join("ca.crt")).unwrap();
    let roots: String = roots.iter().map(read).collect();
    fs::write(dir.join("ca.crt"), roots).unwrap();
    home.path(name)
}

/// `host:port` of a URL.
fn at(url: &str) -> String {
    url.rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_tls_is_explained_with_the_next_step() {
    let desk = Desk::new();
    let (home, mesh) = (&desk.home, &desk.mesh);
    let auth = at(&mesh.ready.auth);
    let (bot, stranger, other) = (home.path("bot"), home.path("stranger"), home.path("b"));
    desk.good(&["certs", "client", "bot", "--out", &bot]);
    home.good(&["certs", "init", "--data-dir", &other]);
    let client = ["certs", "client", "bot", "--out", &stranger, "--data-dir"];
    home.good(&[&client[..], &[&other]].concat());
    let probe = |service: &str, target: &str, identity: &str| {
        let args = ["probe", service, "--target", target, "--identity", identity];
        let error = home.refused(&args);
        assert!(error.contains("(cause: "), "the original stays: {error}");
        error
    };
    let free = tars_tests::fleet::free_addr().to_string();
    let half = mixed(home, "half", &bot, &[&stranger]);
    let (gateway, observe) = (at(&mesh.ready.gateway), at(&mesh.ready.observe));
    for (service, target, identity, means, next) in [
        (
            "auth",
            &gateway,
            &bot,
            "does not speak TLS",
            "name the port",
        ),
        (
            "auth",
            &observe,
            &bot,
            "does not speak TLS",
            "name the port",
        ),
        (
            "automl",
            &auth,
            &bot,
            "another service of the mesh",
            "the port is another's",
        ),
        (
            "auth",
            &auth,
            &stranger,
            "another mesh",
            "tars certs bundle",
        ),
        ("auth", &free, &bot, "nothing listens", "tars up"),
        (
            "auth",
            &auth,
            &half,
            "does not vouch for",
            "tars certs client bot",
        ),
    ] {
        let error = probe(service, target, identity);
        assert!(
            error.contains(means) && error.contains(next),
            "{means}: {error}"
        );
    }
    // The server refuses this one after the handshake; its alert can be lost when the client was
    // about to send something.
    let foreign = mixed(home, "foreign", &stranger, &[&bot, &stranger]);
    eventually("it is named as one of another mesh", || async {
        let error = probe("auth", &auth, &foreign);
        error.contains("does not trust the issuer of") && error.contains("tars certs client bot")
    })
    .await;

    desk.good(&["certs", "revoke", "--id", "/client/bot", "--reason", "lost"]);
    for args in [
        &["probe", "auth", "--target", &auth, "--identity", &bot][..],
        &["certs", "renew", &bot, "--auth", &auth],
    ] {
        eventually("it is named as revoked", || async {
            let error = stderr(&home.run(args));
            error.contains("is revoked") && error.contains("tars certs client bot")
        })
        .await;
    }
}

#[test]
fn a_port_for_tls_and_a_url_for_tls_are_no_gateway() {
    let desk = Desk::new();
    let auth = &desk.mesh.ready.auth;
    let plain = format!("http://{}", at(auth));
    for (url, means) in [(&plain, "does not speak HTTP"), (auth, "speaks plain HTTP")] {
        let error = desk.home.refused(&["users", "list", "--gateway", url]);
        assert!(error.contains(means), "{url}: {error}");
    }
}
