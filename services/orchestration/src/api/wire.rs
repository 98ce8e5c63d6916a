//! Conversions of games, certificates and conflicts between messages and the domain.

use crate::{
    agents::Action,
    conflicts::{self, Dispute, Party},
    store::ConflictRow,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tars_games::{Algorithm, Correlated, GameError, Point, Preference, Process, Solution};
use tars_proto::{
    Struct, fault,
    orchestration::v1::*,
    params::{self, Param},
    time::timestamp,
};
use tonic::Status;

/// A game with the names of its players and actions.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) players: Vec<String>,
    pub(super) actions: Vec<Vec<String>>,
    pub(super) game: tars_games::Game,
}

/// Converts a game; `at` is the path of its fields for error messages.
pub(super) fn game(at: &str, from: Option<Game>) -> Result<Named, Status> {
    let Game {
        players,
        outcomes,
        default_payoff,
    } = from.unwrap_or_default();
    if players.is_empty() {
        return Err(fault::invalid_field(
            &format!("{at}players"),
            "at least one is required",
        ));
    }
    let mut names = Vec::with_capacity(players.len());
    let mut actions = Vec::with_capacity(players.len());
    let mut payoffs = Vec::with_capacity(players.len());
    for player in players {
        names.push(player.name);
        actions.push(player.actions);
        payoffs.push(player.payoffs);
    }
    differ(&format!("{at}players"), &names)?;
    for (i, own) in actions.iter().enumerate() {
        differ(&format!("{at}players[{i}].actions"), own)?;
    }
    if !outcomes.is_empty() {
        if let Some(i) = payoffs.iter().position(|p| !p.is_empty()) {
            return Err(fault::invalid_field(
                &format!("{at}players[{i}].payoffs"),
                "must be empty when outcomes are listed",
            ));
        }
        payoffs = sparse(at, &actions, outcomes, default_payoff)?;
    }
    let shape = actions.iter().map(Vec::len).collect();
    let game = tars_games::Game::new(shape, payoffs).map_err(|e| broken(at, &e))?;
    Ok(Named {
        players: names,
        actions,
        game,
    })
}

fn broken(at: &str, error: &GameError) -> Status {
    let field = match error {
        GameError::Players(_) | GameError::TooLarge => "players".to_owned(),
        GameError::Actions { player, .. } => format!("players[{player}].actions"),
        GameError::Payoffs { player, .. } => format!("players[{player}].payoffs"),
        GameError::NotFinite { player, index } => format!("players[{player}].payoffs[{index}]"),
    };
    fault::invalid_field(&format!("{at}{field}"), &error.to_string())
}

fn differ(field: &str, names: &[String]) -> Result<(), Status> {
    let mut seen = BTreeSet::new();
    match names.iter().find(|n| !seen.insert(*n)) {
        Some(twice) => Err(fault::invalid_field(
            field,
            &format!("{twice:?} is listed twice"),
        )),
        None => Ok(()),
    }
}

fn sparse(
    at: &str,
    actions: &[Vec<String>],
    outcomes: Vec<Outcome>,
    default: f64,
) -> Result<Vec<Vec<f64>>, Status> {
    let shape: Vec<usize> = actions.iter().map(Vec::len).collect();
    let cells = tars_games::joint_actions(&shape).map_err(|e| broken(at, &e))?;
    let mut payoffs = vec![vec![default; cells]; actions.len()];
    let places: Vec<Places<'_>> = actions.iter().map(|own| places(own)).collect();
    let mut listed = BTreeSet::new();
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let at = format!("{at}outcomes[{index}].");
        let cell = cell(&at, &places, &outcome)?;
        if !listed.insert(cell) {
            return Err(at_fault(&at, "actions", "are listed twice"));
        }
        for (tensor, payoff) in payoffs.iter_mut().zip(outcome.payoffs) {
            tensor[cell] = payoff;
        }
    }
    Ok(payoffs)
}

/// The numbers of one player's actions, by name.
type Places<'a> = HashMap<&'a str, usize>;

fn places(own: &[String]) -> Places<'_> {
    let numbered = own.iter().enumerate();
    numbered.map(|(k, name)| (name.as_str(), k)).collect()
}

