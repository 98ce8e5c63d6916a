//! Checkpoints of DDPG.

use super::{Counters, Ddpg, NAME, critic::Saved, noise::Noise, params::Params, widths};
use crate::{
    algorithm::replay::Replay,
    hyper::Complete,
    learner::{self, BadCheckpoint},
    net::Adam,
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
