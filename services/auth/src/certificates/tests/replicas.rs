//! The authority as two replicas share it.

use super::*;
use crate::replicas::{Replica, Shared, eventually};
use crate::store;
use tars_certs::ca::Contents;
use tars_runtime::db::Query;

/// Two replicas without a bus between them, and what they share.
async fn pair() -> (World, World, Shared) {
    let shared = Shared::new();
    let one = world(&shared, shared.replica().await);
    let two = world(&shared, shared.replica().await);
    enroll_ada(&one.auth).await;
    (one, two, shared)
}

fn world(shared: &Shared, replica: Replica) -> World {
    World {
        dir: replica.dir,
        place: shared.place.clone(),
        auth: replica.auth,
        clock: replica.clock,
    }
}

impl World {
    fn authority(&self) -> &Arc<Authority> {
        self.auth.certificates().authority().unwrap()
    }

    fn root_keys(&self) -> Vec<KeyId> {
        let roots = self.authority().root_infos();
        roots.iter().map(|root| root.key).collect()
    }

    fn shared(&self) -> &Arc<SharedAuthority> {
        self.auth.shared.as_ref().unwrap()
    }

    /// Ends the task that adopts what the other replica has changed.
    fn stop_adopting(&self) {
        self.auth._adopting.as_ref().unwrap().abort();
    }

    async fn step(&self, step: RotationStep) -> Result<(u64, tars_certs::ca::RootInfo), AuthError> {
        self.auth.step_roots("ada", step, false).await
    }

    async fn report(&self, peer: &NewIdentity, instance: Uuid) {
        let (peer, roots) = (self.verified(peer), self.root_keys());
        let reported = self.auth.report_trust(&peer, instance, &roots).await;
        reported.unwrap();
    }

    /// What the processes of this replica do by themselves after a step: its own identity is renewed,
    /// and reported to the other one.
    async fn settle(&self) {
        self.shared().catch_up().await.unwrap();
        self.refresh_managed();
        self.auth.report_own_trust().await.unwrap();
    }

