//! Checkpoints of DDPG, and how large they may become.

use super::{Counters, Ddpg, NAME, critic::Saved, noise::Noise, params::Params, widths};
use crate::{
    algorithm::replay::Replay,
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
    actor: Cow<'a, [f32]>,
    target_actor: Cow<'a, [f32]>,
    actor_adam: Cow<'a, Adam>,
    critic: Saved,
    target_critic: Saved,
    replay: Cow<'a, Replay>,
    noise: Cow<'a, Noise>,
    counters: Counters,
}

pub(super) fn save(ddpg: &Ddpg) -> Vec<u8> {
    let state = State {
        values: Cow::Borrowed(&ddpg.params.complete),
        actor: Cow::Borrowed(ddpg.actor.params()),
        target_actor: Cow::Borrowed(ddpg.target_actor.params()),
        actor_adam: Cow::Borrowed(&ddpg.actor_adam),
        critic: ddpg.critic.save(),
        target_critic: ddpg.target_critic.save(),
        replay: Cow::Borrowed(&ddpg.replay),
        noise: Cow::Borrowed(&ddpg.noise),
        counters: ddpg.counters,
    };
    learner::save(NAME, &state)
}

pub(super) fn restore(
    space: &AgentSpace,
    copies: usize,
    bytes: &[u8],
) -> Result<Ddpg, BadCheckpoint> {
    let state: State<'_> = learner::load(NAME, bytes)?;
    let params = Params::from_values(&state.values.values()).map_err(|_| BadCheckpoint)?;
    // Its weights are overwritten.
    let rng = &mut Generator::seed_from_u64(0);
    let mut ddpg = Ddpg::new(space, params, copies, rng);
    put(&mut ddpg, space, copies, state).ok_or(BadCheckpoint)?;
    Ok(ddpg)
}

fn put(ddpg: &mut Ddpg, space: &AgentSpace, copies: usize, state: State<'_>) -> Option<()> {
    let widths = widths(space);
    let fits = state.replay.fits(widths, ddpg.params.buffer_size, None)
        && state.noise.fits(copies, widths.action)
        && state.actor_adam.fits(ddpg.actor.params().len())
        && state.counters.steps >= state.replay.len() as u64;
    if !fits {
        return None;
    }
    ddpg.actor.set_params(&state.actor)?;
    ddpg.target_actor.set_params(&state.target_actor)?;
    ddpg.critic.restore(state.critic)?;
    ddpg.target_critic.restore(state.target_critic)?;
    ddpg.actor_adam = state.actor_adam.into_owned();
    ddpg.replay = state.replay.into_owned();
    ddpg.noise = state.noise.into_owned();
    ddpg.counters = state.counters;
    Some(())
}

/// The two actors and critics, the moments of their optimisers and the best policy so far; the transitions and the
/// noise; a minibatch.
pub(super) fn size(space: &AgentSpace, values: &Complete, extent: Extent) -> Size {
    let Ends {
        observation,
        actions,
    } = Ends::of(space);
    let hidden = values.count("hidden_dim") as u64;
    let actor = chain(&[observation, hidden, hidden, actions]);
    let critic = chain(&[observation, hidden]) + chain(&[hidden + actions, hidden, 1]);
    let noise = extent.copies() * actions;
    let rows = extent.transitions(values.count("buffer_size"));
    let picks = values.count("batch_size") as u64;
    let of_actor = batch(picks, observation, 2 * hidden + actions, actor);
    let of_critic = batch(
        picks,
        observation + hidden + actions,
        2 * hidden + 1,
        critic,
    );
    let joint = picks * (2 * observation + 3 * actions + hidden + 4);
    Size {
        saved: [
            // The policy has the bounds of its actions.
            networks(5 * actor + 6 * critic + 2 * actions + noise, extent),
            Part {
                parameter: "buffer_size",
                bytes: rows * numbers(2 * observation + actions + 2),
            },
        ],
        buffers: Part {
            parameter: "batch_size",
            bytes: numbers(of_actor + of_critic + joint),
        },
    }
}
