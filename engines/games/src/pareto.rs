//! Pareto fronts and their hypervolume. Larger is better in every coordinate.

use std::{cmp::Ordering, collections::BTreeMap};

/// The indices, ascending, of the points that no other point dominates. Of equal points all are kept.
/// All points must have the same dimension.
///
/// Up to three dimensions this takes O(n log n) (Kung, Luccio and Preparata, "On Finding the Maxima of
/// a Set of Vectors", 1975); beyond that each point is compared with the front so far.
pub fn front(points: &[Vec<f64>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    // In this order no point dominates an earlier one.
    order.sort_by(|a, b| descending(&points[*a], &points[*b]));
    let mut kept = match points.first().map_or(0, Vec::len) {
        0 => order,
        1 | 2 => plane(points, order),
        3 => space(points, order),
        _ => any(points, order),
    };
    kept.sort_unstable();
    kept
}

fn descending(a: &[f64], b: &[f64]) -> Ordering {
    let pairs = a.iter().zip(b);
    pairs
        .map(|(x, y)| y.total_cmp(x))
        .find(|o| o.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(x, y)| x >= y) && a != b
}

fn plane(points: &[Vec<f64>], order: Vec<usize>) -> Vec<usize> {
    let last = |p: usize| points[p][points[p].len() - 1];
    let mut kept: Vec<usize> = Vec::new();
    for p in order {
        let beaten = kept.last().is_some_and(|k| {
            last(*k) > last(p) || (last(*k) == last(p) && points[*k] != points[p])
        });
        if !beaten {
            kept.push(p);
        }
    }
    kept
}

/// A number with the total order that a B-tree requires.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key(f64);

impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The staircase that the second and third coordinates of the earlier points form.
#[derive(Debug, Default)]
struct Stairs(BTreeMap<Key, f64>);

impl Stairs {
    /// The largest third coordinate among the steps whose second coordinate is at least `y`.
    fn above(&self, y: f64) -> Option<f64> {
        self.0.range(Key(y)..).next().map(|(_, z)| *z)
    }

    /// Adds a step and removes those below it.
    fn add(&mut self, y: f64, z: f64) {
        while let Some((key, lower)) = self.0.range(..=Key(y)).next_back() {
            if *lower > z {
                break;
            }
            let key = *key;
            self.0.remove(&key);
        }
        self.0.insert(Key(y), z);
    }
}

fn space(points: &[Vec<f64>], order: Vec<usize>) -> Vec<usize> {
    let mut stairs = Stairs::default();
    let mut kept: Vec<usize> = Vec::new();
    for p in order {
        let (y, z) = (points[p][1], points[p][2]);
        let twin = kept.last().is_some_and(|k| points[*k] == points[p]);
        if twin || stairs.above(y).is_none_or(|best| best < z) {
            if !twin {
                stairs.add(y, z);
            }
            kept.push(p);
        }
    }
    kept
}

fn any(points: &[Vec<f64>], order: Vec<usize>) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for p in order {
        if !kept.iter().any(|k| dominates(&points[*k], &points[p])) {
            kept.push(p);
        }
    }
    kept
}

/// The exact volume of the region that the points dominate above a reference point: by a sweep in two
/// dimensions, and by exclusive hypervolumes beyond (While, Bradstreet and Barone, "A Fast Way of
/// Calculating Exact Hypervolumes", 2012). Points that are not above the reference contribute nothing.
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let above: Vec<Vec<f64>> = points
        .iter()
        .map(|p| p.iter().zip(reference).map(|(v, r)| v - r).collect())
        .filter(|p: &Vec<f64>| p.iter().all(|v| *v > 0.0))
        .collect();
    volume(above)
}

fn volume(points: Vec<Vec<f64>>) -> f64 {
    let mut points = unique_front(points);
    match points.first().map_or(0, Vec::len) {
        0 => 0.0,
        1 => points[0][0],
        2 => area(&points),
        _ => {
            // With the last coordinate ascending, a point is limited in the other coordinates only.
            points.sort_by(|a, b| a[a.len() - 1].total_cmp(&b[b.len() - 1]));
            (0..points.len())
                .map(|k| exclusive(&points[k], &points[k + 1..]))
                .sum()
        }
    }
}

fn unique_front(mut points: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    points.sort_by(|a, b| descending(a, b));
    points.dedup();
    let kept = front(&points);
    kept.into_iter().map(|k| points[k].clone()).collect()
}

/// The area of points in descending order of the first coordinate, so ascending in the second.
fn area(points: &[Vec<f64>]) -> f64 {
    let mut height = 0.0;
    let mut sum = 0.0;
    for p in points {
        sum += p[0] * (p[1] - height);
        height = p[1];
    }
    sum
}

/// The volume that a point dominates and the others do not. These are at least as large in the last
/// coordinate.
fn exclusive(point: &[f64], others: &[Vec<f64>]) -> f64 {
    let last = point.len() - 1;
    let limited: Vec<Vec<f64>> = others
        .iter()
        .map(|o| (0..last).map(|i| o[i].min(point[i])).collect())
        .collect();
    let whole: f64 = point[..last].iter().product();
    (whole - volume(limited)) * point[last]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn drawn(seed: u64, n: usize, dimensions: usize, levels: u64) -> Vec<Vec<f64>> {
        let mut stream = Stream::new(seed);
        (0..n)
            .map(|_| {
                (0..dimensions)
                    .map(|_| (stream.next() % levels) as f64)
                    .collect()
            })
            .collect()
    }

    fn by_definition(points: &[Vec<f64>]) -> Vec<usize> {
        (0..points.len())
            .filter(|p| !points.iter().any(|q| dominates(q, &points[*p])))
            .collect()
    }

    #[test]
    fn the_front_agrees_with_the_definition() {
        for seed in 0..200 {
            for dimensions in 1..=5 {
                let points = drawn(seed, 40, dimensions, 3 + seed % 20);
                assert_eq!(front(&points), by_definition(&points), "{points:?}");
            }
        }
        assert_eq!(front(&[]), Vec::<usize>::new());
    }

    #[test]
    fn hypervolumes_agree_with_counted_cells() {
        for seed in 0..60 {
            for dimensions in 1..=5 {
                let points = drawn(seed, 8, dimensions, 5);
                let mut counted = 0;
                for cell in 0..4usize.pow(dimensions as u32) {
                    let corner = |i: usize| (cell / 4usize.pow(i as u32) % 4) as f64;
                    counted += usize::from(
                        points
                            .iter()
                            .any(|p| (0..dimensions).all(|i| p[i] > corner(i))),
                    );
                }
                let volume = hypervolume(&points, &vec![0.0; dimensions]);
                assert!((volume - counted as f64).abs() < 1e-9, "{points:?}");
            }
        }
    }

    #[test]
    fn points_below_the_reference_contribute_nothing() {
        assert_eq!(hypervolume(&[vec![1.0, 5.0]], &[2.0, 0.0]), 0.0);
        assert_eq!(hypervolume(&[], &[0.0]), 0.0);
        assert_eq!(hypervolume(&[vec![3.0, 5.0]], &[2.0, 1.0]), 4.0);
    }
}
