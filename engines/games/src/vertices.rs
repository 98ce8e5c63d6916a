//! All extreme equilibria of a two-player game: pairs of vertices of the best-response polytopes that
//! together have all labels (Mangasarian, "Equilibrium Points of Bimatrix Games", 1964; Avis, Rosenberg,
//! Savani and von Stengel, "Enumeration of Nash equilibria for two-player games", 2010). This includes
//! degenerate games: the vertices are traversed in the lexicographically perturbed polytope, where
//! each vertex has one basis.
//!
//! Every equilibrium is a mixture of extreme ones that share a strategy; those that are connected form
//! a component.

use crate::{Game, lemke_howson::Polytopes, tableau::Tableau};
use std::collections::{HashMap, HashSet};

/// The largest number of undominated actions of a player up to which [`Game::equilibria`] enumerates
/// all extreme equilibria.
pub const MAX_ALL: usize = 12;
/// The vertices of one polytope after which a traversal ends incomplete. By the upper bound theorem
/// (McMullen, 1970) there are at most 30940 with 12 dimensions and 24 facets.
const MAX_VERTICES: usize = 50_000;
/// Values up to this are zero.
const ZERO: f64 = 1e-9;

/// The extreme equilibria of a game.
#[derive(Debug, Default)]
pub(crate) struct Extremes {
    /// Flat profiles.
    pub(crate) profiles: Vec<Vec<f64>>,
    /// The connected component of each profile.
    pub(crate) components: Vec<usize>,
    /// Whether the traversal came to its end.
    pub(crate) complete: bool,
    /// The bases that were visited.
    pub(crate) bases: u64,
}

#[derive(Debug)]
struct Vertex {
    /// The set of its labels, as bits.
    labels: u64,
    weights: Vec<f64>,
}

pub(crate) fn search(game: &Game, stopped: &dyn Fn() -> bool) -> Extremes {
    let polytopes = Polytopes::new(game);
    let (m, n) = (polytopes.rows, polytopes.columns);
    let [first, second] = &polytopes.tableaux;
    let mut out = Extremes::default();
    let (xs, all_x) = traverse(first, 0..m, &mut out.bases, stopped);
    let (ys, all_y) = traverse(second, m..m + n, &mut out.bases, stopped);
    let pairs = match_labels(&xs, &ys, m, n, stopped);
    out.complete = all_x && all_y && !stopped();
    out.components = components(&pairs, xs.len());
    out.profiles = pairs
        .iter()
        .map(|(x, y)| [&xs[*x].weights[..], &ys[*y].weights].concat())
        .collect();
    out
}

/// The vertices except the origin, and whether these are all.
fn traverse(
    start: &Tableau,
    own: std::ops::Range<usize>,
    bases: &mut u64,
    stopped: &dyn Fn() -> bool,
) -> (Vec<Vertex>, bool) {
    let mut seen = HashSet::from([basis_mask(start)]);
    let mut known = HashSet::new();
    let mut vertices = Vec::new();
    let mut open = vec![start.clone()];
    while let Some(tableau) = open.pop() {
        *bases += 1;
        if seen.len() > MAX_VERTICES || (bases.is_multiple_of(64) && stopped()) {
            return (vertices, false);
        }
        if let Some(vertex) = vertex(&tableau, &own)
            && known.insert(vertex.labels)
        {
            vertices.push(vertex);
        }
        for column in 0..tableau.columns().len() {
            let Some(row) = tableau.leaving(column) else {
                continue;
            };
            let (enters, leaves) = (tableau.columns()[column], tableau.basic(row));
            let mask = basis_mask(&tableau) & !(1 << leaves) | 1 << enters;
            if seen.insert(mask) {
                let mut next = tableau.clone();
                next.pivot(row, column);
                open.push(next);
            }
        }
    }
    (vertices, true)
}

fn basis_mask(tableau: &Tableau) -> u64 {
    (0..tableau.rows()).fold(0, |mask, row| mask | 1 << tableau.basic(row))
}

fn vertex(tableau: &Tableau, own: &std::ops::Range<usize>) -> Option<Vertex> {
    let mut labels = tableau.columns().iter().fold(0u64, |mask, v| mask | 1 << v);
    let mut weights = vec![0.0; own.len()];
    for (variable, value) in tableau.solution() {
        if value <= ZERO {
            labels |= 1 << variable;
        } else if own.contains(&variable) {
            weights[variable - own.start] = value;
        }
    }
    let sum: f64 = weights.iter().sum();
    if sum <= ZERO {
        return None;
    }
    weights.iter_mut().for_each(|w| *w /= sum);
    Some(Vertex { labels, weights })
}

/// The pairs of vertices that together have all labels. Where neither is degenerate the labels are each
/// other's complement; only degenerate vertices must be compared with all others.
fn match_labels(
    xs: &[Vertex],
    ys: &[Vertex],
    m: usize,
    n: usize,
    stopped: &dyn Fn() -> bool,
) -> Vec<(usize, usize)> {
    let all = u64::MAX >> (64 - m - n);
    let exact: HashMap<u64, usize> = ys.iter().enumerate().map(|(i, y)| (y.labels, i)).collect();
    let degenerate = |labels: u64, size: usize| labels.count_ones() as usize > size;
    let degenerate_ys: Vec<usize> = (0..ys.len())
        .filter(|y| degenerate(ys[*y].labels, n))
        .collect();
    let mut pairs = Vec::new();
    for (x, vertex) in xs.iter().enumerate() {
        if (ys.len() > 1_000 || x % 64 == 63) && stopped() {
            break;
        }
        let fits = |y: &usize| ys[*y].labels | vertex.labels == all;
        if degenerate(vertex.labels, m) {
            pairs.extend((0..ys.len()).filter(fits).map(|y| (x, y)));
        } else {
            let complement = exact.get(&(all & !vertex.labels)).copied();
            let others = degenerate_ys.iter().copied().filter(fits);
            pairs.extend(complement.into_iter().chain(others).map(|y| (x, y)));
        }
    }
    pairs
}

/// Numbers the connected components of the graph whose edges are the pairs.
fn components(pairs: &[(usize, usize)], xs: usize) -> Vec<usize> {
    let nodes = pairs.iter().map(|(_, y)| xs + y + 1).max().unwrap_or(0);
    let mut parent: Vec<usize> = (0..nodes).collect();
    fn root(parent: &mut [usize], mut node: usize) -> usize {
        while parent[node] != node {
            parent[node] = parent[parent[node]];
            node = parent[node];
        }
        node
    }
    for (x, y) in pairs {
        let (a, b) = (root(&mut parent, *x), root(&mut parent, xs + y));
        parent[a] = b;
    }
    let mut numbers = HashMap::new();
    pairs
        .iter()
        .map(|(x, _)| {
            let next = numbers.len();
            *numbers.entry(root(&mut parent, *x)).or_insert(next)
        })
        .collect()
}
