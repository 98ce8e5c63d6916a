//! Which address a call goes to: of two that are drawn at random, the one with the lower load. That spreads
//! calls almost as evenly as looking at all of them would, and unlike "the least loaded of all" it does not
//! send every client to the same idle server at once (Mitzenmacher, "The Power of Two Choices in Randomized
//! Load Balancing", IEEE TPDS 2001).
//!
//! The load is the number of streams in use, each of which counts the more, the slower the address is. A server that
//! does not respond keeps its streams, and one that responds late is slow, and so both get fewer and fewer calls.

use std::sync::atomic::{AtomicU64, Ordering};
use tars_runtime::seeds::Seeds;

/// A sequence of random numbers that threads share without a lock (Steele, Lea and Flood, "Fast Splittable
/// Pseudorandom Number Generators", OOPSLA 2014).
#[derive(Debug)]
pub(super) struct Draws(AtomicU64);

impl Draws {
    pub(super) fn new(seeds: &Seeds) -> Self {
        Self(AtomicU64::new(seeds.draw()))
    }

    pub(super) fn next(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Picks one of `count` candidates. `ready` returns a candidate that can be used; one that cannot is passed
/// over. Returns `None` when none is ready.
pub(super) fn pick<C, L>(
    count: usize,
    draw: u64,
    ready: impl Fn(usize) -> Option<C>,
    load: impl Fn(&C) -> L,
) -> Option<C>
where
    L: PartialOrd,
{
    let (one, other) = two_of(count, draw)?;
    let second = if one == other { None } else { ready(other) };
    match (ready(one), second) {
        (Some(a), Some(b)) if load(&b) < load(&a) => Some(b),
        (Some(a), _) => Some(a),
        (None, Some(b)) => Some(b),
        (None, None) => (1..count)
            .map(|step| (one + step) % count)
            .filter(|at| *at != other)
            .find_map(ready),
    }
}

/// Two different positions below `count`, or the same one twice where there is only one.
fn two_of(count: usize, draw: u64) -> Option<(usize, usize)> {
    let below = |half: u32, end: usize| (half as usize) % end;
    let (high, low) = ((draw >> 32) as u32, draw as u32);
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let one = below(high, count);
            Some((one, (one + 1 + below(low, count - 1)) % count))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Picks many times; returns how often each was picked.
    fn spread(ready: &[bool], load: impl Fn(usize) -> usize, picks: usize) -> Vec<usize> {
        let draws = Draws::new(&Seeds::counted(1));
        let mut counts = vec![0; ready.len()];
        for _ in 0..picks {
            let candidate = |at: usize| ready[at].then_some(at);
            if let Some(at) = pick(ready.len(), draws.next(), candidate, |at| load(*at)) {
                counts[at] += 1;
            }
        }
        counts
    }

    #[test]
    fn equal_candidates_are_picked_equally_often() {
        for count in [1, 2, 3, 7] {
            for picked in spread(&vec![true; count], |_| 0, 7000 * count) {
                assert!((6500..7500).contains(&picked), "{picked} of {count}");
            }
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_picked_and_the_most_loaded_never() {
        assert_eq!(spread(&[true, true], |at| at, 1000), [1000, 0]);
        assert_eq!(spread(&[true; 4], |at| at, 1000)[3], 0);
    }

    #[test]
    fn candidates_that_are_not_ready_are_passed_over() {
        assert_eq!(spread(&[], |_| 0, 10), Vec::<usize>::new());
        assert_eq!(spread(&[false; 3], |_| 0, 10), [0; 3]);
        let one_of_many: Vec<bool> = (0..9).map(|at| at == 6).collect();
        assert_eq!(spread(&one_of_many, |_| 0, 1000)[6], 1000);
        let two_of_three = spread(&[true, false, true], |_| 0, 9000);
        assert!(
            two_of_three[0].abs_diff(two_of_three[2]) < 900,
            "{two_of_three:?}"
        );
    }

    #[test]
    fn each_candidate_is_looked_at_once() {
        for draw in 0..200u64 {
            let looks = Cell::new(0);
            let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let found: Option<usize> = pick(
                5,
                draw,
                |_| {
                    looks.set(looks.get() + 1);
                    None
                },
                |_| 0,
            );
            assert_eq!((found, looks.get()), (None, 5));
        }
    }
}
