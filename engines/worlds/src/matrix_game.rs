//! Games in normal form, played again and again by the same players, who see what everybody did last. Their
//! equilibria are known in closed form.

use crate::{
    space::{Action, ActionSpace, AgentSpace, Component, Text, WorldSpec},
    world::{self, BadSnapshot, Generator, Observations, TimeStep, World},
};
use serde::{Deserialize, Serialize};

/// After this many rounds an episode is truncated: the game itself has no end.
const MAX_STEPS: u32 = 100;

/// A repeated game with any number of players. The observation is one-hot in the last action of each
/// player, the agent's own first, and zero before the first round.
#[derive(Debug)]
pub struct MatrixGame {
    spec: WorldSpec,
    /// A payoff of each player for each joint action; the last player's action varies fastest.
    payoffs: Vec<f32>,
    state: State,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    last: Vec<usize>,
    steps: u32,
}

/// Actions and payoffs that are not a game.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadGame {
    /// There is no player, or one without actions.
    #[error("a game has players, and each of them has actions")]
    Empty,
    /// The number of payoffs differs from what the actions need.
    #[error("the actions need {needed} payoffs, not {given}")]
    Payoffs {
        /// Joint actions times players.
        needed: usize,
        /// How many there are.
        given: usize,
    },
    /// A payoff is infinite or not a number.
    #[error("a payoff is not a finite number")]
    NotFinite,
}

/// A built-in game of two players with the same actions.
#[derive(Debug)]
pub(crate) struct TwoPlayer {
    /// The name in the registry.
    name: &'static str,
    /// The actions of either player.
    actions: &'static [&'static str],
    /// The payoffs of both; the second player's action varies fastest.
    payoffs: &'static [[f32; 2]],
}

/// Zero-sum; the only equilibrium mixes all three actions evenly.
pub(crate) const ROCK_PAPER_SCISSORS: TwoPlayer = TwoPlayer {
    name: "rock_paper_scissors",
    actions: &["rock", "paper", "scissors"],
    payoffs: &[
        [0.0, 0.0],
        [-1.0, 1.0],
        [1.0, -1.0],
        [1.0, -1.0],
        [0.0, 0.0],
        [-1.0, 1.0],
        [-1.0, 1.0],
        [1.0, -1.0],
        [0.0, 0.0],
    ],
};

/// To defect dominates, although both gain by cooperation.
pub(crate) const PRISONERS_DILEMMA: TwoPlayer = TwoPlayer {
    name: "prisoners_dilemma",
    actions: &["cooperate", "defect"],
    payoffs: &[[3.0, 3.0], [0.0, 5.0], [5.0, 0.0], [1.0, 1.0]],
};

/// Two pure equilibria: the better one needs trust, the other one is safe.
pub(crate) const STAG_HUNT: TwoPlayer = TwoPlayer {
    name: "stag_hunt",
    actions: &["stag", "hare"],
    payoffs: &[[4.0, 4.0], [1.0, 3.0], [3.0, 1.0], [2.0, 2.0]],
};

/// Two pure equilibria, of which each player prefers another one.
pub(crate) const BATTLE_OF_THE_SEXES: TwoPlayer = TwoPlayer {
    name: "battle_of_the_sexes",
    actions: &["opera", "football"],
    payoffs: &[[3.0, 2.0], [0.0, 0.0], [0.0, 0.0], [2.0, 3.0]],
};

/// Two pure equilibria, in which one player gives way.
pub(crate) const CHICKEN: TwoPlayer = TwoPlayer {
    name: "chicken",
    actions: &["swerve", "straight"],
    payoffs: &[[6.0, 6.0], [2.0, 7.0], [7.0, 2.0], [0.0, 0.0]],
};

impl MatrixGame {
    /// A game of the players' actions and a payoff of each player for each joint action, in which the last
    /// player's action varies fastest.
    ///
    /// # Errors
    ///
    /// When these are not a game.
    pub fn new(name: Text, actions: &[Vec<Text>], payoffs: Vec<f32>) -> Result<Self, BadGame> {
        if actions.is_empty() || actions.iter().any(Vec::is_empty) {
            return Err(BadGame::Empty);
        }
        let needed = actions.iter().map(Vec::len).product::<usize>() * actions.len();
        if payoffs.len() != needed {
            let given = payoffs.len();
            return Err(BadGame::Payoffs { needed, given });
        }
        if payoffs.iter().any(|payoff| !payoff.is_finite()) {
            return Err(BadGame::NotFinite);
        }
        let state = State::default();
        let agents = (0..actions.len()).map(|player| space(player, actions));
        let spec = WorldSpec {
            name,
            agents: agents.collect(),
            max_steps: Some(MAX_STEPS),
            calibration: None,
        };
        Ok(Self {
            spec,
            payoffs,
            state,
        })
    }