    fn key_file(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("ca/root-1/root.key")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn two_first_starters_have_one_authority() {
    let shared = Shared::new();
    let (one, two) = tokio::join!(shared.replica(), shared.replica());
    let (one, two) = (world(&shared, one), world(&shared, two));
    enroll_ada(&one.auth).await;
    assert_eq!(one.root_keys(), two.root_keys());
    assert_eq!(one.key_file(), two.key_file());
    // A token of one is good at the other, once.
    let token = one.token("/automl").await;
    let csr = key_and_csr().1;
    let joined = two.auth.issue_with_token(token.as_str(), &csr, "x").await;
    let joined = joined.unwrap();
    let again = one.auth.issue_with_token(token.as_str(), &csr, "x").await;
    assert!(matches!(again, Err(AuthError::JoinToken)), "{again:?}");
    one.renew(&joined).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_folder_from_before_the_first_start_is_what_the_database_begins_with() {
    let shared = Shared::new();
    let filled = || {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        let made = Authority::init(&ca, "tars.local", Lifetimes::default(), NOW).unwrap();
        (dir, made)
    };
    let (dir, made) = filled();
    let one = shared.replica_in(dir, Bus::local()).await.unwrap();
    let two = world(&shared, shared.replica().await);
    assert_eq!(two.authority().roots(), made.roots());
    drop(one);
    // Another folder has another authority, which is neither used nor lost.
    let (dir, other) = filled();
    let ca = dir.path().join("ca");
    let Err(refused) = shared.replica_in(dir, Bus::local()).await else {
        panic!("accepted");
    };
    let text = refused.to_string();
    assert!(text.contains(&*ca.display().to_string()), "{text}");
    assert!(text.contains("move it away"), "{text}");
    assert_ne!(other.roots(), made.roots());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_refused_start_leaves_the_folder_with_another_authority_alone() {
    let (_one, _two, shared) = pair().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let own = Authority::init(&ca, "tars.local", Lifetimes::default(), NOW).unwrap();
    let vault = shared.vault(dir.path()).await.unwrap();
    let opened = vault.authority(&ca, "tars.local", Lifetimes::default(), NOW);
    let refused = opened.await.unwrap_err();
    let AuthError::Ca(tars_certs::CaError::Foreign(named)) = refused else {
        panic!("{refused}");
    };
    assert_eq!(named, ca);
    let kept = Authority::open(&ca, "tars.local", Lifetimes::default(), NOW).unwrap();
    assert_eq!(kept.roots(), own.roots());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn the_steps_of_a_rotation_are_taken_at_alternating_replicas() {
    let (one, two, _shared) = pair().await;
    let worlds = [&one, &two];
    let (mut peer, instance) = (one.join("/automl").await, Uuid::now_v7());
    for world in worlds {
        world.settle().await;
    }
    for (turn, step) in RotationStep::ALL.into_iter().enumerate() {
        let (here, there) = (worlds[turn % 2], worlds[(turn + 1) % 2]);
        let (version, _) = here.step(step).await.unwrap();
        assert_eq!(version, 2 + turn as u64);
        for world in worlds {
            world.settle().await;
            assert_eq!(world.authority().version(), version);
        }
        peer = there.renew(&peer).await.unwrap();
        there.report(&peer, instance).await;
    }
    assert_eq!(one.root_keys(), two.root_keys());
    assert_eq!(one.root_keys().len(), 1);
    two.auth.sequence_once().await.unwrap();
    let filter = crate::audit::Filter {
        event_type: "root.stepped".to_owned(),
        ..Default::default()
    };
    let (records, _) = one.auth.list_audit(&filter, "", 50).await.unwrap();
    assert_eq!(records.len(), 5, "the first root and four steps, each once");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_step_waits_for_what_was_reported_to_either_replica() {
    let (one, two, _shared) = pair().await;
    let (first, second) = (one.join("/automl").await, one.join("/hypersync").await);
    let instances = [Uuid::now_v7(), Uuid::now_v7()];
    one.report(&first, instances[0]).await;
    two.report(&second, instances[1]).await;
    one.step(RotationStep::Prepare).await.unwrap();
    for world in [&one, &two] {
        world.settle().await;
        let status = world.auth.roots().await.unwrap();
        assert_eq!(status.waiting_for.len(), 2, "{status:?}");
    }
    two.report(&first, instances[0]).await;
    let early = one.step(RotationStep::Activate).await.unwrap_err();
    let AuthError::PeersNotReady(names) = early else {
        panic!("{early}");
    };
    assert!(names[0].contains(&instances[1].to_string()), "{names:?}");
    two.report(&second, instances[1]).await;
    one.step(RotationStep::Activate).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_step_waits_for_the_other_replica_itself_until_it_takes_leave() {
    let (one, two, _shared) = pair().await;
    for world in [&one, &two] {
        world.settle().await;
    }
    one.step(RotationStep::Prepare).await.unwrap();
    one.settle().await;
    let early = one.step(RotationStep::Activate).await.unwrap_err();
    let AuthError::PeersNotReady(names) = early else {
        panic!("{early}");
    };
    assert!(
        matches!(&names[..], [n] if n.contains("/auth")),
        "{names:?}"
    );
    two.auth.take_leave().await;
    two.clock.advance(Duration::from_secs(60));
    two.auth.do_own_work().await;
    one.step(RotationStep::Activate).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_report_that_overtakes_the_record_of_its_certificate_replaces_the_one_before() {
    let (one, two, _shared) = pair().await;
    let instance = Uuid::now_v7();
    // A service in the process of one replica reports to the other.
    let report = async || {
        let own = two.auth.certificates().own.current();
        let roots: Vec<KeyId> = own.trust().root_keys().collect();
        let reported = one.auth.report_trust(own.verified(), instance, &roots);
        reported.await.unwrap();
    };
    two.refresh_managed();
    two.auth.import_journal().await.unwrap();
    report().await;
    one.step(RotationStep::Prepare).await.unwrap();
    one.refresh_own();
    two.shared().catch_up().await.unwrap();
    two.refresh_managed();
    report().await;
    let waiting_for = async || one.auth.roots().await.unwrap().waiting_for.len();
    assert_eq!(waiting_for().await, 1, "for what was reported before");
    two.auth.import_journal().await.unwrap();
    assert_eq!(waiting_for().await, 0);
    assert_eq!(one.auth.reports().await.unwrap().len(), 1);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_process_that_reports_to_one_replica_has_not_departed_at_the_other() {
    let (one, two, _shared) = pair().await;
    let (peer, instance) = (one.join("/automl").await, Uuid::now_v7());
    one.report(&peer, instance).await;
    two.step(RotationStep::Prepare).await.unwrap();
    two.refresh_own();
    let old = one.verified(&peer);
    for _ in 0..4 {
        for world in [&one, &two] {
            world.clock.advance(Duration::from_secs(60));
        }
        let reported = one.auth.report_trust(&old, instance, &[]).await;
        reported.unwrap();
        two.auth.do_own_work().await;
    }
    let early = two.step(RotationStep::Activate).await.unwrap_err();
    assert!(matches!(early, AuthError::PeersNotReady(_)), "{early}");
    // Once it is silent, it has departed at both.
    for world in [&one, &two] {
        world.clock.advance(Duration::from_secs(91));
        let status = world.auth.roots().await.unwrap();
        assert!(status.departed.iter().any(|d| d.contains("/automl")));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_replica_that_is_behind_takes_no_step_without_its_peers() {
    let (one, two, _shared) = pair().await;
    two.stop_adopting();
    let (peer, instance) = (one.join("/automl").await, Uuid::now_v7());
    one.report(&peer, instance).await;
    one.step(RotationStep::Prepare).await.unwrap();
    // As far as its working copy goes, the next step is another one, for which nobody has to be ready.
    let early = two.step(RotationStep::Activate).await.unwrap_err();
    assert!(matches!(early, AuthError::PeersNotReady(_)), "{early}");
    let again = two.step(RotationStep::Prepare).await.unwrap_err();
    assert!(
        matches!(&again, AuthError::Ca(tars_certs::CaError::Order(_))),
        "{again}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_step_that_two_replicas_take_at_once_is_taken_once() {
    let (one, two, _shared) = pair().await;
    let (first, second) = tokio::join!(
        one.step(RotationStep::Prepare),
        two.step(RotationStep::Prepare),
    );
    assert_ne!(first.is_ok(), second.is_ok(), "{first:?} {second:?}");
    let refused = first.err().or(second.err()).unwrap();
    let is_known = matches!(
        &refused,
        AuthError::Conflict | AuthError::Ca(tars_certs::CaError::Order(_))
    );
    assert!(is_known, "{refused}");
    for world in [&one, &two] {
        world.shared().catch_up().await.unwrap();
        assert_eq!(
            (world.authority().version(), world.root_keys().len()),
            (2, 2)
        );
    }
    assert_eq!(one.root_keys(), two.root_keys());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_step_computed_for_older_roots_is_refused() {
    let (one, two, _shared) = pair().await;
    let before = one.authority().version();
    two.step(RotationStep::Prepare).await.unwrap();
    let late = one.shared().step(RotationStep::Activate, "ada", before);
    let late = late.await.unwrap_err();
    assert!(matches!(late, AuthError::Conflict), "{late}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_replica_adopts_roots_before_it_announces_them() {
    let (one, two, _shared) = pair().await;
    two.stop_adopting();
    let (version, _) = one.step(RotationStep::Prepare).await.unwrap();
    let mut bundles = two.auth.certificates().feed.bundles();
    let announced = bundles.wait_for(|b| b.as_ref().is_some_and(|b| b.version == version));
    let announced = tokio::time::timeout(Duration::from_secs(20), announced).await;
    assert_eq!(announced.unwrap().unwrap().as_ref().unwrap().roots.len(), 2);
    assert_eq!(two.authority().version(), version);
    let whole = two.auth.snapshots.take().await.unwrap();
    assert_eq!(whole.bundle.unwrap().version, version);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_snapshot_has_the_roots_of_the_database() {
    let (one, two, _shared) = pair().await;
    two.stop_adopting();
    two.auth._publishing.abort();
    let (version, _) = one.step(RotationStep::Prepare).await.unwrap();
    assert!(two.authority().version() < version);
    let whole = two.auth.snapshots.take().await.unwrap();
    assert_eq!(whole.bundle.unwrap().version, version);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_change_is_adopted_without_a_hint() {
    let (one, two, _shared) = pair().await;
    let (version, _) = one.step(RotationStep::Prepare).await.unwrap();
    eventually("the step is adopted", || {
        two.authority().version() == version
    })
    .await;
    assert_eq!(one.root_keys(), two.root_keys());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_change_is_adopted_at_the_hint_of_another_replica() {
    let (shared, bus) = (Shared::new(), Bus::local());
    let one = world(&shared, shared.replica_on(bus.clone()).await);
    let two = world(&shared, shared.replica_on(bus.clone()).await);
    // One without the periodic read takes the place of the task that adopts.
    two.stop_adopting();
    let copy = Arc::clone(two.shared());
    let _hinted = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        let mut table = bus.follow(shared::TOPIC);
        loop {
            if table.wait(0).await == tars_runtime::bus::Wake::Hint {
                copy.catch_up().await.unwrap();
            }
        }
    }));
    let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
    for version in 2..5 {
        let floor = (id.clone(), NOW + Duration::from_secs(version));
        let raise = |_: &Authority, contents: &mut Contents| {
            Ok(contents.raise_not_before(std::slice::from_ref(&floor)))
        };
        one.shared().change(raise).await.unwrap();
        let adopted = || two.authority().copy_version() == Some(version);
        eventually("the change is adopted", adopted).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_floor_that_one_replica_raises_holds_at_the_other_at_once() {
    let (one, two, _shared) = pair().await;
    two.stop_adopting();
    let old = one.join("/automl").await;
    for world in [&one, &two] {
        world.clock.advance(Duration::from_secs(10));
    }
    let id: SpiffeId = "spiffe://tars.local/automl".parse().unwrap();
    let target = Target::Identity {
        id: id.clone(),
        before: None,
    };
    let rows = one.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert_eq!(rows.len(), 2);
    let new = two.join("/automl").await;
    let start = two.verified(&new).certificate.not_before;
    assert_eq!(start, two.clock.now(), "not backdated past the revocation");
    assert!(!one.denied(&new) && one.denied(&old));
    eventually("the deny-list has arrived", || two.denied(&old)).await;
    assert!(!two.denied(&new));
    let renewed = two.renew(&old).await;
    assert!(matches!(renewed, Err(AuthError::LineageEnded)));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_revocation_and_its_floor_are_made_together_or_not_at_all() {
    let (one, two, _shared) = pair().await;
    let old = one.join("/automl").await;
    one.clock.advance(Duration::from_secs(10));
    let target = Target::Identity {
        id: "spiffe://tars.local/automl".parse().unwrap(),
        before: None,
    };
    let lost = tars_runtime::db::LostCommit::Undone;
    one.auth.db().lose_commit("certificates.revoke", lost);
    let refused = one.auth.revoke(&ada(), &target, "stolen").await;
    assert!(matches!(refused, Err(AuthError::Store(_))), "{refused:?}");
    for world in [&one, &two] {
        world.clock.advance(Duration::from_secs(30));
        world.shared().catch_up().await.unwrap();
        assert!(!world.denied(&old));
        let new = world.join("/automl").await;
        let start = world.verified(&new).certificate.not_before;
        assert!(start < world.clock.now(), "there is no floor");
    }
    let again = one.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert!(!again.is_empty());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_step_whose_commit_is_in_doubt_is_what_the_database_says() {
    use tars_runtime::db::LostCommit::{Made, Undone};
    let (one, two, _shared) = pair().await;
    for (lost, version) in [(Undone, 1), (Made, 2)] {
        one.auth.db().lose_commit("authority.change", lost);
        let doubt = one.step(RotationStep::Prepare).await.unwrap_err();
        assert!(matches!(doubt, AuthError::Store(_)), "{doubt}");
        for world in [&one, &two] {
            world.shared().catch_up().await.unwrap();
            assert_eq!(world.authority().version(), version, "{lost:?}");
        }
    }
    // Whichever replica notices it first records it.
    two.auth.record_late_steps().await.unwrap();
    let bundle = two.auth.snapshots.take().await.unwrap().bundle.unwrap();
    assert_eq!(bundle.version, 2);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn the_intermediate_is_renewed_once_and_certificates_below_it_at_either_replica() {
    let (one, two, _shared) = pair().await;
    for world in [&one, &two] {
        world.stop_adopting();
        world.clock.advance(Duration::from_secs(21 * 86_400));
    }
    let before = one.authority().copy_version();
    let (first, second) = tokio::join!(one.shared().renew_if_due(), two.shared().renew_if_due(),);
    first.and(second).unwrap();
    assert_eq!(one.authority().copy_version(), before.map(|v| v + 1));
    assert_eq!(
        one.authority().copy_version(),
        two.authority().copy_version()
    );
    // The next one is renewed by one replica, and the other has not heard of it.
    for world in [&one, &two] {
        world.clock.advance(Duration::from_secs(21 * 86_400));
    }
    one.shared().renew_if_due().await.unwrap();
    let issued = one.join("/automl").await;
    let issuer = one.verified(&issued).name().issuer;
    assert!(two.authority().root_above(&issuer).is_none());
    two.renew(&issued).await.unwrap();
    assert!(two.authority().root_above(&issuer).is_some());
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn lists_are_signed_for_the_intermediates_of_every_replica() {
    let (one, two, _shared) = pair().await;
    two.stop_adopting();
    for world in [&one, &two] {
        world.clock.advance(Duration::from_secs(21 * 86_400));
    }
    one.shared().renew_if_due().await.unwrap();
    for world in [&two, &one] {
        assert_eq!(world.auth.signed_lists().await.unwrap().len(), 2);
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn signed_lists_are_numbered_upwards_whichever_replica_signs() {
    let (one, two, _shared) = pair().await;
    two.clock.step_back(Duration::from_secs(30));
    let mut numbers = Vec::new();
    for (turn, path) in ["/client/a", "/client/b", "/client/c"].iter().enumerate() {
        let signer = [&one, &two][turn % 2];
        let serial = one.verified(&one.join(path).await).certificate.serial;
        let target = Target::Certificate {
            issuer: None,
            serial,
        };
        signer.auth.revoke(&ada(), &target, "lost").await.unwrap();
        let lists = signer.auth.signed_lists().await.unwrap();
        let (_, list) = x509_parser::parse_x509_crl(&lists[0]).unwrap();
        assert_eq!(list.iter_revoked_certificates().count(), turn + 1);
        numbers.push(list.crl_number().unwrap().to_bytes_be());
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn revoking_a_certificate_of_one_replica_leaves_those_of_the_other() {
    let (one, two, _shared) = pair().await;
    let own = |world: &World| world.auth.certificates().own.current();
    for world in [&one, &two] {
        world.refresh_managed();
        world.auth.import_journal().await.unwrap();
    }
    let (listed, _) = one.auth.list_certificates("", "", 50).await.unwrap();
    let managed = listed.iter().filter(|l| l.row.source == "authority");
    let lineages: Vec<Uuid> = managed.map(|l| l.row.lineage).collect();
    assert!(matches!(&lineages[..], [a, b] if a != b), "{lineages:?}");
    let target = Target::Certificate {
        issuer: None,
        serial: own(&one).leaf().serial.clone(),
    };
    let rows = two.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let list = &two.auth.certificates().feed.revocations;
    assert!(list.denies(own(&one).verified()) && !list.denies(own(&two).verified()));
}

impl World {
    /// Replaces Auth's own identity by one that its process manages.
    fn refresh_managed(&self) {
        let time: Arc<dyn TimeProvider> = Arc::new(self.clock.clone());
        let id = "spiffe://tars.local/auth".parse().unwrap();
        let request = Request::new(id, Duration::from_secs(3600)).managed_by_authority();
        let issued = self.authority().issue(&request, self.clock.now()).unwrap();
        let own = Identity::new(issued.into_parts(self.authority().roots()), &time).unwrap();
        self.auth.certificates().own.publish(own);
    }
}

/// What a database lacks that falls back, to a standby without the last commits.
struct Earlier {
    sealed: Vec<u8>,
    recorded: i64,
}

impl Earlier {
    async fn read(world: &World) -> Self {
        let mut tx = world.auth.store.begin("test.earlier").await.unwrap();
        let row = store::sealed(&mut *tx, crate::vault::AUTHORITY).await;
        Self {
            sealed: row.unwrap().unwrap().sealed,
            recorded: super::super::store::recorded_step(&mut tx).await.unwrap(),
        }
    }

    /// Puts the first version of the authority back.
    async fn put(&self, world: &World) {
        const PUT: &str =
            "UPDATE sealed_secrets SET version = 1, sealed = $1 WHERE name = 'authority'";
        let mut tx = world.auth.store.begin("test.fall_back").await.unwrap();
        let put = Query::new(PUT).bind(self.sealed.as_slice());
        tx.execute(put).await.unwrap().one().unwrap();
        let recorded = super::super::store::record_step(&mut tx, self.recorded);
        recorded.await.unwrap();
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn the_authority_of_every_replica_falls_back_with_the_database() {
    let (one, two, _shared) = pair().await;
    one.stop_adopting();
    two.stop_adopting();
    let earlier = Earlier::read(&one).await;
    one.step(RotationStep::Prepare).await.unwrap();
    two.shared().catch_up().await.unwrap();
    let lost = one.root_keys();
    assert_eq!((lost.len(), &lost), (2, &two.root_keys()));
    earlier.put(&one).await;
    one.clock.advance(Duration::from_secs(1));
    // The next step is taken from what is stored, and has the number of the one that was lost.
    one.step(RotationStep::Prepare).await.unwrap();
    assert_ne!(one.root_keys(), lost);
    let after = Earlier::read(&one).await;
    assert_ne!(after.recorded, earlier.recorded, "it has a record");
    assert_eq!(two.root_keys(), lost);
    two.auth.snapshots.take().await.unwrap();
    assert_eq!(one.root_keys(), two.root_keys());
    // What is announced is what is stored.
    earlier.put(&two).await;
    for world in [&one, &two] {
        let bundle = world.auth.snapshots.take().await.unwrap().bundle.unwrap();
        assert_eq!((bundle.version, bundle.roots.len()), (1, 1));
    }
}
