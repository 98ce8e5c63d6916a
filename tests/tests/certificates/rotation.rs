//! Leaves and roots that rotate under load.

use super::*;

/// Calls as fast as it may until told to stop; any failure is kept.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    workers: tokio::task::JoinSet<Result<(), Status>>,
}

impl Load {
    fn of_health(channel: &Channel, workers: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            calls: Arc::default(),
            workers: tokio::task::JoinSet::new(),
        };
        for _ in 0..workers {
            let mut client = HealthClient::new(channel.clone());
            let (stop, calls) = (Arc::clone(&load.stop), Arc::clone(&load.calls));
            load.workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.check(HealthCheckRequest::default()).await?;
                    calls.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        load
    }

    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.workers.join_next().await {
            done.unwrap().expect("no call fails");
        }
        self.calls.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_rotations_of_leaves_under_load_lose_no_call() {
    let root = TestCa::root("root");
    let issuer = root.below("intermediate", |_| {});
    let fresh =
        |path: &str| Identity::new(issuer.parts(path, vec![root.der.clone()]), &time()).unwrap();
    let listener = TestListener::open(issuer.parts("/door", vec![root.der.clone()])).await;
    let own = IdentityHandle::new(fresh("/client/load"));
    let channel = listener.channel(own.clone(), Revocations::default());
    let load = Load::of_health(&channel, 4);
    // A stream that is open all the while.
    let mut watch = HealthClient::new(channel.separate())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let before = load.calls.load(Ordering::Relaxed);
        // The client's last: it is what makes the client connect anew.
        listener.identity.publish(fresh("/door"));
        own.publish(fresh("/client/load"));
        eventually("calls go on", || async {
            load.calls.load(Ordering::Relaxed) > before + 20
        })
        .await;
        let server = channel.server().await.unwrap();
        let leaf = server.peer.verified.as_ref().unwrap().certificate.clone();
        serials.insert(leaf.serial);
        let mine = own.current().leaf().serial.to_string();
        // In TLS 1.3 the client is connected before the server knows of it.
        eventually("the server sees the client's new serial", || async {
            listener.table.report().to_string().contains(&mine)
        })
        .await;
    }
    assert!(load.end().await > 1000);
    assert_eq!(
        serials.len(),
        50,
        "the client sees each of the server's new serials"
    );
    listener.health.stop();
    let last = watch.message().await.unwrap().unwrap();
    assert_eq!(last.status, 2, "the stream lived through all of them");
}

async fn step(admin: &Rest, step: &str) -> Result<Value, tars::rest::RestError> {
    let body = json!({ "step": format!("ROOT_STEP_{step}") });
    admin.post("/admin/roots/step", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_rotate_under_load_and_in_one_order_only() {
    let mesh = TestMesh::start().await;
    let admin = mesh.admin().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (admin, stop) = (admin.clone(), Arc::clone(&stop));
        async move {
            let mut calls = 0u32;
            while !stop.load(Ordering::Relaxed) {
                for path in ["/auth/me", "/api/v1/studies", "/api/v1/sync/pending"] {
                    admin.get(path).await.expect("no call fails");
                    calls += 1;
                }
            }
            calls
        }
    });
    let first = admin.get("/admin/roots").await.unwrap()["roots"][0]["key_id"].clone();
    let order = ["PREPARE", "ACTIVATE", "TAINT", "REMOVE"];
    for (at, wanted) in order.into_iter().enumerate() {
        for wrong in order.into_iter().filter(|o| *o != wanted) {
            let (status, body) = refusal(step(&admin, wrong).await);
            assert_eq!(
                (status, reason(&body).as_str()),
                (400, "ROOT_ORDER"),
                "{wrong} at {at}"
            );
        }
        eventually(&format!("everybody is ready to {wanted}"), || async {
            let status = admin.get("/admin/roots").await.unwrap();
            assert_eq!(status["next"], format!("ROOT_STEP_{wanted}"));
            status["waiting_for"].as_array().unwrap().is_empty()
        })
        .await;
        step(&admin, wanted).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 20);
    let roots = admin.get("/admin/roots").await.unwrap()["roots"].clone();
    assert_eq!(roots.as_array().unwrap().len(), 1);
    assert_ne!(roots[0]["key_id"], first);
    eventually("the operator's files went along", || async {
        let now = std::fs::read_to_string(&mesh.mesh.ready.ca).unwrap();
        now.matches("BEGIN").count() == 1
    })
    .await;
    eventually("init and four steps are in the audit list", || async {
        let path = "/admin/audit/logs?event_type=root.stepped";
        let events = admin.get(path).await.unwrap();
        events["events"].as_array().unwrap().len() == 5
    })
    .await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_rotate_at_once_after_a_clean_stop() {
    let mesh = TestMesh::start().await.restart().await;
    let admin = mesh.admin().await;
    step(&admin, "PREPARE").await.unwrap();
    // Far sooner than a process that was killed counts as gone.
    eventually("nobody of before is waited for", || async {
        let status = admin.get("/admin/roots").await.unwrap();
        status["waiting_for"].as_array().unwrap().is_empty()
    })
    .await;
    let status = admin.get("/admin/roots").await.unwrap();
    assert_eq!(status["departed"], json!([]), "{status}");
    mesh.mesh.stop().await;
}
