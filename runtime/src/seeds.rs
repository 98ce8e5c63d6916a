//! Seeds as an input: whatever needs a seed that nobody gave asks [`Seeds`], so that a test can
//! decide which one it is.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Seeds stay below this, so that every client's numbers hold them exactly.
const LIMIT: u64 = 1 << 53;

#[derive(Clone, Default)]
pub struct Seeds(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    System,
    Counted(Arc<AtomicU64>),
}

impl Seeds {
    /// From the operating system's randomness.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// `first`, and each time the next number.
    pub fn counted(first: u64) -> Self {
        Self(Source::Counted(Arc::new(AtomicU64::new(first))))
    }

    pub fn draw(&self) -> u64 {
        match &self.0 {
            Source::System => rand::random::<u64>() % LIMIT,
            Source::Counted(next) => next.fetch_add(1, Ordering::Relaxed) % LIMIT,
        }
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
