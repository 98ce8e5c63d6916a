//! Quantiles of a sample by linear interpolation between its order statistics (type 7 of Hyndman
//! and Fan, "Sample Quantiles in Statistical Packages", 1996, and numpy's default). The median of an
//! even number of values is the mean of the two in the middle.

/// The value below which the share `share` (clamped to 0..=1) of the ascending values lies; `None`
/// when there are no values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    // Interpolating between two equal infinities would give NaN.
    let between = (above - below) * at.fract();
    Some(if below == above {
        below
    } else {
        below + between
    })
}

/// The median of values in any order, none of which may be NaN; `None` when there are no values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(median(vec![5.0, 0.0, 4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![4.0, 0.0, 3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![7.0]), Some(7.0));
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![f64::INFINITY; 2]), Some(f64::INFINITY));
    }

    /// `numpy.quantile(range(11), [0, 0.025, 0.1, 0.975, 1])`, and the quartile of two values.
    #[test]
    fn quantiles_agree_with_numpy() {
        let values: Vec<f64> = (0..11).map(f64::from).collect();
        for (share, expected) in [
            (0.0, 0.0),
            (0.025, 0.25),
            (0.1, 1.0),
            (0.975, 9.75),
            (1.0, 10.0),
        ] {
            let found = quantile(&values, share).unwrap();
            assert!((found - expected).abs() < 1e-12, "{share}: {found}");
        }
        assert_eq!(quantile(&[1.0, 2.0], 0.25), Some(1.25));
    }
}
