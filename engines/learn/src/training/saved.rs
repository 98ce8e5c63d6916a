//! Checkpoints of a training.

use super::{Evaluation, Session, lane::SavedLane};
use crate::learner::{self, BadCheckpoint};
use serde::{Deserialize, Serialize};

/// What the checksum covers beside the state.
const NAME: &str = "training";

#[derive(Serialize, Deserialize)]
struct Saved {
    seed: u64,
    step: u64,
    episodes: u64,
    copies: Vec<u8>,
    lanes: Vec<SavedLane>,
    evaluations: Vec<Evaluation>,
}

impl Session<'_> {
    /// The whole state; `None` when the world cannot be saved.
    pub(super) fn save(&self) -> Option<Vec<u8>> {
        let saved = Saved {
            seed: self.training.seed,
            step: self.step,
            episodes: self.episodes,
            copies: self.copies.snapshot()?,
            lanes: self.lanes.iter().map(super::Lane::save).collect(),
            evaluations: self.evaluations.clone(),
        };
        Some(learner::save(NAME, &saved))
    }

    /// Goes on from a checkpoint of the same training.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> Result<(), BadCheckpoint> {
        let saved: Saved = learner::load(NAME, bytes)?;
        if saved.lanes.len() != self.lanes.len() || saved.seed != self.training.seed {
            return Err(BadCheckpoint);
        }
        self.copies
            .restore(&saved.copies)
            .map_err(|_| BadCheckpoint)?;
        let members = self.training.members.iter().zip(saved.lanes);
        for (agent, (lane, (member, saved))) in self.lanes.iter_mut().zip(members).enumerate() {
            lane.restore(&self.copies, agent, member, saved)
                .ok_or(BadCheckpoint)?;
        }
        self.step = saved.step;
        self.episodes = saved.episodes;
        self.evaluations = saved.evaluations;
        Ok(())
    }
}
