//! What is computed from the points of a training's curves. Everything is finite for finite values, and
//! `None` where the values are too few to say it.

use std::ops::Range;

/// How many returns a trend compares with as many before them.
const COMPARED: usize = 10;
/// The change, as a share of the magnitude before, from which on it is a trend.
const NOTABLE: f64 = 0.1;

/// Where values tend to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trend {
    Improving,
    Declining,
    Stable,
}

/// The mean and the standard deviation of values, as a population's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) std: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) spread: Spread,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// How much higher the newer half is than the older one, in per cent of the latter's magnitude.
    pub(crate) improvement_percent: Option<f64>,
    /// 1 where all values are the same, 0 where they deviate by their mean or more.
    pub(crate) stability: f64,
}

pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    match values.len() {
        0 => None,
        count => Some(values.iter().sum::<f64>() / count as f64),
    }
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        let mean = mean(values)?;
        let squares = values.iter().map(|value| (value - mean).powi(2));
        let std = (squares.sum::<f64>() / values.len() as f64).sqrt();
        Some(Self { mean, std })
    }

    fn stability(self) -> f64 {
        match self.std {
            0.0 => 1.0,
            std => 1.0 - (std / self.mean.abs()).min(1.0),
        }
    }
}

/// The spread of the values in the window that ends at each one; the first windows are shorter.
pub(crate) fn rolling(values: &[f64], window: usize) -> Vec<Spread> {
    let ends = 1..=values.len();
    let windows = ends.map(|end| &values[end.saturating_sub(window.max(1))..end]);
    windows.filter_map(Spread::of).collect()
}

/// Compares the last ten values with the ten before.
pub(crate) fn trend(values: &[f64]) -> Option<Trend> {
    let start = values.len().checked_sub(2 * COMPARED)?;
    let (before, after) = values[start..].split_at(COMPARED);
    let (before, after) = (mean(before)?, mean(after)?);
    let notable = NOTABLE * before.abs();
    Some(match after - before {
        change if change > notable => Trend::Improving,
        change if change < -notable => Trend::Declining,
        _ => Trend::Stable,
    })
}

pub(crate) fn summary(values: &[f64]) -> Option<Summary> {
    let spread = Spread::of(values)?;
    Some(Summary {
        count: values.len(),
        spread,
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        improvement_percent: improvement(values),
        stability: spread.stability(),
    })
}

/// A value in the middle of an odd number is in neither half.
fn improvement(values: &[f64]) -> Option<f64> {
    let half = values.len() / 2;
    let older = mean(&values[..half])?;
    let newer = mean(&values[values.len() - half..])?;
    (older != 0.0).then(|| (newer - older) / older.abs() * 100.0)
}

/// The positions of the values that look like all of them when a line is drawn through them: `most` at most,
/// the first and the last among them. Largest-Triangle-Three-Buckets (Steinarsson, Downsampling Time Series
/// for Visual Representation, 2013): of each bucket stays the value that spans the largest triangle with the
/// one that stayed before and the mean of the next bucket.
pub(crate) fn downsample(values: &[f64], most: usize) -> Vec<usize> {
    let (count, most) = (values.len(), most.max(2));
    if count <= most {
        return (0..count).collect();
    }
    // Only the first and the last value are no part of a bucket.
    let buckets = most - 2;
    let bound = |bucket: usize| 1 + bucket * (count - 2) / buckets;
    let mut chosen = vec![0];
    for bucket in 0..buckets {
        let next = match bucket + 1 {
            last if last == buckets => count - 1..count,
            next => bound(next)..bound(next + 1),
        };
        let ends = (at(values, chosen[bucket]), center(values, next));
        chosen.push(farthest(values, bound(bucket)..bound(bucket + 1), ends));
    }
    chosen.push(count - 1);
    chosen
}

/// A place on the drawn line.
type Place = (f64, f64);

fn at(values: &[f64], position: usize) -> Place {
    (position as f64, values[position])
}

/// The mean of the places in a bucket, which is not empty.
fn center(values: &[f64], bucket: Range<usize>) -> Place {
    let x = (bucket.start + bucket.end - 1) as f64 / 2.0;
    let y = values[bucket.clone()].iter().sum::<f64>() / bucket.len() as f64;
    (x, y)
}

