//! The split of seeds. A search trains on even seeds and a measurement on odd ones, so that a change
//! is never confirmed by the very run that selected it. All seeds are below 2^53, which JSON numbers
//! carry exactly.

const BITS: u32 = 53;

/// The even seed of a trial, from the study's seed and the trial's number. A resumed trial gets the
/// same one.
pub fn for_trial(study: u64, number: u32) -> u64 {
    let mixed = (study ^ 0x5851_f42d_4c95_7f2d)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(number));
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> (65 - BITS)) << 1
}

/// The odd seed of the measurement with this number.
pub fn for_measurement(number: u64) -> u64 {
    ((number << 1) | 1) & ((1 << BITS) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_measurement_repeats_a_trial() {
        let trials: BTreeSet<u64> = (0..1000).map(|n| for_trial(7, n)).collect();
        let measured: BTreeSet<u64> = (0..1000).map(for_measurement).collect();
        assert_eq!((trials.len(), measured.len()), (1000, 1000));
        assert!(trials.is_disjoint(&measured));
        assert!(trials.iter().all(|s| s % 2 == 0 && *s < 1 << BITS));
        let last = (u64::MAX - 1000..u64::MAX).map(for_measurement);
        assert!(
            measured
                .into_iter()
                .chain(last)
                .all(|s| s % 2 == 1 && s < 1 << BITS)
        );
    }

    #[test]
    fn seeds_are_stable_across_versions() {
        assert_eq!(for_trial(0, 0), 2_710_911_507_289_578);
        assert_eq!(for_measurement(3), 7);
    }
}
