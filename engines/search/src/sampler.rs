//! Samplers by name.

use crate::{Assignment, Observation, Space, tpe};
use rand::{SeedableRng, rngs::StdRng};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    Random,
    /// Independent tree-structured Parzen estimators.
    Tpe,
}

impl Sampler {
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "random" => Some(Self::Random),
            "tpe" => Some(Self::Tpe),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Tpe => "tpe",
        }
    }

    /// Suggests the parameters of trial `number`. The same seed, number and history give the same
    /// suggestion, so that a restarted study goes on as it would have.
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

/// splitmix64 (Steele, Lea and Flood, 2014): neighbouring numbers give unrelated streams.
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