/// The position in a bucket that spans the largest triangle with two places; the first of several.
fn farthest(values: &[f64], bucket: Range<usize>, ends: (Place, Place)) -> usize {
    let ((ax, ay), (cx, cy)) = ends;
    let area = |position: usize| {
        let (bx, by) = at(values, position);
        ((ax - cx) * (by - ay) - (ax - bx) * (cy - ay)).abs()
    };
    let mut best = (bucket.start, area(bucket.start));
    for position in bucket.skip(1) {
        let area = area(position);
        if area > best.1 {
            best = (position, area);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(mean: f64, std: f64) -> Spread {
        Spread { mean, std }
    }

    #[test]
    fn a_rolling_window_is_shorter_at_the_beginning() {
        let rolled = rolling(&[1.0, 3.0, 5.0, 5.0], 2);
        let expected = [
            spread(1.0, 0.0),
            spread(2.0, 1.0),
            spread(4.0, 1.0),
            spread(5.0, 0.0),
        ];
        assert_eq!(rolled, expected);
        assert_eq!(rolling(&[], 2), []);
        assert_eq!(rolling(&[7.0], 10), [spread(7.0, 0.0)]);
        assert_eq!(rolling(&[7.0], 0), [spread(7.0, 0.0)]);
    }

    /// Ten values before, and ten after.
    fn twenty(before: f64, after: f64) -> Vec<f64> {
        [[before; 10], [after; 10]].concat()
    }

    #[test]
    fn a_trend_is_a_change_of_more_than_a_tenth_of_the_magnitude() {
        for (before, after, tends) in [
            (100.0, 111.0, Trend::Improving),
            (100.0, 110.0, Trend::Stable),
            (100.0, 90.0, Trend::Stable),
            (100.0, 89.0, Trend::Declining),
            (-100.0, -89.0, Trend::Improving),
            (-100.0, -111.0, Trend::Declining),
            (0.0, 0.0, Trend::Stable),
            (0.0, 0.1, Trend::Improving),
            (0.0, -0.1, Trend::Declining),
        ] {
            let values = twenty(before, after);
            assert_eq!(trend(&values), Some(tends), "{before} {after}");
            assert_eq!(trend(&values[1..]), None, "nineteen are too few");
            let longer = [vec![1e6; 5], values].concat();
            assert_eq!(trend(&longer), Some(tends), "older ones do not count");
        }
        assert_eq!(trend(&[]), None);
    }

    #[test]
    fn a_summary_is_of_all_values() {
        let summary = summary(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        // The deviation of these is 2 by hand; the halves' means are 3.5 and 6.5.
        let expected = Summary {
            count: 8,
            spread: spread(5.0, 2.0),
            min: 2.0,
            max: 9.0,
            improvement_percent: Some(3.0 / 3.5 * 100.0),
            stability: 0.6,
        };
        assert_eq!(summary, expected);
    }

    #[test]
    fn a_summary_of_few_values_says_only_what_they_show() {
        assert_eq!(summary(&[]), None);
        let one = summary(&[-3.0]).unwrap();
        assert_eq!((one.count, one.min, one.max), (1, -3.0, -3.0));
        assert_eq!((one.spread, one.stability), (spread(-3.0, 0.0), 1.0));
        assert_eq!(one.improvement_percent, None);
        let three = summary(&[1.0, 100.0, 3.0]).unwrap();
        assert_eq!(three.improvement_percent, Some(200.0), "without the middle");
        let worse = summary(&[-10.0, -15.0]).unwrap();
        assert_eq!(worse.improvement_percent, Some(-50.0));
    }

    #[test]
    fn a_mean_of_zero_gives_no_infinite_number() {
        let around = summary(&[-1.0, 1.0]).unwrap();
        assert_eq!((around.spread, around.stability), (spread(0.0, 1.0), 0.0));
        let zeros = summary(&[0.0, 0.0]).unwrap();
        assert_eq!((zeros.stability, zeros.improvement_percent), (1.0, None));
        let small = summary(&[1.0, -0.5, 1.0, -0.5]).unwrap();
        assert_eq!(small.stability, 0.0, "it deviates by more than its mean");
    }

    #[test]
    fn a_series_that_is_short_enough_stays() {
        assert!(downsample(&[], 2).is_empty());
        assert_eq!(downsample(&[1.0], 2), [0]);
        assert_eq!(downsample(&[1.0, 2.0], 2), [0, 1]);
        assert_eq!(downsample(&[1.0, 2.0, 3.0], 3), [0, 1, 2]);
    }

    #[test]
    fn the_first_and_the_last_value_and_what_stands_out_stay() {
        let values = [0.0, 0.0, 9.0, 0.0, 0.0, 0.0, -9.0, 0.0];
        assert_eq!(downsample(&values, 2), [0, 7]);
        // One bucket, 1..7. With the places (0, 0) and (7, 0) twice the triangle of a value is seven times it,
        // and the first of the largest two stays.
        assert_eq!(downsample(&values, 3), [0, 2, 7]);
        // Two buckets, 1..4 and 4..7.
        assert_eq!(downsample(&values, 4), [0, 2, 6, 7]);
    }

    #[test]
    fn down_sampled_positions_increase_and_are_as_many_as_were_asked_for() {
        let values: Vec<f64> = (0..1000).map(|n| f64::from(n * 7919 % 101)).collect();
        for most in 2..200 {
            let chosen = downsample(&values, most);
            assert_eq!((chosen.len(), chosen[0], chosen[most - 1]), (most, 0, 999));
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
