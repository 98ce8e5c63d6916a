//! Randomness as an input: code that needs a seed the caller did not give draws it from [`Seeds`], so
//! that a test can choose it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Seeds stay below 2^53, so that clients whose only number is a double hold them exactly.
const LIMIT: u64 = 1 << 53;

/// A source of seeds. Clones share it; the default is [`Seeds::system`].
#[derive(Clone, Default)]
pub struct Seeds(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    System,
    Counted(Arc<AtomicU64>),
}

impl Seeds {
    /// Draws from a generator that the operating system seeds.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Returns `first`, then `first + 1`, and so on; for tests.
    pub fn counted(first: u64) -> Self {
        Self(Source::Counted(Arc::new(AtomicU64::new(first))))
    }

    /// Returns the next seed, below 2^53.
    pub fn draw(&self) -> u64 {
        match &self.0 {
            Source::System => rand::random::<u64>() % LIMIT,
            Source::Counted(next) => next.fetch_add(1, Ordering::Relaxed) % LIMIT,
        }
    }

    /// Returns the next seed as a fraction in `0.0..1.0`.
    pub fn fraction(&self) -> f64 {
        self.draw() as f64 / LIMIT as f64
    }
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Source::System => "Seeds(system)",
            Source::Counted(_) => "Seeds(counted)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn fresh_seeds_differ_and_counted_ones_are_known() {
        let fresh: BTreeSet<u64> = (0..1000).map(|_| Seeds::system().draw()).collect();
        assert_eq!(fresh.len(), 1000);
        assert!(fresh.iter().all(|s| *s < LIMIT));
        let counted = Seeds::counted(7);
        let other = counted.clone();
        assert_eq!([counted.draw(), other.draw(), counted.draw()], [7, 8, 9]);
    }
}
