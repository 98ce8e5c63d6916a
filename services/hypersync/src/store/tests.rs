use super::*;
use crate::change::Tuning;
use std::collections::BTreeSet;
use tars_proto::params::{Param, Params};
use tars_runtime::page;
use tonic::{Code, Status};

pub(crate) fn tuning() -> Tuning {
    let one = |value| Params::from([("gamma".to_owned(), Param::Number(value))]);
    Tuning {
        study_id: "study".into(),
        trial_number: 3,
        current_params: one(0.95),
        new_params: one(0.99),
        new_score: 100.0,
        verification_seeds: 8,
        steps: 100,
        assessment: None,
        verification: None,
    }
}

/// Another trial of the same study, which is verified on two seeds.
pub(crate) fn trial(trial_number: u32) -> Change {
    Change::Tuning(Tuning {
        trial_number,
        verification_seeds: 2,
        ..tuning()
    })
}

pub(crate) fn proposal(state: State) -> Proposal {
    Proposal {
        id: Uuid::now_v7(),
        agent_id: "policy".into(),
        agent_type: "dqn".into(),
        environment: "cartpole".into(),
        change: Change::Tuning(tuning()),
        state,
        proposed_by: "user:dev".into(),
        proposer_owner: "dev".into(),
        decided_by: String::new(),
        applied_by: String::new(),
        applier_owner: String::new(),
        note: String::new(),
        reason: String::new(),
        base_version: 1,
        applied_version: 0,
        assessment_error: String::new(),
        approved_without_assessment: false,
        error: String::new(),
        attention: String::new(),
        resolved_by: String::new(),
        resolution_reason: String::new(),
        forced: false,
        traceparent: String::new(),
        revision: 1,
        created_us: 1,
        decided_us: None,
        applied_us: None,
        ended_us: None,
    }
}

async fn store() -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let place = tars_test_db::place(dir.path(), "hypersync");
    let db = Db::open(place, MIGRATIONS).await.unwrap();
    (Store::open(db).await.unwrap(), dir)
}

async fn insert_one(store: &Store, proposal: &Proposal) -> Result<(), HyperSyncError> {
    let mut tx = store.begin("test.insert").await?;
    insert(&mut tx, proposal).await?;
    Ok(tx.commit().await?)
}

#[tokio::test]
async fn a_list_of_open_proposals_has_every_state_that_is_not_final() {
    let (store, _dir) = store().await;
    for (n, state) in (0..).zip(State::ALL) {
        let mut one = proposal(state);
        (one.agent_id, one.change) = (format!("agent{n}"), trial(n));
        insert_one(&store, &one).await.unwrap();
    }
    for (which, expected) in [
        (Which::All, (|_| true) as fn(&State) -> bool),
        (Which::Pending, |s| *s == State::PendingApproval),
        (Which::Open, |s| !s.is_final()),
    ] {
        let listed = store.list(which, Uuid::max(), page::size(100));
        let listed = listed.await.unwrap().rows;
        let mut listed: Vec<State> = listed.iter().map(|p| p.state).collect();
        listed.sort_by_key(|s| State::ALL.iter().position(|a| a == s));
        let expected: Vec<State> = State::ALL.into_iter().filter(expected).collect();
        assert_eq!(listed, expected, "{which:?}");
    }
}

async fn becomes(
    store: &Store,
    proposal: &mut Proposal,
    state: State,
) -> Result<(), HyperSyncError> {
    let mut next = proposal.clone();
    next.state = state;
    next.revision += 1;
    let mut tx = store.begin("test.update").await?;
    update(&mut tx, &next).await?;
    tx.commit().await?;
    *proposal = next;
    Ok(())
}

