//! Keeps an identity fresh, from whichever source it comes.
//!
//! One task an identity, so that no renewal runs twice. A failure keeps the old identity and comes
//! again with a growing pause, jittered so that a fleet does not come at once. Pauses are cut into
//! short ones and the wall clock is looked at in between: after a machine's sleep the monotonic
//! clock knows nothing of the hours that passed.

mod source;

pub use source::{AuthoritySource, FileSource};

use crate::{Identity, IdentityError, IdentityHandle, Revocations};
use rustls::time_provider::TimeProvider;
use std::{fmt, sync::Arc, time::Duration};

/// The longest time between two looks at the wall clock.
const LOOK: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A source that hangs is one that fails.
const FETCH_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Who issues said no.
    #[error("{0}")]
    Remote(String),
    /// Who issues cannot be asked now.
    #[error("{0}")]
    Away(String),
    #[error("no answer in {FETCH_LIMIT:?}")]
    Timeout,
}

/// Where identities come from.
pub trait IdentitySource: Send + Sync + 'static {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// The next identity. Nothing is published that peers would refuse: making an [`Identity`]
    /// checks it.
    fn fetch(
        &self,
        current: &Identity,
    ) -> impl Future<Output = Result<Identity, SourceError>> + Send;

    /// Returns when there may be something new before the time of renewal has come.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// Whether asking gives a new certificate. Files change when somebody else changes them.
    fn issues(&self) -> bool;
}

/// What happened to an identity.
#[derive(Debug)]
pub enum Event {
    Renewed,
    Failed,
    Revoked,
}

type Listener = Arc<dyn Fn(&Event, &Identity) + Send + Sync>;

/// What the loop needs besides its source.
#[derive(Clone)]
pub struct Renewal {
    pub handle: IdentityHandle,
    pub revocations: Revocations,
    pub time: Arc<dyn TimeProvider>,
    pub on_event: Listener,
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewal({})", self.handle.current().id())
    }
}

/// When to renew: two thirds into the life that was left when the identity was `got`, moved by
/// `jitter` in -1..=1 times a twentieth of it. Certificates are backdated: the begin that they name
/// says nothing. Never at once: whoever issues lives that are over already must not be flooded.
pub fn renew_at(got: Duration, not_after: Duration, jitter: f64) -> Duration {
    let left = not_after.saturating_sub(got);
    let offset = left.as_secs_f64() * (2.0 / 3.0 + jitter.clamp(-1.0, 1.0) / 20.0);
    got + Duration::from_secs_f64(offset).max(Duration::from_secs(1))
}

/// The pause after a number of failures: doubled each time, capped, and never so long that a
/// short life passes in it; moved by `jitter` in -1..=1 times a fifth.
pub fn pause(failures: u32, life: Duration, jitter: f64) -> Duration {
    let cap = (life / 10).clamp(FIRST_PAUSE, MAX_PAUSE);
    let grown = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    grown.min(cap).mul_f64(1.0 + jitter.clamp(-1.0, 1.0) / 5.0)
}

fn jitter() -> f64 {
    rand::random::<f64>() * 2.0 - 1.0
}

impl Renewal {
    fn now(&self) -> Duration {
        let now = self.time.current_time();
        now.map_or(Duration::ZERO, |t| Duration::from_secs(t.as_secs()))
    }

    /// Runs until it is dropped.
    pub async fn run(self, source: impl IdentitySource) {
        let mut retry: Option<Duration> = None;
        let mut got = self.now();
        loop {
            self.until_due(&source, got, retry).await;
            let current = self.handle.current();
            let fetched = tokio::time::timeout(FETCH_LIMIT, source.fetch(&current)).await;
            match fetched.unwrap_or(Err(SourceError::Timeout)) {
                Ok(identity) => {
                    self.publish(identity, &source);
                    (got, retry) = (self.now(), None);
                }
                Err(e) => {
                    let failures = self.handle.failed(&e.to_string());
                    tracing::warn!(id = %current.id(), source = source.name(), error = %e, failures, "certificate not renewed; the old one stays");
                    (self.on_event)(&Event::Failed, &current);
                    // The begin that a certificate names is backdated: only what was left counts.
                    let life = current.leaf().not_after.saturating_sub(got);
                    retry = Some(pause(failures, life, jitter()));
                }
            }
        }
    }

    fn publish(&self, identity: Identity, source: &impl IdentitySource) {
        let leaf = identity.leaf();
        tracing::debug!(id = %leaf.id, serial = %leaf.serial, source = source.name(), "identity renewed");
        self.handle.publish(identity);
        (self.on_event)(&Event::Renewed, &self.handle.current());
    }

