use super::*;
use crate::{
    Authority, IdentityFiles, SpiffeId,
    ca::{Lifetimes, Request, rotation::RotationStep},
};
use rustls::pki_types::UnixTime;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A wall clock that follows tokio's, so that a paused test moves both, and can be set back.
#[derive(Debug)]
struct Wall {
    start: tokio::time::Instant,
    back_s: AtomicU64,
}

const NOW: Duration = Duration::from_secs(1_800_000_000);
const HALF_A_SECOND: Duration = Duration::from_millis(500);

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        let back = Duration::from_secs(self.back_s.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(
            NOW + self.start.elapsed() - back,
        ))
    }
}

struct World {
    _dir: tempfile::TempDir,
    authority: Arc<Authority>,
    wall: Arc<Wall>,
    time: Arc<dyn TimeProvider>,
    request: Request,
}

fn world(life: u64) -> World {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(
        &dir.path().join("ca"),
        "tars.local",
        Lifetimes::default(),
        NOW,
    )
    .unwrap();
    let wall = Arc::new(Wall {
        start: tokio::time::Instant::now(),
        back_s: AtomicU64::new(0),
    });
    World {
        _dir: dir,
        authority: Arc::new(authority),
        time: wall.clone(),
        wall,
        request: Request::new(
            SpiffeId::new("tars.local", "/auth").unwrap(),
            Duration::from_secs(life),
        ),
    }
}

fn renewal(world: &World) -> (Renewal, AuthoritySource) {
    let source = AuthoritySource::new(
        Arc::clone(&world.authority),
        world.request.clone(),
        Arc::clone(&world.time),
    );
    let renewal = Renewal {
        handle: IdentityHandle::new(source.issue().unwrap()),
        revocations: Revocations::default(),
        time: Arc::clone(&world.time),
        on_event: Arc::new(|_, _| {}),
        delay: Arc::new(|failures, _| HALF_A_SECOND * failures),
    };
    (renewal, source)
}

fn serial(handle: &IdentityHandle) -> String {
    handle.current().leaf().serial.to_string()
}

/// Fails a given number of times.
struct Flaky {
    inner: AuthoritySource,
    failures: AtomicU32,
}

impl IdentitySource for Flaky {
    fn name(&self) -> &'static str {
        "flaky"
    }

    async fn fetch(&self, current: &Identity) -> Result<Identity, SourceError> {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return self.inner.fetch(current).await;
        }
        self.failures.fetch_sub(1, Ordering::Relaxed);
        Err(SourceError::Unreachable("unreachable".to_owned()))
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }

    fn issues(&self) -> bool {
        true
    }

    fn remedy(&self) -> &'static str {
        "none"
    }
}

