//! Checkpoints of DQN, and how large they may become.

use super::{Counters, Dqn, NAME, params::Params, widths};
use crate::{
    algorithm::{
        priorities::{Leaves, Priorities},
        replay::Replay,
    },
    hyper::Complete,
    learner::{self, BadCheckpoint},
    net::Adam,
    size::{Ends, Extent, Part, Size, batch, chain, networks, numbers},
};
use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use tars_worlds::{AgentSpace, Generator};

#[derive(Serialize, Deserialize)]
struct State<'a> {
    values: Cow<'a, Complete>,
    online: Cow<'a, [f32]>,
    target: Cow<'a, [f32]>,
    adam: Cow<'a, Adam>,
    replay: Cow<'a, Replay>,
    priorities: Option<Leaves>,
    counters: Counters,
}

pub(super) fn save(dqn: &Dqn) -> Vec<u8> {
    let leaves = |tree: &Priorities| tree.leaves(dqn.replay.len());
    let state = State {
        values: Cow::Borrowed(&dqn.params.complete),
        online: Cow::Borrowed(dqn.online.params()),
        target: Cow::Borrowed(dqn.target.params()),
        adam: Cow::Borrowed(&dqn.adam),
        replay: Cow::Borrowed(&dqn.replay),
        priorities: dqn.priorities.as_ref().map(leaves),
        counters: dqn.counters,
    };
    learner::save(NAME, &state)
}

pub(super) fn restore(space: &AgentSpace, bytes: &[u8]) -> Result<Dqn, BadCheckpoint> {
    let state: State<'_> = learner::load(NAME, bytes)?;
    let params = Params::from_values(&state.values.values()).map_err(|_| BadCheckpoint)?;
    // Its weights are overwritten.
    let mut dqn = Dqn::new(space, params, &mut Generator::seed_from_u64(0));
    put_networks(&mut dqn, &state).ok_or(BadCheckpoint)?;
    put_replay(&mut dqn, space, state).ok_or(BadCheckpoint)?;
    Ok(dqn)
}

fn put_networks(dqn: &mut Dqn, state: &State<'_>) -> Option<()> {
    dqn.online.set_params(&state.online)?;
    dqn.target.set_params(&state.target)?;
    let adam = state.adam.fits(dqn.online.params().len());
    adam.then(|| dqn.adam = state.adam.clone().into_owned())
}

fn put_replay(dqn: &mut Dqn, space: &AgentSpace, state: State<'_>) -> Option<()> {
    let capacity = dqn.params.buffer_size;
    let fits = state
        .replay
        .fits(widths(space), capacity, Some(space.action.len()));
    let counters = state.counters;
    let share = 0.0..=1.0;
    if !fits || !share.contains(&counters.epsilon) || !share.contains(&counters.beta) {
        return None;
    }
    dqn.priorities = match (&dqn.priorities, &state.priorities) {
        (Some(_), Some(leaves)) => Some(Priorities::restore(capacity, state.replay.len(), leaves)?),
        (None, None) => None,
        _ => return None,
    };
    dqn.replay = state.replay.into_owned();
    dqn.counters = counters;
    Some(())
}

/// The online and the target network, the two moments of the optimiser and the best policy so far; the transitions
/// with their masks and priorities; a minibatch, and the tree over the priorities.
pub(super) fn size(space: &AgentSpace, values: &Complete, extent: Extent) -> Size {
    let ends = Ends::of(space);
    let hidden = values.count("hidden_dim") as u64;
    let heads = ends.actions + u64::from(values.flag("dueling"));
    let params = chain(&[ends.observation, hidden, hidden, heads]);
    let rows = extent.transitions(values.count("buffer_size"));
    let prioritized = u64::from(values.flag("prioritized_replay"));
    let transition = numbers(2 * ends.observation + 3) + ends.actions + 8 * prioritized;
    let picks = values.count("batch_size") as u64;
    let pass = batch(picks, ends.observation, 2 * hidden + heads, params);
    let tree = 16 * rows.next_power_of_two() * prioritized;
    Size {
        saved: [
            networks(5 * params, extent),
            Part {
                parameter: "buffer_size",
                bytes: rows * transition,
            },
        ],
        buffers: Part {
            parameter: "batch_size",
            bytes: numbers(2 * pass + picks * (2 * ends.observation + 6)) + tree,
        },
    }
}