    /// Returns when it is time to fetch.
    async fn until_due(
        &self,
        source: &impl IdentitySource,
        got: Duration,
        retry: Option<Duration>,
    ) {
        if let Some(pause) = retry {
            return tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = source.changed() => {}
            };
        }
        let current = self.handle.current();
        tokio::select! {
            () = self.scheduled(&current, got), if source.issues() => {}
            () = source.changed() => {}
            () = self.cut_off(&current) => {}
        }
    }

    async fn scheduled(&self, current: &Identity, got: Duration) {
        let due = renew_at(got, current.leaf().not_after, jitter());
        loop {
            let now = self.now();
            let left = due.saturating_sub(now);
            // A wall that was set back to before the begin: peers would refuse it until then.
            if left.is_zero() || now < current.leaf().not_before {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// A revoked identity is not renewed by itself: that would undo the revocation. It waits for
    /// other files, or for a new start.
    async fn cut_off(&self, current: &Identity) {
        self.revocations.until_denied(current.verified()).await;
        self.handle.revoked();
        tracing::error!(id = %current.id(), serial = %current.leaf().serial, "the own certificate is revoked");
        (self.on_event)(&Event::Revoked, current);
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Authority, IdentityFiles, SpiffeId,
        ca::{Lives, Request, rotation::Step},
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
        let authority =
            Authority::init(&dir.path().join("ca"), "tars.local", Lives::default(), NOW).unwrap();
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
        };
        (renewal, source)
    }

    fn serial(handle: &IdentityHandle) -> String {
        handle.current().leaf().serial.to_string()
    }

    /// Fails as often as it is told to.
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
            Err(SourceError::Remote("away".to_owned()))
        }

        async fn changed(&self) {
            std::future::pending::<()>().await;
        }

        fn issues(&self) -> bool {
            true
        }
    }

    #[test]
    fn renewal_comes_at_two_thirds_of_the_life() {
        let (from, to) = (Duration::from_secs(1000), Duration::from_secs(4000));
        assert_eq!(renew_at(from, to, 0.0), Duration::from_secs(3000));
        assert_eq!(renew_at(from, to, 1.0), Duration::from_secs(3150));
        assert_eq!(renew_at(from, to, -9.0), Duration::from_secs(2850));
        assert_eq!(renew_at(to, from, 0.0), to + Duration::from_secs(1), "over");
    }

    #[test]
    fn pauses_grow_to_a_cap_that_fits_the_life() {
        let hour = Duration::from_secs(3600);
        let steps: Vec<u128> = (1..=9).map(|n| pause(n, hour, 0.0).as_millis()).collect();
        assert_eq!(
            steps,
            [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
        );
        assert_eq!(
            pause(9, Duration::from_secs(20), 0.0),
            Duration::from_secs(2)
        );
        assert_eq!(pause(1, hour, 1.0), Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_a_step_back_makes_early_is_renewed() {
        let world = world(3600);
        let (renewal, source) = renewal(&world);
        let handle = renewal.handle.clone();
        tokio::spawn(renewal.run(source));
        let mut changes = handle.subscribe();
        changes.changed().await.unwrap();
        let early = serial(&handle);
        world.wall.back_s.store(1200, Ordering::Relaxed);
        let limit = tokio::time::timeout(LOOK * 2, changes.changed());
        limit.await.expect("at the next look").unwrap();
        assert_ne!(serial(&handle), early);
        let now = world.time.current_time().unwrap().as_secs();
        assert!(handle.current().leaf().not_before.as_secs() <= now);
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_is_renewed_in_time_and_again() {
        let world = world(3600);
        let (renewal, source) = renewal(&world);
        let handle = renewal.handle.clone();
        let first = serial(&handle);
        tokio::spawn(renewal.run(source));
        tokio::time::sleep(Duration::from_secs(2200)).await;
        assert_eq!(serial(&handle), first, "not before its time");
        tokio::time::sleep(Duration::from_secs(400)).await;
        let second = serial(&handle);
        assert_ne!(second, first);
        tokio::time::sleep(Duration::from_secs(2700)).await;
        assert_ne!(serial(&handle), second);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_keep_the_old_identity_and_end_with_the_first_success() {
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
            health.failures > 0 && health.last_error.as_deref() == Some("away"),
            "{health:?}"
        );
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_ne!(serial(&handle), first);
        assert_eq!(handle.health(), crate::identity::Health::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_of_the_roots_renews_at_once() {
        let world = world(3600);
        let (renewal, source) = renewal(&world);
        let handle = renewal.handle.clone();
        tokio::spawn(renewal.run(source));
        let mut changes = handle.subscribe();
        for (step, roots) in [
            (Step::Prepare, 2),
            (Step::Activate, 2),
            (Step::Taint, 2),
            (Step::Remove, 1),
        ] {
            tokio::task::yield_now().await;
            world.authority.step(step, "test", NOW).unwrap();
            changes.changed().await.unwrap();
            assert_eq!(handle.current().trust().roots().len(), roots, "{step}");
        }
        assert!(
            handle
                .current()
                .trust()
                .trusts(&world.authority.active_root())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_identity_does_not_come_back_by_itself() {
        let world = world(3600);
        let (renewal, source) = renewal(&world);
        let (handle, list) = (renewal.handle.clone(), renewal.revocations.clone());
        let first = serial(&handle);
        tokio::spawn(renewal.run(source));
        list.update(|set| {
            set.certificates
                .insert(handle.current().verified().name().clone());
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(handle.health().revoked);
        let now = NOW + Duration::from_secs(1);
        assert!(handle.problem(now).unwrap().contains("revoked"));
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(serial(&handle), first);
    }

    #[tokio::test]
    async fn files_are_followed_and_a_half_written_set_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let time: Arc<dyn TimeProvider> = Arc::new(rustls::time_provider::DefaultTimeProvider);
        let now = Duration::from_secs(time.current_time().unwrap().as_secs());
        let ca =
            Authority::init(&dir.path().join("ca"), "tars.local", Lives::default(), now).unwrap();
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
        };
        tokio::spawn(renewal.run(FileSource::new(files.clone(), time)));
        let first = serial(&handle);
        let next = ca.issue(&request, now).unwrap();
        // The certificate is there before its key.
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
}
