use super::*;
use tars_worlds::mesh::Calibration;

const SECOND: i64 = 1_000_000;

fn assumed() -> Changes {
    Calibration::shipped().changes
}

/// The `n`th proposal, an hour after the one before: good or bad, answered after some minutes.
fn decided(n: usize, quality: Option<Quality>, approves: Option<bool>, took_s: i64) -> Decided {
    let proposed_us = i64::try_from(n).unwrap() * 3600 * SECOND;
    let vote = |approves| Vote {
        approves,
        at_us: proposed_us + took_s * SECOND,
    };
    Decided {
        proposed_us,
        ended_us: proposed_us + 2 * took_s * SECOND,
        required: 1,
        votes: approves.map(vote).into_iter().collect(),
        quality,
    }
}

/// Of each ten, two are bad, of which one is approved; one good one is rejected, and one gets no answer.
fn usual(n: usize) -> Decided {
    let took_s = [300, 600, 1200][n % 3];
    match n % 10 {
        0 => decided(n, Some(Quality::Bad), Some(false), took_s),
        1 => decided(n, Some(Quality::Bad), Some(true), took_s),
        2 => decided(n, Some(Quality::Good), Some(false), took_s),
        3 => decided(n, None, None, took_s),
        _ => decided(n, Some(Quality::Good), Some(true), took_s),
    }
}

pub(in crate::calibration) fn history(count: usize) -> Vec<Decided> {
    (0..count).map(usual).collect()
}

fn refused(all: &[Decided]) -> String {
    let (found, fitted) = Approvals::of(all, &assumed());
    assert_eq!(fitted, None);
    found.uncalibrated.expect("it cannot be trusted")
}

#[test]
fn what_approvers_do_is_fitted_and_tested_on_the_last_proposals() {
    let (found, fitted) = Approvals::of(&history(110), &assumed());
    assert_eq!(found.uncalibrated, None);
    assert_eq!(
        (found.proposals, found.answers, found.tested),
        (100, 90, 10)
    );
    let errors = found.errors.unwrap();
    assert!(errors.answers < 1e-9 && errors.time < 0.1, "{errors:?}");
    let fitted = fitted.unwrap();
    let close = |ours: f64, truth: f64| assert!((ours - truth).abs() < 0.05 * truth, "{ours}");
    close(fitted.proposals, 1.0 / 3600.0);
    close(fitted.bad, 20.5 / 91.0);
    close(fitted.available, 90.5 / 101.0);
    close(fitted.answer_s, 600.0);
    close(fitted.answer_sigma, 2.0_f64.ln() * (2.0_f64 / 3.0).sqrt());
    close(fitted.spots, 10.5 / 21.0);
    close(fitted.false_alarms, 10.5 / 71.0);
    // What nobody counts stays as it is assumed.
    assert_eq!(fitted.approvers, assumed().approvers);
    assert_eq!(fitted.night, assumed().night);
}

#[test]
fn too_few_proposals_are_no_measurement() {
    for count in [0, 1, TESTED, MIN_FITTED + TESTED - 1] {
        assert!(
            refused(&history(count)).starts_with("too few proposals"),
            "{count}"
        );
    }
    let (found, fitted) = Approvals::of(&history(MIN_FITTED + TESTED), &assumed());
    assert!(fitted.is_some(), "{found:?}");
}

#[test]
fn what_is_known_of_one_kind_of_proposals_only_says_nothing_of_the_other() {
    let mut all = history(110);
    for one in &mut all {
        one.quality = one.quality.filter(|quality| *quality == Quality::Good);
    }
    let text = refused(&all);
    assert!(
        text.starts_with("too few answers") && text.contains("0 on bad"),
        "{text}"
    );
    all.iter_mut().for_each(|one| one.quality = None);
    assert!(refused(&all).contains("0 on good"));
}

#[test]
fn approvers_who_do_otherwise_than_before_are_not_predicted() {
    let mut slower = history(110);
    for one in &mut slower[100..] {
        for vote in &mut one.votes {
            vote.at_us += 24 * 3600 * SECOND;
        }
    }
    assert!(refused(&slower).contains("the time of an answer"));
    let mut silent = history(110);
    silent[100..].iter_mut().for_each(|one| one.votes.clear());
    assert!(refused(&silent).contains("no answer"));
    for one in &mut silent[100..103] {
        let at_us = one.proposed_us + 600 * SECOND;
        one.votes = vec![Vote {
            approves: true,
            at_us,
        }];
    }
    assert!(refused(&silent).contains("the answers to a proposal"));
}

#[test]
fn a_time_that_was_stored_backwards_is_a_short_one() {
    let mut all = history(110);
    all[0].votes[0].at_us = all[0].proposed_us - SECOND;
    let (_, fitted) = Approvals::of(&all, &assumed());
    assert!(fitted.unwrap().answer_s > 0.0);
}
