//! Samplers, which suggest the parameters of the next trial.

use crate::{Assignment, Observation, Space, tpe};
use rand::{SeedableRng, rngs::StdRng};

/// A sampling algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// Uniform random search, which ignores the history.
    Random,
    /// Tree-structured Parzen estimators, one for each parameter independently (Bergstra et al.,
    /// "Algorithms for Hyper-Parameter Optimization", 2011).
    Tpe,
}

impl Sampler {
    /// The sampler with this name, `random` or `tpe`; `None` for any other.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "random" => Some(Self::Random),
            "tpe" => Some(Self::Tpe),
            _ => None,
        }
    }

    /// The name that [`parse`](Self::parse) accepts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Tpe => "tpe",
        }
    }

    /// Suggests the parameters of trial `number`. The same seed, number and history give the same
    /// suggestion, so that a resumed study continues as if it had not been interrupted.
    pub fn suggest(
        self,
        space: &Space,
        history: &[Observation],
        seed: u64,
        number: u32,
    ) -> Assignment {
        let mut rng = StdRng::seed_from_u64(mix(seed, number));
        match self {
            Self::Random => space.sample(&mut rng),
            Self::Tpe => tpe::suggest(space, history, &mut rng),
        }
    }
}

/// The output function of splitmix64 (Steele, Lea and Flood, 2014), which gives neighbouring trial
/// numbers unrelated streams.
fn mix(seed: u64, number: u32) -> u64 {
    let mut z = seed.wrapping_add(
        u64::from(number)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