#[tokio::test]
async fn a_trial_has_one_open_proposal() {
    let (store, _dir) = store().await;
    let mut first = proposal(State::PendingApproval);
    insert_one(&store, &first).await.unwrap();
    let refused = insert_one(&store, &proposal(State::PendingApproval)).await;
    let Err(HyperSyncError::AlreadyOpen(open)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(open, first.id, "the open one is named");
    let status = Status::from(HyperSyncError::AlreadyOpen(open));
    assert_eq!(status.code(), Code::AlreadyExists);
    let other = Proposal {
        change: trial(4),
        ..proposal(State::PendingApproval)
    };
    insert_one(&store, &other).await.unwrap();
    for open in [State::Approved, State::Applying, State::NeedsAttention] {
        becomes(&store, &mut first, open).await.unwrap();
        let refused = insert_one(&store, &proposal(State::PendingApproval)).await;
        assert!(
            matches!(refused, Err(HyperSyncError::AlreadyOpen(_))),
            "{open:?}"
        );
    }
    becomes(&store, &mut first, State::Kept).await.unwrap();
    insert_one(&store, &proposal(State::PendingApproval))
        .await
        .unwrap();
}

#[test]
fn a_missing_assessment_is_pending_failed_or_not_made() {
    let mut waiting = proposal(State::PendingApproval);
    assert_eq!(waiting.assessed(), Assessment::Pending);
    for gone in [State::Applying, State::Rejected, State::Withdrawn] {
        assert_eq!(proposal(gone).assessed(), Assessment::NotMade);
    }
    waiting.assessment_error = "diverged".into();
    assert_eq!(waiting.assessed(), Assessment::Failed);
    waiting.state = State::Completed;
    assert_eq!(waiting.assessed(), Assessment::Failed);
}

#[tokio::test]
async fn unique_columns_decide_between_racing_proposals() {
    let (store, _dir) = store().await;
    insert_one(&store, &proposal(State::PendingApproval))
        .await
        .unwrap();
    let mut tx = store.begin("test.race").await.unwrap();
    let twice = "INSERT INTO proposals (id, agent_id, state, revision, proposer_owner, document, open_trial) \
                 VALUES ($1, 'policy', 'pending_approval', 1, 'dev', '{}', 'study/3')";
    let refused = tx.execute(Query::new(twice).bind(Uuid::now_v7())).await;
    let racing = lost_claim(refused.unwrap_err());
    assert!(matches!(racing, HyperSyncError::Conflict), "{racing:?}");
    let other = lost_claim(DbError::Failed("no such table".to_owned()));
    assert!(
        matches!(other, HyperSyncError::Store(_)),
        "only a lost claim is a conflict"
    );
}

#[tokio::test]
async fn nothing_is_proposed_while_a_change_of_the_agent_needs_attention() {
    let (store, _dir) = store().await;
    let first = proposal(State::NeedsAttention);
    insert_one(&store, &first).await.unwrap();
    let second = Proposal {
        change: trial(4),
        ..proposal(State::PendingApproval)
    };
    let refused = insert_one(&store, &second).await;
    assert!(
        matches!(&refused, Err(HyperSyncError::ChangeInProgress(id)) if *id == first.id.to_string()),
        "{refused:?}"
    );
    let elsewhere = Proposal {
        agent_id: "resource".into(),
        ..second
    };
    insert_one(&store, &elsewhere).await.unwrap();
    let attention = store.needing_attention().await.unwrap();
    assert_eq!(attention, [first]);
}

#[tokio::test]
async fn an_agent_has_at_most_one_change_in_progress() {
    let (store, _dir) = store().await;
    let mut first = proposal(State::Approved);
    let mut second = Proposal {
        change: trial(4),
        ..proposal(State::Approved)
    };
    let mut elsewhere = Proposal {
        change: trial(5),
        agent_id: "resource".into(),
        ..proposal(State::Approved)
    };
    for row in [&first, &second, &elsewhere] {
        insert_one(&store, row).await.unwrap();
    }
    becomes(&store, &mut first, State::Applying).await.unwrap();
    becomes(&store, &mut elsewhere, State::Applying)
        .await
        .unwrap();
    for next in [State::Verifying, State::RollingBack, State::NeedsAttention] {
        becomes(&store, &mut first, next).await.unwrap();
        let refused = becomes(&store, &mut second, State::Applying).await;
        let Err(HyperSyncError::ChangeInProgress(change)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(change, first.id.to_string());
    }
    becomes(&store, &mut first, State::Kept).await.unwrap();
    becomes(&store, &mut second, State::Applying).await.unwrap();
}

#[tokio::test]
async fn proposals_written_before_the_claims_existed_are_given_claims() {
    let dir = tempfile::tempdir().unwrap();
    let place = tars_test_db::place(dir.path(), "hypersync");
    let db = Db::open(&place, &MIGRATIONS[..2]).await.unwrap();
    let old = [
        proposal(State::Verifying),
        proposal(State::PendingApproval),
        Proposal {
            change: trial(4),
            ..proposal(State::Rejected)
        },
        Proposal {
            change: trial(5),
            ..proposal(State::Approved)
        },
    ];
    let mut tx = db.write("test.old", Isolation::Exclusive).await.unwrap();
    for row in &old {
        let mut document = serde_json::to_value(row).unwrap();
        for new in [
            "note",
            "assessment",
            "assessment_error",
            "approved_without_assessment",
            "attention",
            "forced",
        ] {
            document.as_object_mut().unwrap().remove(new);
        }
        let insert = Query::new(
            "INSERT INTO proposals (id, agent_id, state, revision, proposer_owner, document) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(row.id)
        .bind(&row.agent_id)
        .bind(row.state.as_str())
        .bind(row.revision)
        .bind(&row.proposer_owner)
        .bind(document.to_string());
        tx.execute(insert).await.unwrap().one().unwrap();
    }
    tx.commit().await.unwrap();
    db.close().await;

    let store = Store::open(Db::open(&place, MIGRATIONS).await.unwrap())
        .await
        .unwrap();
    assert_eq!(store.get(old[0].id).await.unwrap(), old[0]);
    let refused = insert_one(&store, &proposal(State::PendingApproval)).await;
    assert!(matches!(refused, Err(HyperSyncError::AlreadyOpen(id)) if id == old[0].id));
    let mut other = old[3].clone();
    let refused = becomes(&store, &mut other, State::Applying).await;
    assert!(matches!(refused, Err(HyperSyncError::ChangeInProgress(_))));
    assert_eq!(store.unfinished().await.unwrap().len(), 3);
    assert!(store.needing_attention().await.unwrap().is_empty());
}

/// As they were written while giving up was a mark beside the state.
async fn insert_marked(tx: &mut Transaction, row: &Proposal, given_up: bool) {
    let mut document = serde_json::to_value(row).unwrap();
    document["given_up"] = given_up.into();
    let insert = Query::new(
        "INSERT INTO proposals (id, agent_id, state, revision, proposer_owner, document, changing_agent) \
         VALUES ($1, $2, $3, $4, $5, $6, $2)",
    )
    .bind(row.id)
    .bind(&row.agent_id)
    .bind(row.state.as_str())
    .bind(row.revision)
    .bind(&row.proposer_owner)
    .bind(document.to_string());
    tx.execute(insert).await.unwrap().one().unwrap();
}

#[tokio::test]
async fn a_proposal_that_was_marked_as_given_up_is_in_that_state() {
    let dir = tempfile::tempdir().unwrap();
    let place = tars_test_db::place(dir.path(), "hypersync");
    let db = Db::open(&place, &MIGRATIONS[..8]).await.unwrap();
    let of = |agent: &str| Proposal {
        agent_id: agent.to_owned(),
        note: r#"it was "state":"applying" before"#.to_owned(),
        ..proposal(State::Applying)
    };
    let (given_up, goes_on) = (of("policy"), of("rate"));
    let mut tx = db.write("test.old", Isolation::Exclusive).await.unwrap();
    insert_marked(&mut tx, &given_up, true).await;
    insert_marked(&mut tx, &goes_on, false).await;
    tx.commit().await.unwrap();
    db.close().await;

    let db = Db::open(&place, MIGRATIONS).await.unwrap();
    let mut tx = db.write("test.later", Isolation::Exclusive).await.unwrap();
    let states = Query::new("SELECT state FROM proposals WHERE agent_id = $1");
    let state: String = tx.value(states.bind("policy"), "state").await.unwrap();
    assert_eq!(state, "giving_up");
    // A replica of the version before that still runs.
    let later = of("cost");
    insert_marked(&mut tx, &later, true).await;
    tx.commit().await.unwrap();
    let store = Store::open(db).await.unwrap();
    for (was, now) in [
        (&given_up, State::GivingUp),
        (&goes_on, State::Applying),
        (&later, State::GivingUp),
    ] {
        let expected = Proposal {
            state: now,
            ..was.clone()
        };
        assert_eq!(store.get(was.id).await.unwrap(), expected);
    }
    assert_eq!(store.unfinished().await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_unknown_state_is_an_error_that_names_its_row() {
    let (store, _dir) = store().await;
    let row = proposal(State::PendingApproval);
    insert_one(&store, &row).await.unwrap();
    let mut tx = store.begin("test.spoil").await.unwrap();
    let spoil =
        "UPDATE proposals SET document = REPLACE(document, '\"pending_approval\"', '\"paused\"')";
    tx.execute(Query::new(spoil)).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    for error in [
        store.get(row.id).await.unwrap_err(),
        store
            .list(Which::All, Uuid::max(), page::size(10))
            .await
            .unwrap_err(),
    ] {
        let status = Status::from(error);
        assert_eq!(status.code(), Code::DataLoss);
        let text = status.message();
        assert!(
            text.contains(&row.id.to_string()) && text.contains("paused"),
            "{text}"
        );
    }
    assert!(
        store.unfinished().await.unwrap().is_empty(),
        "a damaged row does not prevent the start"
    );
}

#[tokio::test]
async fn the_background_work_selects_the_states_that_it_is_for() {
    let (store, _dir) = store().await;
    let mut ids = Vec::new();
    for (number, state) in (0..).zip(State::ALL) {
        let one = Proposal {
            change: trial(number),
            agent_id: format!("agent-{number}"),
            ..proposal(state)
        };
        insert_one(&store, &one).await.unwrap();
        ids.push((one.id, state));
    }
    let of = |is_so: fn(State) -> bool| -> BTreeSet<Uuid> {
        let so = ids.iter().filter(|(_, state)| is_so(*state));
        so.map(|(id, _)| *id).collect()
    };
    let found =
        |rows: Vec<Proposal>| -> BTreeSet<Uuid> { rows.into_iter().map(|p| p.id).collect() };
    let unfinished = found(store.unfinished().await.unwrap());
    assert_eq!(unfinished, of(|s| s.is_waiting() || s.is_driven()));
    let attention = found(store.needing_attention().await.unwrap());
    assert_eq!(attention, of(|s| s == State::NeedsAttention));
}