/// The number of an outcome's joint action.
fn cell(at: &str, places: &[Places<'_>], outcome: &Outcome) -> Result<usize, Status> {
    let players = places.len();
    for (part, given) in [
        ("actions", outcome.actions.len()),
        ("payoffs", outcome.payoffs.len()),
    ] {
        if given != players {
            return Err(at_fault(at, part, "one for each player is required"));
        }
    }
    let mut cell = 0;
    for (own, name) in places.iter().zip(&outcome.actions) {
        let Some(action) = own.get(name.as_str()) else {
            let text = format!("{name:?} is not an action of its player");
            return Err(at_fault(at, "actions", &text));
        };
        cell = cell * own.len() + action;
    }
    Ok(cell)
}

fn at_fault(at: &str, part: &str, description: &str) -> Status {
    fault::invalid_field(&format!("{at}{part}"), description)
}

/// The game in which all agents choose a candidate: one that all choose takes effect, otherwise each
/// agent keeps its present payoff.
pub(super) fn candidates(
    agent_payoffs: BTreeMap<String, f64>,
    candidates: Vec<Struct>,
) -> Result<Named, Status> {
    if candidates.is_empty() {
        return Err(fault::invalid_field(
            "candidate_actions",
            "at least one is required",
        ));
    }
    let (players, without): (Vec<String>, Vec<f64>) = agent_payoffs.into_iter().unzip();
    let count = candidates.len();
    let shape = vec![count; players.len()];
    let too_many = |e: GameError| fault::invalid_field("candidate_actions", &e.to_string());
    let cells = tars_games::joint_actions(&shape).map_err(too_many)?;
    let mut payoffs: Vec<Vec<f64>> = without.iter().map(|p| vec![*p; cells]).collect();
    // Unanimous joint actions are this far apart: a one in every digit to the base `count`.
    let step = (0..players.len()).fold(0, |step, _| step * count + 1);
    for (index, candidate) in candidates.into_iter().enumerate() {
        let at = format!("candidate_actions[{index}]");
        let given = params::from_struct(candidate)
            .map_err(|e| fault::invalid_field(&at, &e.to_string()))?;
        if let Some(stranger) = given.keys().find(|k| !players.contains(k)) {
            let text = format!("{stranger:?} is not in agent_payoffs");
            return Err(fault::invalid_field(&at, &text));
        }
        for (player, tensor) in players.iter().zip(&mut payoffs) {
            let Some(payoff) = given.get(player).and_then(Param::number) else {
                let text = format!("a number for {player:?} is required");
                return Err(fault::invalid_field(&at, &text));
            };
            tensor[index * step] = payoff;
        }
    }
    let game = tars_games::Game::new(shape, payoffs).map_err(too_many)?;
    let names: Vec<String> = (0..count).map(|k| format!("candidate_{k}")).collect();
    Ok(Named {
        actions: vec![names; players.len()],
        players,
        game,
    })
}

pub(super) fn algorithm(from: i32) -> Algorithm {
    match NashAlgorithm::try_from(from).unwrap_or_default() {
        NashAlgorithm::Unspecified => Algorithm::Automatic,
        NashAlgorithm::LinearProgramme => Algorithm::LinearProgram,
        NashAlgorithm::LemkeHowson => Algorithm::LemkeHowson,
        NashAlgorithm::SupportEnumeration => Algorithm::SupportEnumeration,
        NashAlgorithm::IteratedPolymatrix => Algorithm::IteratedPolymatrix,
        NashAlgorithm::LogitHomotopy => Algorithm::LogitHomotopy,
        NashAlgorithm::FictitiousPlay => Algorithm::Learning(Process::FictitiousPlay),
        NashAlgorithm::RegretMatchingPlus => Algorithm::Learning(Process::RegretMatchingPlus),
        NashAlgorithm::Replicator => Algorithm::Learning(Process::Replicator),
        NashAlgorithm::ProjectedReplicator => Algorithm::Learning(Process::ProjectedReplicator),
    }
}

pub(super) fn preference(from: i32) -> Preference {
    match EquilibriumPreference::try_from(from).unwrap_or_default() {
        EquilibriumPreference::Unspecified => Preference::Any,
        EquilibriumPreference::Welfare => Preference::Welfare,
        EquilibriumPreference::Fairness => Preference::Fairness,
        EquilibriumPreference::Logit => Preference::Logit,
    }
}

pub(super) fn point(from: &Point) -> ConvergencePoint {
    ConvergencePoint {
        iteration: from.iteration,
        method: from.method.as_str().to_owned(),
        nash_conv: from.nash_conv,
    }
}

/// Values by the players' names.
pub(super) fn by_name<T>(players: &[String], values: Vec<T>) -> BTreeMap<String, T> {
    players.iter().cloned().zip(values).collect()
}

pub(super) fn equilibrium(players: &[String], from: Solution, component: usize) -> Equilibrium {
    let strategies = from.profile.iter().cloned();
    let strategies = strategies.map(|probabilities| Strategy { probabilities });
    Equilibrium {
        converged: from.converged(),
        nash_conv: from.nash_conv(),
        is_pure: from.is_pure(),
        strategy_profile: by_name(players, strategies.collect()),
        expected_payoffs: by_name(players, from.payoffs),
        regret: by_name(players, from.regret),
        relative_regret: from.relative_regret,
        tolerance: from.tolerance,
        iterations: from.iterations,
        method: from.method.as_str().to_owned(),
        history: from.history.iter().map(point).collect(),
        component: u32::try_from(component).unwrap_or(u32::MAX),
    }
}

pub(super) fn joint(named: &Named, cell: usize, probability: f64) -> JointProbability {
    let actions = named.game.joint(cell).into_iter().zip(&named.actions);
    JointProbability {
        actions: actions.map(|(a, own)| own[a].clone()).collect(),
        probability,
    }
}

pub(super) fn correlated(named: &Named, from: Correlated) -> ComputeCorrelatedResponse {
    let drawn = from.lottery.iter().enumerate().filter(|(_, p)| **p > 0.0);
    ComputeCorrelatedResponse {
        converged: from.converged(),
        optimal: from.optimal,
        lottery: drawn.map(|(cell, p)| joint(named, cell, *p)).collect(),
        relative_regret: from.relative_regret,
        tolerance: from.tolerance,
        expected_payoffs: by_name(&named.players, from.payoffs),
        regret: by_name(&named.players, from.regret),
    }
}

/// A number for each player from a map; `None` when the map is empty.
pub(super) fn numbers(
    field: &str,
    players: &[String],
    mut map: BTreeMap<String, f64>,
) -> Result<Option<Vec<f64>>, Status> {
    if map.is_empty() {
        return Ok(None);
    }
    let own = each(field, players, &mut map)?;
    Ok(Some(own))
}

/// The values of a map in the players' order. Other keys are refused.
pub(super) fn each<T>(
    field: &str,
    players: &[String],
    map: &mut BTreeMap<String, T>,
) -> Result<Vec<T>, Status> {
    let take = |name: &String| {
        map.remove(name).ok_or_else(|| {
            fault::invalid_field(field, &format!("a value for {name:?} is required"))
        })
    };
    let own = players.iter().map(take).collect::<Result<Vec<T>, _>>()?;
    match map.keys().next() {
        Some(stranger) => Err(fault::invalid_field(
            field,
            &format!("{stranger:?} is not a player"),
        )),
        None => Ok(own),
    }
}

pub(super) fn rule(from: i32) -> conflicts::ResolutionRule {
    match ResolutionRule::try_from(from).unwrap_or_default() {
        ResolutionRule::Unspecified => conflicts::ResolutionRule::NashBargaining,
        ResolutionRule::KalaiSmorodinsky => conflicts::ResolutionRule::KalaiSmorodinsky,
        ResolutionRule::MaxMin => conflicts::ResolutionRule::MaxMin,
        ResolutionRule::Weighted => conflicts::ResolutionRule::Weighted,
    }
}

pub(super) fn constraint(from: Constraint) -> Result<conflicts::Constraint, Status> {
    let condition = |c: Condition| {
        let comparison = match Comparison::try_from(c.comparison).unwrap_or_default() {
            Comparison::Above => conflicts::Comparison::Above,
            Comparison::Below => conflicts::Comparison::Below,
            Comparison::Equal => conflicts::Comparison::Equal,
            Comparison::Unspecified => {
                return Err(fault::invalid_field(
                    "constraints.conditions.comparison",
                    "is required",
                ));
            }
        };
        Ok(conflicts::Condition {
            party: c.player,
            comparison,
            value: c.value,
        })
    };
    Ok(conflicts::Constraint {
        name: from.name,
        conditions: from
            .conditions
            .into_iter()
            .map(condition)
            .collect::<Result<_, _>>()?,
    })
}

/// The parties of a dispute with their raw actions, which are numbered by position.
pub(super) fn parties(
    named: &Named,
    mut raw: BTreeMap<String, String>,
) -> Result<Vec<Party>, Status> {
    let chosen = each("actions", &named.players, &mut raw)?;
    let all = named.players.iter().zip(&named.actions).zip(chosen);
    all.map(|((name, actions), chosen)| {
        let raw = actions.iter().position(|a| *a == chosen).ok_or_else(|| {
            fault::invalid_field(
                "actions",
                &format!("{chosen:?} is not an action of {name:?}"),
            )
        })?;
        Ok(Party {
            name: name.clone(),
            actions: (actions.iter().cloned().enumerate())
                .map(|(number, action)| (action, number as f64))
                .collect(),
            raw,
        })
    })
    .collect()
}

pub(super) fn conflict(from: conflicts::Conflict) -> Conflict {
    let kind = match from.kind {
        conflicts::ConflictKind::Constraint => ConflictKind::Constraint,
        conflicts::ConflictKind::Regret => ConflictKind::Regret,
    };
    Conflict {
        name: from.name,
        kind: kind.into(),
        players: from.parties,
        description: from.description,
    }
}

pub(super) fn resolution(dispute: &Dispute, from: conflicts::Resolution) -> Resolution {
    let players: Vec<String> = dispute.parties.iter().map(|p| p.name.clone()).collect();
    let actions = |joint: &[usize]| {
        let named = joint.iter().enumerate();
        let named = named.map(|(i, action)| dispute.name(i, *action).to_owned());
        by_name(&players, named.collect())
    };
    Resolution {
        method: from.method().to_owned(),
        raw_actions: actions(&from.raw),
        resolved_actions: actions(&from.resolved),
        raw_payoffs: by_name(&players, from.raw_payoffs),
        resolved_payoffs: by_name(&players, from.resolved_payoffs),
        disagreement: by_name(&players, from.disagreement),
        regret: by_name(&players, from.regret),
        nash_equilibrium_reached: from.is_equilibrium,
        allowed: from.allowed as u64,
        joint_actions: from.joint_actions as u64,
        efficient: from
            .efficient
            .into_iter()
            .map(|(joint, payoffs)| Alternative {
                actions: actions(&joint),
                payoffs: by_name(&players, payoffs),
            })
            .collect(),
        conflicts: from.conflicts.into_iter().map(conflict).collect(),
        explanation: from.explanation,
    }
}

pub(super) fn record(from: ConflictRow) -> ConflictRecord {
    ConflictRecord {
        step_id: from.step_id,
        timestamp: Some(timestamp(from.at_us)),
        conflicts: from.body.conflicts.into_iter().map(conflict).collect(),
        resolution_method: from.body.method,
        raw_actions: from.body.raw,
        resolved_actions: from.body.resolved,
        explanation: from.body.explanation,
    }
}

pub(super) fn action(acted: Action) -> AgentAction {
    let (action, continuous_action) = match acted.action {
        tars_worlds::Action::Discrete(at) => (u32::try_from(at).unwrap_or(u32::MAX), Vec::new()),
        tars_worlds::Action::Continuous(values) => (0, values.into_iter().map(f64::from).collect()),
    };
    AgentAction {
        action,
        action_name: acted.name,
        action_values: acted.values.into_iter().map(f64::from).collect(),
        weights_version: super::numbers::unsigned(acted.weights_version),
        continuous_action,
        rule: acted.rule.unwrap_or_default().to_owned(),
        stage: super::agents::stage_as(acted.stage).into(),
        shielded: acted
            .shielded
            .map(|blocked| blocked.why.into_owned())
            .unwrap_or_default(),
    }
}
