use super::*;
use crate::{
    fake::{Call, Fault, Rig, caller, unavailable},
    proposals::Decision,
};
use tars_interceptors::usage::{OverQuota, QuotaRefusal, Quotas};
use tars_runtime::db::LostCommit;

/// The steps of a measurement: two seeds, each with both values.
const MEASUREMENT: u64 = 400;
const APPROVE: Decision = Decision::Approve {
    without_assessment: false,
};

fn limit(rig: &Rig, steps: u64) {
    let text = format!("[quota]\ntraining_steps = {steps}");
    rig.quotas.replace(Quotas::default().with(&text).unwrap());
}

async fn propose(rig: &Rig) -> Result<Proposal, HyperSyncError> {
    let dev = caller("dev", &[]);
    rig.service.propose(&dev, "study", "a note", Some(2)).await
}

async fn apply(rig: &Rig, id: Uuid) -> Result<Proposal, HyperSyncError> {
    let ada = caller("ada", &[]);
    rig.service.apply_approved(&ada, id).await
}

async fn approved(rig: &Rig) -> Uuid {
    let id = propose(rig).await.unwrap().id;
    rig.until(id, |p| p.change.is_assessed()).await;
    let bob = caller("bob", &[]);
    rig.service.decide(&bob, id, APPROVE, "good").await.unwrap();
    id
}

/// What was charged to each user, by source.
async fn charged(rig: &Rig) -> Vec<(String, String, u64)> {
    let mut db = rig.service.store.db().read("test.outbox");
    let mut sums: Vec<(String, String, u64)> = Vec::new();
    for item in usage::peek(&mut db, 1000).await.unwrap() {
        assert_eq!(item.dimension, Dimension::TrainingSteps);
        match sums.last_mut() {
            Some((source, _, sum)) if *source == item.source => *sum += item.amount,
            _ => sums.push((item.source, item.user_id, item.amount)),
        }
    }
    sums
}

async fn promised(rig: &Rig, owner: &str) -> u64 {
    let mut db = rig.service.store.db().read("test.promised");
    store::promised_steps(&mut db, owner).await.unwrap()
}