    /// A built-in game.
    pub(crate) fn two_player(game: &TwoPlayer) -> Self {
        let actions: Vec<Text> = game.actions.iter().map(|name| (*name).into()).collect();
        let payoffs = game.payoffs.concat();
        Self::new(game.name.into(), &[actions.clone(), actions], payoffs)
            .expect("a built-in game has a payoff of each player for each joint action")
    }

    /// What each player gets for a joint action.
    pub fn payoffs(&self, joint: &[usize]) -> &[f32] {
        let players = joint.len();
        let at = joint.iter().enumerate().fold(0, |at, (player, action)| {
            at * self.spec.agents[player].action.len() + action
        });
        &self.payoffs[at * players..][..players]
    }
}

/// The players in the order in which one of them sees them: itself first.
fn seen_by(player: usize, players: usize) -> impl Iterator<Item = usize> {
    std::iter::once(player).chain((0..players).filter(move |other| *other != player))
}

fn space(player: usize, actions: &[Vec<Text>]) -> AgentSpace {
    let whose = |other: usize| match other == player {
        true => "own".to_owned(),
        false => format!("player_{}", other + 1),
    };
    let component = |other: usize, action: &Text| Component {
        name: format!("{}_last_{action}", whose(other)).into(),
        ..Component::computed("", "1", 0.0, 1.0)
    };
    let of = |other: usize| {
        actions[other]
            .iter()
            .map(move |action| component(other, action))
    };
    AgentSpace {
        name: format!("player_{}", player + 1).into(),
        observation: seen_by(player, actions.len()).flat_map(of).collect(),
        action: ActionSpace::Discrete(actions[player].clone()),
    }
}

impl World for MatrixGame {
    fn spec(&self) -> &WorldSpec {
        &self.spec
    }

    fn reset(&mut self, _: &mut Generator, observations: &mut Observations) {
        self.state.last.clear();
        self.state.last.reserve(self.spec.agents.len());
        self.state.steps = 0;
        self.observe(observations);
    }

    fn step(
        &mut self,
        actions: &[Action],
        _: &mut Generator,
        observations: &mut Observations,
        steps: &mut [TimeStep],
    ) {
        let taken = actions.iter().map(Action::index);
        self.state.last.clear();
        self.state.last.extend(taken);
        self.state.steps += 1;
        self.observe(observations);
        for (step, reward) in steps.iter_mut().zip(self.payoffs(&self.state.last)) {
            *step = TimeStep {
                reward: *reward,
                terminated: false,
                truncated: self.state.steps >= MAX_STEPS,
            };
        }
    }

    fn observe(&self, observations: &mut Observations) {
        let players = self.spec.agents.len();
        for player in 0..players {
            let seen = observations.of_mut(player);
            seen.fill(0.0);
            let mut start = 0;
            for other in seen_by(player, players) {
                if let Some(action) = self.state.last.get(other) {
                    seen[start + action] = 1.0;
                }
                start += self.spec.agents[other].action.len();
            }
        }
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        world::save(&self.state)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        let state: State = world::load(snapshot)?;
        let agents = &self.spec.agents;
        let known = state
            .last
            .iter()
            .zip(agents)
            .all(|(at, agent)| *at < agent.action.len());
        let whole = state.last.is_empty() || state.last.len() == agents.len();
        self.state = (known && whole).then_some(state).ok_or(BadSnapshot)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Episode, assert_restores};

    const ALL: [&TwoPlayer; 5] = [
        &ROCK_PAPER_SCISSORS,
        &PRISONERS_DILEMMA,
        &STAG_HUNT,
        &BATTLE_OF_THE_SEXES,
        &CHICKEN,
    ];

    /// What a player gains at most by another action when both mix as given.
    fn regret(game: &MatrixGame, player: usize, mixes: [&[f32]; 2]) -> f32 {
        let n = mixes[0].len();
        let against = |own: usize| -> f32 {
            let payoff = |other: usize| {
                let joint = if player == 0 {
                    [own, other]
                } else {
                    [other, own]
                };
                mixes[1 - player][other] * game.payoffs(&joint)[player]
            };
            (0..n).map(payoff).sum()
        };
        let best = (0..n).map(against).fold(f32::MIN, f32::max);
        best - (0..n)
            .map(|own| mixes[player][own] * against(own))
            .sum::<f32>()
    }

    fn is_equilibrium(game: &TwoPlayer, first: &[f32], second: &[f32]) -> bool {
        let world = MatrixGame::two_player(game);
        (0..2).all(|player| regret(&world, player, [first, second]) < 1e-6)
    }

