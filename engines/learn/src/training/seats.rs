//! Players that do not learn, in the copies of a world.

use super::player::Player;
use crate::policy::{Policy, Scratch};
use tars_worlds::{Action, Controller};

/// A player in each copy.
pub(super) enum Seats {
    Policy(Policy, Scratch),
    /// A rule for each copy.
    Rules(Vec<Box<dyn Controller>>),
    Hold,
}

impl Seats {
    pub(super) fn new(player: &Player, copies: usize) -> Self {
        match player {
            Player::Policy(policy) => Self::Policy(policy.clone(), Scratch::default()),
            Player::Rule(make) => Self::Rules((0..copies).map(|_| make()).collect()),
            Player::Hold => Self::Hold,
        }
    }

    /// Writes a copy's action, which has the form of the agent's space.
    pub(super) fn act(
        &mut self,
        copy: usize,
        observation: &[f32],
        mask: &[bool],
        action: &mut Action,
    ) {
        match self {
            Self::Policy(policy, scratch) => policy.act_into(observation, mask, scratch, action),
            Self::Rules(rules) => {
                rules[copy].act(observation, action);
                let is_forbidden = |at: &usize| mask.get(*at) == Some(&false);
                if matches!(action, Action::Discrete(at) if is_forbidden(at)) {
                    take_first(mask, action);
                }
            }
            Self::Hold => take_first(mask, action),
        }
    }

    /// Begins an episode in a copy.
    pub(super) fn reset(&mut self, copy: usize) {
        if let Self::Rules(rules) = self {
            rules[copy].reset();
        }
    }

    /// What the rules of the copies remember; empty without rules.
    pub(super) fn save(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Rules(rules) => rules.iter().map(|rule| rule.save()).collect(),
            Self::Policy(..) | Self::Hold => Vec::new(),
        }
    }

    /// Continues from what was saved; `None` when it is of other players.
    pub(super) fn restore(&mut self, saved: &[Vec<u8>]) -> Option<()> {
        let rules = match self {
            Self::Rules(rules) => &mut rules[..],
            Self::Policy(..) | Self::Hold => &mut [],
        };
        if saved.len() != rules.len() {
            return None;
        }
        let mut pairs = rules.iter_mut().zip(saved);
        pairs.try_for_each(|(rule, saved)| rule.restore(saved).ok())
    }
}

/// Takes the first action that a mask allows.
fn take_first(mask: &[bool], action: &mut Action) {
    if let Some(first) = mask.iter().position(|may| *may) {
        *action = Action::Discrete(first);
    }
}