#[test]
fn renewal_is_due_after_two_thirds_of_the_lifetime() {
    let (from, to) = (Duration::from_secs(1000), Duration::from_secs(4000));
    assert_eq!(renew_at(from, to, 0.0), Duration::from_secs(3000));
    assert_eq!(renew_at(from, to, 1.0), Duration::from_secs(3150));
    assert_eq!(renew_at(from, to, -9.0), Duration::from_secs(2850));
    assert_eq!(renew_at(to, from, 0.0), to + Duration::from_secs(1), "over");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_made_premature_by_a_clock_step_is_renewed() {
    let world = world(3600);
    let (renewal, source) = renewal(&world);
    let handle = renewal.handle.clone();
    tokio::spawn(renewal.run(source));
    let mut changes = handle.subscribe();
    changes.changed().await.unwrap();
    let early = serial(&handle);
    world.wall.back_s.store(1200, Ordering::Relaxed);
    let limit = tokio::time::timeout(CLOCK_CHECK * 2, changes.changed());
    limit
        .await
        .expect("at the next check of the clock")
        .unwrap();
    assert_ne!(serial(&handle), early);
    let now = world.time.current_time().unwrap().as_secs();
    assert!(handle.current().leaf().not_before.as_secs() <= now);
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_renewed_repeatedly_before_it_expires() {
    let world = world(3600);
    let (renewal, source) = renewal(&world);
    let handle = renewal.handle.clone();
    let first = serial(&handle);
    tokio::spawn(renewal.run(source));
    tokio::time::sleep(Duration::from_secs(2200)).await;
    assert_eq!(serial(&handle), first, "not before it is due");
    tokio::time::sleep(Duration::from_secs(400)).await;
    let second = serial(&handle);
    assert_ne!(second, first);
    tokio::time::sleep(Duration::from_secs(2700)).await;
    assert_ne!(serial(&handle), second);
}

#[tokio::test(start_paused = true)]
async fn failures_keep_the_old_identity_until_the_first_success() {
    let world = world(3600);
    let (renewal, inner) = renewal(&world);
    let handle = renewal.handle.clone();
    let first = serial(&handle);
    let failures = AtomicU32::new(5);
    tokio::spawn(renewal.run(Flaky { inner, failures }));
    while handle.health().failures == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(serial(&handle), first);
    let health = handle.health();
    assert!(
        health.failures > 0 && health.last_error.as_deref() == Some("unreachable"),
        "{health:?}"
    );
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_ne!(serial(&handle), first);
    assert_eq!(handle.health(), crate::identity::Health::default());
}

#[tokio::test(start_paused = true)]
async fn a_rotation_step_renews_at_once() {
    let world = world(3600);
    let (renewal, source) = renewal(&world);
    let handle = renewal.handle.clone();
    tokio::spawn(renewal.run(source));
    let mut changes = handle.subscribe();
    for (step, roots) in [
        (RotationStep::Prepare, 2),
        (RotationStep::Activate, 2),
        (RotationStep::Taint, 2),
        (RotationStep::Remove, 1),
    ] {
        tokio::task::yield_now().await;
        world.authority.step(step, "test", NOW).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(handle.current().trust().roots().len(), roots, "{step}");
    }
    let active = world.authority.active_root();
    let current = handle.current();
    assert_eq!(current.trust().root_keys().collect::<Vec<_>>(), [active]);
}

fn deny(list: &Revocations, handle: &IdentityHandle) {
    list.update(|set| {
        let name = handle.current().verified().name().clone();
        set.certificates.insert(name);
    });
}

/// Waits for what another task does, while the paused clock moves by no more than `most`.
async fn settle(what: &str, most: Duration, look: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + most;
    while !look() {
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const LONG: Duration = Duration::from_secs(3 * 3600);

#[tokio::test(start_paused = true)]
async fn a_revoked_identity_is_not_renewed_when_renewal_is_due() {
    let world = world(3600);
    let (mut renewal, source) = renewal(&world);
    let (handle, list) = (renewal.handle.clone(), renewal.revocations.clone());
    let reported = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&reported);
    renewal.on_event = Arc::new(move |event, _| {
        if matches!(event, Event::Revoked) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let first = serial(&handle);
    tokio::spawn(renewal.run(source));
    deny(&list, &handle);
    settle("it is revoked", Duration::from_secs(1), || {
        handle.health().revoked
    })
    .await;
    let now = NOW + Duration::from_secs(1);
    assert!(handle.problem(now).unwrap().contains("revoked"));
    // Past two thirds of its life, past its end, and past a change of the roots.
    tokio::time::sleep(LONG).await;
    world
        .authority
        .step(RotationStep::Prepare, "test", NOW)
        .unwrap();
    tokio::time::sleep(LONG).await;
    assert_eq!(serial(&handle), first);
    assert!(handle.health().revoked);
    assert_eq!(reported.load(Ordering::Relaxed), 1, "reported once");
}

#[tokio::test(start_paused = true)]
async fn a_failing_renewal_stops_once_revoked() {
    let world = world(3600);
    let (renewal, inner) = renewal(&world);
    let (handle, list) = (renewal.handle.clone(), renewal.revocations.clone());
    let first = serial(&handle);
    let failures = AtomicU32::new(3);
    tokio::spawn(renewal.run(Flaky { inner, failures }));
    settle("it fails", LONG, || handle.health().failures == 1).await;
    deny(&list, &handle);
    settle("it is revoked", Duration::from_secs(1), || {
        handle.health().revoked
    })
    .await;
    tokio::time::sleep(LONG).await;
    assert_eq!(serial(&handle), first);
    assert!(handle.health().failures <= 2, "no further attempt");
}

/// Revokes its own identity in the middle of a fetch that would have been good.
struct Racing {
    inner: AuthoritySource,
    list: Revocations,
}

impl IdentitySource for Racing {
    fn name(&self) -> &'static str {
        "racing"
    }

    async fn fetch(&self, current: &Identity) -> Result<Identity, SourceError> {
        let next = self.inner.fetch(current).await?;
        self.list.update(|set| {
            set.certificates.insert(current.verified().name().clone());
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(next)
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }

    fn issues(&self) -> bool {
        true
    }

    fn remedy(&self) -> &'static str {
        "none"
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_during_a_renewal_takes_precedence() {
    let world = world(3600);
    let (renewal, inner) = renewal(&world);
    let (handle, list) = (renewal.handle.clone(), renewal.revocations.clone());
    let first = serial(&handle);
    tokio::spawn(renewal.run(Racing { inner, list }));
    settle("it is revoked", LONG, || handle.health().revoked).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(serial(&handle), first);
}

#[tokio::test(start_paused = true)]
async fn a_reported_revocation_stops_renewal() {
    let world = world(3600);
    let (renewal, source) = renewal(&world);
    let handle = renewal.handle.clone();
    let first = handle.current().leaf().serial.clone();
    tokio::spawn(renewal.run(source));
    handle.report_revoked(&"77".parse().unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!handle.health().revoked, "another certificate");
    handle.report_revoked(&first);
    settle("it is revoked", Duration::from_secs(1), || {
        handle.health().revoked
    })
    .await;
    tokio::time::sleep(LONG).await;
    assert_eq!(handle.current().leaf().serial, first);
}

#[tokio::test(start_paused = true)]
async fn the_authority_refuses_to_renew_a_revoked_certificate() {
    let world = world(3600);
    let list = Revocations::default();
    world.authority.enforce(list.clone());
    let (renewal, source) = renewal(&world);
    let handle = renewal.handle.clone();
    let current = handle.current();
    source.fetch(&current).await.unwrap();
    deny(&list, &handle);
    let refused = source.fetch(&current).await.unwrap_err();
    assert!(refused.is_revocation(), "{refused}");
    // The renewal itself does not know of the revocation; the issuer does.
    tokio::spawn(renewal.run(source));
    settle("it is revoked", LONG, || handle.health().revoked).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_start_of_an_identity_revokes_nothing() {
    let world = world(3600);
    world.authority.enforce(Revocations::default());
    let (renewal, source) = renewal(&world);
    let current = renewal.handle.current();
    let begins = NOW;
    let begins_at = [(world.request.id.clone(), begins)];
    world.authority.raise_not_before(&begins_at).unwrap();
    assert!(current.leaf().not_before < begins);
    let next = source.fetch(&current).await.unwrap();
    assert_eq!(next.leaf().not_before, begins);
}

/// On a paused clock: time passes only when the renewal has nothing more to do.
#[tokio::test(start_paused = true)]
async fn revoked_files_are_replaced_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let time: Arc<dyn TimeProvider> = Arc::new(rustls::time_provider::DefaultTimeProvider);
    let now = Duration::from_secs(time.current_time().unwrap().as_secs());
    let ca = Authority::init(
        &dir.path().join("ca"),
        "tars.local",
        Lifetimes::default(),
        now,
    )
    .unwrap();
    let files = IdentityFiles::in_dir(&dir.path().join("id"));
    let request = Request::new(
        SpiffeId::new("tars.local", "/auth").unwrap(),
        Duration::from_secs(600),
    );
    let (first, next) = (
        ca.issue(&request, now).unwrap(),
        ca.issue(&request, now).unwrap(),
    );
    files.save(&first, &ca.bundle_pem()).unwrap();
    let handle = IdentityHandle::new(files.load(&time).unwrap());
    let list = Revocations::default();
    let renewal = Renewal {
        handle: handle.clone(),
        revocations: list.clone(),
        time: Arc::clone(&time),
        on_event: Arc::new(|_, _| {}),
        delay: Arc::new(|failures, _| HALF_A_SECOND * failures),
    };
    tokio::spawn(renewal.run(FileSource::new(files.clone(), time)));
    deny(&list, &handle);
    let limit = Duration::from_secs(20);
    settle("it is revoked", limit, || handle.health().revoked).await;
    // The same certificate again is still revoked; another one is not.
    files.save(&first, &ca.bundle_pem()).unwrap();
    tokio::time::sleep(2 * source::POLL_INTERVAL).await;
    assert!(handle.health().revoked);
    files.save(&next, &ca.bundle_pem()).unwrap();
    settle("it is valid again", limit, || !handle.health().revoked).await;
    assert_eq!(serial(&handle), next.name.serial.to_string());
}

#[tokio::test]
async fn changed_files_are_loaded_and_a_half_written_set_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let time: Arc<dyn TimeProvider> = Arc::new(rustls::time_provider::DefaultTimeProvider);
    let now = Duration::from_secs(time.current_time().unwrap().as_secs());
    let ca = Authority::init(
        &dir.path().join("ca"),
        "tars.local",
        Lifetimes::default(),
        now,
    )
    .unwrap();
    let files = IdentityFiles::in_dir(&dir.path().join("id"));
    let request = Request::new(
        SpiffeId::new("tars.local", "/auth").unwrap(),
        Duration::from_secs(600),
    );
    files
        .save(&ca.issue(&request, now).unwrap(), &ca.bundle_pem())
        .unwrap();
    let handle = IdentityHandle::new(files.load(&time).unwrap());
    let renewal = Renewal {
        handle: handle.clone(),
        revocations: Revocations::default(),
        time: Arc::clone(&time),
        on_event: Arc::new(|_, _| {}),
        delay: Arc::new(|failures, _| HALF_A_SECOND * failures),
    };
    tokio::spawn(renewal.run(FileSource::new(files.clone(), time)));
    let first = serial(&handle);
    let next = ca.issue(&request, now).unwrap();
    // The certificate is replaced before its key.
    std::fs::write(&files.cert, &next.chain_pem).unwrap();
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, async {
        while handle.health().failures == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(serial(&handle), first);
    let mut changes = handle.subscribe();
    files.save(&next, &ca.bundle_pem()).unwrap();
    tokio::time::timeout(limit, changes.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(serial(&handle), next.name.serial.to_string());
}