    #[test]
    fn the_equilibria_are_those_of_the_books() {
        let third = [1.0 / 3.0; 3];
        assert!(is_equilibrium(&ROCK_PAPER_SCISSORS, &third, &third));
        assert!(is_equilibrium(&PRISONERS_DILEMMA, &[0.0, 1.0], &[0.0, 1.0]));
        assert!(is_equilibrium(&STAG_HUNT, &[1.0, 0.0], &[1.0, 0.0]));
        assert!(is_equilibrium(&STAG_HUNT, &[0.0, 1.0], &[0.0, 1.0]));
        assert!(is_equilibrium(&STAG_HUNT, &[0.5, 0.5], &[0.5, 0.5]));
        assert!(is_equilibrium(
            &BATTLE_OF_THE_SEXES,
            &[1.0, 0.0],
            &[1.0, 0.0]
        ));
        assert!(is_equilibrium(
            &BATTLE_OF_THE_SEXES,
            &[0.6, 0.4],
            &[0.4, 0.6]
        ));
        assert!(is_equilibrium(&CHICKEN, &[1.0, 0.0], &[0.0, 1.0]));
        assert!(is_equilibrium(
            &CHICKEN,
            &[2.0 / 3.0, 1.0 / 3.0],
            &[2.0 / 3.0, 1.0 / 3.0]
        ));
    }

    #[test]
    fn other_profiles_are_no_equilibria() {
        let (first, second) = ([1.0, 0.0], [0.0, 1.0]);
        assert!(!is_equilibrium(
            &ROCK_PAPER_SCISSORS,
            &[1.0, 0.0, 0.0],
            &[1.0, 0.0, 0.0]
        ));
        assert!(!is_equilibrium(&PRISONERS_DILEMMA, &first, &first));
        assert!(!is_equilibrium(&STAG_HUNT, &first, &second));
        assert!(!is_equilibrium(
            &BATTLE_OF_THE_SEXES,
            &[0.5, 0.5],
            &[0.5, 0.5]
        ));
        assert!(!is_equilibrium(&CHICKEN, &second, &second));
    }

    #[test]
    fn players_see_the_last_round_from_their_own_side_and_are_paid_for_it() {
        let mut episode = Episode::start(MatrixGame::two_player(&PRISONERS_DILEMMA), 0);
        assert_eq!(episode.seen.of(0), [0.0; 4]);
        let steps = episode.step(&[Action::Discrete(0), Action::Discrete(1)]);
        assert_eq!([steps[0].reward, steps[1].reward], [0.0, 5.0]);
        assert_eq!(episode.seen.of(0), [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(episode.seen.of(1), [0.0, 1.0, 1.0, 0.0]);
        let spec = episode.world.spec();
        assert_eq!(spec.agents[1].observation[3].name, "player_1_last_defect");
    }

    #[test]
    fn a_game_is_truncated_after_its_rounds() {
        for game in ALL {
            let mut episode = Episode::start(MatrixGame::two_player(game), 0);
            for n in 1..=MAX_STEPS {
                for step in episode.step(&[Action::Discrete(0), Action::Discrete(1)]) {
                    assert_eq!((step.terminated, step.truncated), (false, n == MAX_STEPS));
                }
            }
        }
    }

    #[test]
    fn three_players_with_different_actions_index_their_payoffs() {
        let actions = [
            vec!["a".into(), "b".into()],
            vec!["c".into()],
            vec!["d".into(), "e".into()],
        ];
        let payoffs: Vec<f32> = (0..12u8).map(f32::from).collect();
        let game = MatrixGame::new("three".into(), &actions, payoffs).unwrap();
        assert_eq!(game.payoffs(&[0, 0, 1]), [3.0, 4.0, 5.0]);
        assert_eq!(game.payoffs(&[1, 0, 0]), [6.0, 7.0, 8.0]);
    }

    #[test]
    fn what_is_no_game_is_refused() {
        let new = |actions: &[Vec<Text>], payoffs| {
            MatrixGame::new("bad".into(), actions, payoffs).map(drop)
        };
        let one = vec![Text::from("a")];
        assert_eq!(new(&[], vec![]), Err(BadGame::Empty));
        assert_eq!(new(&[one.clone(), vec![]], vec![]), Err(BadGame::Empty));
        let short = Err(BadGame::Payoffs {
            needed: 2,
            given: 1,
        });
        assert_eq!(new(&[one.clone(), one.clone()], vec![1.0]), short);
        let infinite = vec![f32::INFINITY];
        assert_eq!(new(&[one], infinite), Err(BadGame::NotFinite));
    }

    #[test]
    fn a_restored_game_goes_on_where_it_was_and_another_games_snapshot_is_refused() {
        let new = || MatrixGame::two_player(&ROCK_PAPER_SCISSORS);
        assert_restores(Episode::start(new(), 0), new(), |at| {
            vec![Action::Discrete(at % 3), Action::Discrete(at % 2)]
        });
        let last = vec![2, 2];
        let other = world::save(&State { last, steps: 1 }).unwrap();
        let mut chicken = MatrixGame::two_player(&CHICKEN);
        assert_eq!(chicken.restore(&other), Err(BadSnapshot));
        let one = world::save(&State {
            last: vec![1],
            steps: 1,
        })
        .unwrap();
        assert_eq!(chicken.restore(&one), Err(BadSnapshot));
    }
}
