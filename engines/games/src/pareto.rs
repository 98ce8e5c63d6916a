//! What nothing else is better than in every respect, and how much such a set covers. More is
//! better in every coordinate.

use std::{cmp::Ordering, collections::BTreeMap};

/// The indices of the points that no other dominates, in order; of equal points all stay. In two
/// and three dimensions in O(n log n) (Kung, Luccio and Preparata, 1975), beyond that each point
/// meets only the front so far.
pub fn front(points: &[Vec<f64>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    // Nothing that comes later dominates what came before.
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

/// A number in an order that trees understand.
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

/// The stairs of the second and third coordinate of what came before.
#[derive(Debug, Default)]
struct Stairs(BTreeMap<Key, f64>);

impl Stairs {
    /// The best third coordinate among steps at least as far out in the second.
    fn above(&self, y: f64) -> Option<f64> {
        self.0.range(Key(y)..).next().map(|(_, z)| *z)
    }

    /// Adds a step and takes away those below it.
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

/// The exact volume that points cover above a reference: a sweep in two dimensions, exclusive
/// volumes (While, Bradstreet and Barone, 2012) beyond.
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
            // The last coordinate ascending: what limits a point then has few dimensions left.
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

/// Points come with the first coordinate falling and the second rising.
fn area(points: &[Vec<f64>]) -> f64 {
    let mut height = 0.0;
    let mut sum = 0.0;
    for p in points {
        sum += p[0] * (p[1] - height);
        height = p[1];
    }
    sum
}

/// What a point covers that the others, all at least as far out in the last coordinate, do not.
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
    fn the_front_is_that_of_the_definition() {
        for seed in 0..200 {
            for dimensions in 1..=5 {
                let points = drawn(seed, 40, dimensions, 3 + seed % 20);
                assert_eq!(front(&points), by_definition(&points), "{points:?}");
            }
        }
        assert_eq!(front(&[]), Vec::<usize>::new());
    }

    #[test]
    fn volumes_are_those_of_counted_cells() {
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
    fn what_is_below_the_reference_covers_nothing() {
        assert_eq!(hypervolume(&[vec![1.0, 5.0]], &[2.0, 0.0]), 0.0);
        assert_eq!(hypervolume(&[], &[0.0]), 0.0);
        assert_eq!(hypervolume(&[vec![3.0, 5.0]], &[2.0, 1.0]), 4.0);
    }
}
