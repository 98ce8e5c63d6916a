//! The solvers' randomness: a splitmix64 stream (Steele, Lea and Flood, "Fast Splittable Pseudorandom
//! Number Generators", 2014), which a seed determines on every machine.

use crate::Game;

#[derive(Debug, Clone)]
pub(crate) struct Stream(u64);

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A uniform number in 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A profile that is uniform on each player's simplex.
    pub(crate) fn profile(&mut self, game: &Game, out: &mut [f64]) {
        for player in 0..game.players() {
            let own = &mut out[game.actions(player)];
            own.iter_mut()
                .for_each(|p| *p = -(1.0 - self.unit()).ln() + f64::MIN_POSITIVE);
            let sum: f64 = own.iter().sum();
            own.iter_mut().for_each(|p| *p /= sum);
        }
    }
}
