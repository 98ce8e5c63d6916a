//! How many bytes the state of a learner may come to, known before there is a learner: whoever runs one can refuse
//! what could not be stored, or held.

use tars_worlds::AgentSpace;

/// The bytes of a number in single precision, which is what nearly everything consists of.
const NUMBER: u64 = size_of::<f32>() as u64;
/// What a checkpoint has beside its numbers, at most: names, lengths, hyperparameters, counters, generators, the
/// newest returns and losses, and the description of a policy.
const DESCRIPTION: u64 = 16 << 10;
/// What a copy adds to that, at most: what its episode has brought so far, and how long it is.
const COPY: u64 = 32;

/// The bytes of one part of a learner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The hyperparameter that it grows with.
    pub parameter: &'static str,
    /// How many bytes it comes to when it is full.
    pub bytes: u64,
}

/// What the parts of a learner come to when they are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// What a checkpoint contains: networks, optimisers and the best policy so far; the replay buffer or the rollout.
    pub saved: [Part; 2],
    /// The buffers of a gradient step, and what is computed from the saved parts.
    pub buffers: Part,
}

/// What determines the size of a learner beside its hyperparameters.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Copies of the world that it learns from.
    pub copies: usize,
    /// Steps of all copies together.
    pub steps: u64,
}

impl Extent {
    /// How many transitions a buffer of this capacity comes to hold. The last step of the copies may exceed the
    /// steps that were asked for.
    pub(crate) fn transitions(&self, capacity: usize) -> u64 {
        let steps = self.steps.saturating_add(self.copies as u64);
        steps.min(capacity as u64)
    }

    pub(crate) fn copies(&self) -> u64 {
        self.copies as u64
    }
}

/// The lengths of what a learner's networks take and give.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub observation: u64,
    pub actions: u64,
}

impl Ends {
    pub(crate) fn of(space: &AgentSpace) -> Self {
        Self {
            observation: space.observation.len() as u64,
            actions: space.action.len() as u64,
        }
    }
}

/// The parameters of a chain of dense layers of these widths, the inputs first.
pub(crate) fn chain(widths: &[u64]) -> u64 {
    widths.windows(2).map(|w| (w[0] + 1) * w[1]).sum()
}

/// The bytes of so many numbers.
pub(crate) fn numbers(count: u64) -> u64 {
    count * NUMBER
}

/// The numbers that a batch of so many rows holds for a network: what each layer puts out and the gradient by it,
/// that by the inputs, and that by the parameters.
pub(crate) fn batch(rows: u64, inputs: u64, outputs: u64, params: u64) -> u64 {
    rows * (inputs + 2 * outputs) + params
}

/// The part of a checkpoint that consists of networks with so many numbers, and of all that is small.
pub(crate) fn networks(count: u64, extent: Extent) -> Part {
    Part {
        parameter: "hidden_dim",
        bytes: numbers(count) + DESCRIPTION + COPY * extent.copies(),
    }
}

impl Size {
    /// The bytes of the largest checkpoint.
    pub fn checkpoint(&self) -> u64 {
        self.saved.iter().map(|part| part.bytes).sum()
    }

    /// The largest part of a checkpoint.
    pub fn largest_saved(&self) -> Part {
        let [networks, memory] = self.saved;
        match memory.bytes >= networks.bytes {
            true => memory,
            false => networks,
        }
    }
}