fn over<T: std::fmt::Debug>(refused: Result<T, HyperSyncError>) -> OverQuota {
    match refused {
        Err(HyperSyncError::Quota(QuotaRefusal::Over(over))) => over,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_assessment_is_charged_to_the_proposer_and_a_verification_to_whoever_applied() {
    let rig = Rig::start().await;
    let id = approved(&rig).await;
    apply(&rig, id).await.unwrap();
    rig.until_state(id, State::Completed).await;
    let of = |purpose: &str, user: &str| (format!("{purpose}:{id}"), user.to_owned(), MEASUREMENT);
    assert_eq!(
        charged(&rig).await,
        [of("assessment", "dev"), of("verification", "ada")]
    );
    let text = rig.metrics.open_metrics().unwrap();
    let counted = "usage_counted_total{dimension=\"training_steps\"} 800";
    assert!(text.contains(counted), "{text}");
}

#[tokio::test]
async fn a_proposal_is_refused_before_it_is_written_when_its_assessment_does_not_fit() {
    let rig = Rig::start().await;
    limit(&rig, MEASUREMENT - 1);
    let refused = over(propose(&rig).await);
    assert_eq!((refused.limit, refused.asked), (399, MEASUREMENT));
    let (rows, _) = rig.service.list(store::Which::All, "", 10).await.unwrap();
    assert!(rows.is_empty() && charged(&rig).await.is_empty());
    assert_eq!(rig.world.count(Call::Evaluate), 0);
    limit(&rig, MEASUREMENT);
    let id = propose(&rig).await.unwrap().id;
    rig.until(id, |p| p.change.is_assessed()).await;
}

#[tokio::test]
async fn a_proposal_stays_approved_when_its_verification_does_not_fit() {
    let rig = Rig::start().await;
    let id = approved(&rig).await;
    limit(&rig, MEASUREMENT - 1);
    assert_eq!(over(apply(&rig, id).await).asked, MEASUREMENT);
    assert_eq!(rig.state(id).await, State::Approved);
    assert_eq!(rig.world.count(Call::Apply), 0);
    limit(&rig, MEASUREMENT);
    apply(&rig, id).await.unwrap();
    rig.until_state(id, State::Completed).await;
}

#[tokio::test]
async fn what_a_measurement_may_still_take_is_promised_to_it_until_it_ends() {
    let rig = Rig::start().await;
    rig.world.inject(Call::Evaluate, Fault::Hang);
    let id = propose(&rig).await.unwrap().id;
    rig.until_charged(MEASUREMENT / 2).await;
    assert_eq!(account(&rig).await, MEASUREMENT);
    let dev = caller("dev", &[]);
    rig.service.withdraw(&dev, id, "").await.unwrap();
    assert_eq!(promised(&rig, "dev").await, 0);
    assert!(sum(&rig).await > 0, "what has begun stays charged");
}

/// What is promised and charged together, at a moment at which no further run is charged.
async fn account(rig: &Rig) -> u64 {
    loop {
        let (before, charged) = (promised(rig, "dev").await, sum(rig).await);
        if promised(rig, "dev").await == before {
            return before + charged;
        }
    }
}

async fn sum(rig: &Rig) -> u64 {
    charged(rig).await.iter().map(|(_, _, amount)| amount).sum()
}

#[tokio::test]
async fn runs_that_are_repeated_after_a_failure_are_charged_once() {
    let rig = Rig::start().await;
    rig.world.fail(2, Call::Evaluate, &unavailable());
    let id = propose(&rig).await.unwrap().id;
    rig.until(id, |p| p.change.is_assessed()).await;
    assert!(rig.world.count(Call::Evaluate) > 4);
    assert_eq!(sum(&rig).await, MEASUREMENT);
}

#[tokio::test]
async fn a_charge_whose_commit_is_in_doubt_is_made_once() {
    for lost in [LostCommit::Made, LostCommit::Undone] {
        let rig = Rig::start().await;
        rig.service.store.db().lose_commit("proposals.charge", lost);
        let id = propose(&rig).await.unwrap().id;
        rig.until(id, |p| p.change.is_assessed()).await;
        assert_eq!(sum(&rig).await, MEASUREMENT);
    }
}

#[tokio::test]
async fn a_killed_process_leaves_nothing_uncharged_and_charges_nothing_twice() {
    let rig = Rig::start().await;
    rig.world.inject(Call::Evaluate, Fault::Hang);
    let id = propose(&rig).await.unwrap().id;
    rig.until_charged(1).await;
    let rig = rig.restart().await;
    rig.resume().await;
    rig.until(id, |p| p.change.is_assessed()).await;
    assert_eq!(sum(&rig).await, MEASUREMENT);
    assert_eq!(promised(&rig, "dev").await, 0);
}

#[tokio::test]
async fn a_measurement_from_before_there_were_charges_is_charged_as_far_as_its_owner_is_known() {
    let rig = Rig::start().await;
    let old = rig.put(State::Verifying).await;
    let lease = rig.take("test").await;
    let fence = lease.fence();
    let charge = || {
        rig.service
            .charge(old.id, Purpose::Verification, (3, 100), &fence)
    };
    charge().await.unwrap();
    charge().await.unwrap();
    assert_eq!(sum(&rig).await, 300);
    let unknown = rig
        .insert(Proposal {
            id: Uuid::now_v7(),
            agent_id: "ethical".to_owned(),
            applier_owner: String::new(),
            change: crate::store::tests::trial(4),
            ..old
        })
        .await;
    let charge = rig
        .service
        .charge(unknown.id, Purpose::Verification, (3, 100), &fence);
    charge.await.unwrap();
    assert_eq!(sum(&rig).await, 300);
}

impl Rig {
    /// Waits until at least so many steps were charged.
    async fn until_charged(&self, least: u64) {
        let charged = async {
            while sum(self).await < least {
                tokio::task::yield_now().await;
            }
        };
        let charged = tokio::time::timeout(std::time::Duration::from_secs(20), charged).await;
        charged.expect("it is charged");
    }
}
