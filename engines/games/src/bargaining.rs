//! Bargaining solutions: an agreement on one outcome or on a lottery over outcomes, by the players'
//! gains over the disagreement point.
//!
//! The rules are Nash's product ("The Bargaining Problem", 1950), the equal shares of Kalai and
//! Smorodinsky (1975), the egalitarian maximum of the smallest gain (Kalai, 1977), and the
//! utilitarian sum.

use crate::lottery::LinearProgram;

/// What a bargaining solution maximises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The product of the gains.
    NashProduct,
    /// The smallest share that a player gets of its largest possible gain.
    KalaiSmorodinsky,
    /// The smallest gain.
    MaxMin,
    /// The sum of the gains.
    Utilitarian,
}

/// A lottery over outcomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    /// The probability of each outcome; the sum is one.
    pub lottery: Vec<f64>,
    /// The expected gain of each player.
    pub gains: Vec<f64>,
}

/// Gains below this are treated as zero.
const ZERO_GAIN: f64 = 1e-9;
/// The search for Nash's product ends at this duality gap of the sum of logarithms.
const GAP: f64 = 1e-9;
/// The steps of that search after which it ends with what it has.
const MAX_STEPS: u32 = 20_000;

/// The best outcome in which nobody loses, by its index; `None` when there is none.
/// `gains[outcome][player]` is what an outcome gives a player beyond the disagreement point. Among
/// equally good outcomes the one with the largest sum is chosen, which no other dominates.
pub fn outcome(rule: Rule, gains: &[Vec<f64>]) -> Option<usize> {
    let ideal = ideal(gains)?;
    let score = |outcome: &Vec<f64>| match rule {
        Rule::NashProduct => nash_score(outcome),
        Rule::KalaiSmorodinsky => shares(outcome, &ideal).fold(f64::INFINITY, f64::min),
        Rule::MaxMin => outcome.iter().copied().fold(f64::INFINITY, f64::min),
        Rule::Utilitarian => outcome.iter().sum(),
    };
    let mut best: Option<(usize, (f64, f64))> = None;
    for (index, outcome) in gains.iter().enumerate().filter(|(_, g)| is_rational(g)) {
        let key = (score(outcome), outcome.iter().sum());
        if best.is_none_or(|(_, b)| key > b) {
            best = Some((index, key));
        }
    }
    best.map(|(index, _)| index)
}

/// The best lottery over outcomes in which nobody loses in expectation. `None` when there is no such
/// lottery, when outcomes differ in their number of players, or when `stopped` returns true.
pub fn lottery(rule: Rule, gains: &[Vec<f64>], stopped: &dyn Fn() -> bool) -> Option<Agreement> {
    let players = gains.first()?.len();
    if gains.iter().any(|o| o.len() != players) {
        return None;
    }
    let scale = gains
        .iter()
        .flatten()
        .fold(f64::MIN_POSITIVE, |s, g| s.max(g.abs()));
    let scaled: Vec<Vec<f64>> = gains
        .iter()
        .map(|o| o.iter().map(|g| g / scale).collect())
        .collect();
    let lottery = match rule {
        Rule::Utilitarian => most_in_sum(&scaled, stopped)?,
        Rule::MaxMin => best_least_share(&scaled, &vec![1.0; players], stopped)?,
        Rule::KalaiSmorodinsky => {
            best_least_share(&scaled, &best_possible(&scaled, players, stopped)?, stopped)?
        }
        Rule::NashProduct => {
            let best = best_possible(&scaled, players, stopped)?;
            let start = best_least_share(&scaled, &best, stopped)?;
            let able = (0..players).filter(|p| best[*p] > ZERO_GAIN).collect();
            nash_product(&scaled, able, start, stopped)?
        }
    };
    Some(Agreement {
        gains: (0..players).map(|i| mean(gains, &lottery, i)).collect(),
        lottery,
    })
}

/// A linear program over the lotteries in which nobody loses.
fn rational(gains: &[Vec<f64>], objective: impl Iterator<Item = f64>, level: f64) -> LinearProgram {
    let mut program = LinearProgram::new(objective, level);
    for player in 0..gains[0].len() {
        program.at_least(column(gains, player), 0.0, 0.0);
    }
    program
}

fn most_in_sum(gains: &[Vec<f64>], stopped: &dyn Fn() -> bool) -> Option<Vec<f64>> {
    rational(gains, gains.iter().map(|o| o.iter().sum()), 0.0).solve(stopped)
}

/// The largest gain that each player has in any lottery in which nobody loses.
fn best_possible(
    gains: &[Vec<f64>],
    players: usize,
    stopped: &dyn Fn() -> bool,
) -> Option<Vec<f64>> {
    let best_of = |player: usize| {
        let best = rational(gains, gains.iter().map(|o| o[player]), 0.0).solve(stopped)?;
        Some(mean(gains, &best, player))
    };
    (0..players).map(best_of).collect()
}

/// The lottery with the largest minimum of the gains, each divided by its player's unit. Players
/// without a unit are left out, and a small multiple of the sum breaks ties.
fn best_least_share(
    gains: &[Vec<f64>],
    units: &[f64],
    stopped: &dyn Fn() -> bool,
) -> Option<Vec<f64>> {
    if units.iter().all(|u| *u <= ZERO_GAIN) {
        return most_in_sum(gains, stopped);
    }
    let sums = gains.iter().map(|o| 1e-6 * o.iter().sum::<f64>());
    let mut program = rational(gains, sums, 1.0);
    for (player, unit) in units.iter().enumerate().filter(|(_, u)| **u > ZERO_GAIN) {
        program.at_least(column(gains, player), *unit, 0.0);
    }
    program.solve(stopped)
}

fn is_rational(outcome: &[f64]) -> bool {
    outcome.iter().all(|g| *g >= 0.0)
}

/// Each player's largest gain among the outcomes in which nobody loses.
fn ideal(gains: &[Vec<f64>]) -> Option<Vec<f64>> {
    let mut rational = gains.iter().filter(|g| is_rational(g));
    let first = rational.next()?.clone();
    Some(rational.fold(first, |best, outcome| {
        best.iter().zip(outcome).map(|(b, g)| b.max(*g)).collect()
    }))
}

fn shares<'a>(outcome: &'a [f64], ideal: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    let pairs = outcome.iter().zip(ideal);
    pairs.filter(|(_, i)| **i > 0.0).map(|(g, i)| g / i)
}

/// The logarithm of the product. A zero gain counts as 1e-300, so that an outcome with fewer of them
/// is better.
fn nash_score(outcome: &[f64]) -> f64 {
    outcome.iter().map(|g| g.max(1e-300).ln()).sum()
}

fn column(gains: &[Vec<f64>], player: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
    gains.iter().map(move |o| o[player]).enumerate()
}

fn mean(gains: &[Vec<f64>], lottery: &[f64], player: usize) -> f64 {
    let pairs = gains.iter().zip(lottery);
    pairs.map(|(o, w)| o[player] * w).sum()
}

/// Maximises the product of the gains of those who can gain at all.
fn nash_product(
    gains: &[Vec<f64>],
    able: Vec<usize>,
    start: Vec<f64>,
    stopped: &dyn Fn() -> bool,
) -> Option<Vec<f64>> {
    let mut search = PairwiseSearch::new(gains, able, start);
    for step in 0..MAX_STEPS {
        if search.able.is_empty() || (step % 16 == 15 && stopped()) {
            break;
        }
        if !search.step(stopped)? {
            break;
        }
    }
    Some(search.lottery())
}

/// A vertex of the lotteries that has weight: what it gives those who can gain.
struct Atom {
    lottery: Vec<f64>,
    gains: Vec<f64>,
    weight: f64,
}

/// The pairwise variant of the Frank-Wolfe algorithm (Lacoste-Julien and Jaggi, "On the Global Linear
/// Convergence of Frank-Wolfe Optimization Variants", 2015) for the sum of the gains' logarithms:
/// each step moves weight from the worst atom to the best vertex.
struct PairwiseSearch<'a> {
    gains: &'a [Vec<f64>],
    /// The players who can gain.
    able: Vec<usize>,
    atoms: Vec<Atom>,
}

impl<'a> PairwiseSearch<'a> {
    fn new(gains: &'a [Vec<f64>], able: Vec<usize>, start: Vec<f64>) -> Self {
        let mut search = Self {
            gains,
            able,
            atoms: Vec::new(),
        };
        let first = search.atom(start, 1.0);
        search.atoms.push(first);
        search
    }

    fn atom(&self, lottery: Vec<f64>, weight: f64) -> Atom {
        let gain = |p: &usize| mean(self.gains, &lottery, *p);
        Atom {
            gains: self.able.iter().map(gain).collect(),
            lottery,
            weight,
        }
    }

    /// One pairwise step; false once the duality gap is closed. `None` when the linear program has
    /// no solution or was stopped.
    fn step(&mut self, stopped: &dyn Fn() -> bool) -> Option<bool> {
        let now: Vec<f64> = (0..self.able.len())
            .map(|p| self.atoms.iter().map(|a| a.weight * a.gains[p]).sum())
            .collect();
        // The objective's slope towards a point with these gains.
        let slope = |gain: &dyn Fn(usize) -> f64| -> f64 {
            now.iter().enumerate().map(|(p, n)| gain(p) / n).sum()
        };
        let of_outcome = |o: &Vec<f64>| slope(&|p| o[self.able[p]]);
        let slopes: Vec<f64> = self.gains.iter().map(of_outcome).collect();
        let towards = self.atom(self.best_vertex(&slopes, stopped)?, 0.0);
        let of_atom = |a: &Atom| slope(&|p| a.gains[p]);
        if of_atom(&towards) - self.able.len() as f64 <= GAP {
            return Some(false);
        }
        let worst = (0..self.atoms.len())
            .min_by(|a, b| of_atom(&self.atoms[*a]).total_cmp(&of_atom(&self.atoms[*b])))?;
        let best = self.index_of(towards);
        self.shift(worst, best, &now);
        Some(true)
    }

    /// The vertex with the largest slope: a single outcome, unless those who can gain nothing must be
    /// kept from losing.
    fn best_vertex(&self, slopes: &[f64], stopped: &dyn Fn() -> bool) -> Option<Vec<f64>> {
        let players = self.gains[0].len();
        if self.able.len() == players {
            let best = (0..slopes.len()).max_by(|a, b| slopes[*a].total_cmp(&slopes[*b]))?;
            let mut lottery = vec![0.0; slopes.len()];
            lottery[best] = 1.0;
            return Some(lottery);
        }
        let mut program = LinearProgram::new(slopes.iter().copied(), 0.0);
        for player in (0..players).filter(|p| !self.able.contains(p)) {
            program.at_least(column(self.gains, player), 0.0, 0.0);
        }
        program.solve(stopped)
    }

    /// The index of an atom with this lottery, which is added if there is none.
    fn index_of(&mut self, atom: Atom) -> usize {
        let known = self.atoms.iter().position(|a| a.lottery == atom.lottery);
        known.unwrap_or_else(|| {
            self.atoms.push(atom);
            self.atoms.len() - 1
        })
    }

    /// Moves weight from one atom to another as far as the objective grows.
    fn shift(&mut self, from: usize, to: usize, now: &[f64]) {
        let pairs = self.atoms[to].gains.iter().zip(&self.atoms[from].gains);
        let change: Vec<f64> = pairs.map(|(t, f)| t - f).collect();
        let moved = line_search(now, &change, self.atoms[from].weight);
        self.atoms[to].weight += moved;
        self.atoms[from].weight -= moved;
        self.atoms.retain(|a| a.weight > 0.0);
    }

    fn lottery(&self) -> Vec<f64> {
        let mut lottery = vec![0.0; self.gains.len()];
        for atom in &self.atoms {
            crate::kernel::add_scaled(&mut lottery, atom.weight, &atom.lottery);
        }
        lottery
    }
}

/// The best step in `0..=most` for the sum of logarithms, by bisection on its slope.
fn line_search(now: &[f64], change: &[f64], most: f64) -> f64 {
    let slope = |t: f64| -> f64 {
        let pairs = now.iter().zip(change);
        pairs
            .map(|(n, c)| {
                let at = n + t * c;
                if at > 0.0 { c / at } else { f64::NEG_INFINITY }
            })
            .sum()
    };
    if slope(most) >= 0.0 {
        return most;
    }
    let (mut low, mut high) = (0.0, most);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if slope(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gains(outcomes: &[&[f64]]) -> Vec<Vec<f64>> {
        outcomes.iter().map(|o| o.to_vec()).collect()
    }

    #[test]
    fn each_rule_chooses_its_outcome() {
        let all = gains(&[
            &[10.0, 1.0],
            &[4.0, 4.0],
            &[0.0, 9.0],
            &[20.0, -1.0],
            &[3.0, 3.0],
        ]);
        assert_eq!(outcome(Rule::NashProduct, &all), Some(1));
        assert_eq!(outcome(Rule::Utilitarian, &all), Some(0));
        assert_eq!(outcome(Rule::MaxMin, &all), Some(1));
        assert_eq!(outcome(Rule::KalaiSmorodinsky, &all), Some(1));
        assert_eq!(outcome(Rule::MaxMin, &gains(&[&[-1.0, 5.0]])), None);
        assert_eq!(outcome(Rule::MaxMin, &[]), None);
        // A tie in the smallest gain goes to the outcome that dominates.
        assert_eq!(
            outcome(Rule::MaxMin, &gains(&[&[1.0, 1.0], &[1.0, 2.0]])),
            Some(1)
        );
    }

    #[test]
    fn each_rule_divides_a_cake_as_known() {
        // With linear utilities Nash's product gives each outcome half of the weight.
        let cake = gains(&[&[4.0, 0.0], &[0.0, 1.0]]);
        let nash = lottery(Rule::NashProduct, &cake, &|| false).unwrap();
        assert!((nash.lottery[0] - 0.5).abs() < 1e-6, "{nash:?}");
        let ks = lottery(Rule::KalaiSmorodinsky, &cake, &|| false).unwrap();
        assert!((ks.lottery[0] - 0.5).abs() < 1e-5, "{ks:?}");
        let fair = lottery(Rule::MaxMin, &cake, &|| false).unwrap();
        assert!((fair.gains[0] - 0.8).abs() < 1e-5, "{fair:?}");
        let sum = lottery(Rule::Utilitarian, &cake, &|| false).unwrap();
        assert_eq!(sum.lottery, [1.0, 0.0]);
    }

    #[test]
    fn a_player_without_possible_gain_does_not_keep_others_from_gaining() {
        let stuck = gains(&[&[0.0, 3.0], &[-1.0, 9.0], &[0.0, 1.0]]);
        let nash = lottery(Rule::NashProduct, &stuck, &|| false).unwrap();
        assert!((nash.gains[1] - 3.0).abs() < 1e-6, "{nash:?}");
        assert!(lottery(Rule::NashProduct, &gains(&[&[-1.0, -1.0]]), &|| false).is_none());
        assert!(lottery(Rule::MaxMin, &[], &|| false).is_none());
        assert!(lottery(Rule::MaxMin, &gains(&[&[1.0], &[1.0, 2.0]]), &|| false).is_none());
        for rule in [
            Rule::NashProduct,
            Rule::KalaiSmorodinsky,
            Rule::MaxMin,
            Rule::Utilitarian,
        ] {
            let nothing = gains(&[&[0.0, 0.0], &[-1.0, 0.0]]);
            assert_eq!(
                lottery(rule, &nothing, &|| false).unwrap().gains,
                [0.0, 0.0]
            );
        }
    }

    #[test]
    fn a_lottery_may_mix_outcomes_in_which_one_player_loses() {
        let all = gains(&[&[9.0, -1.0], &[-1.0, 9.0]]);
        let nash = lottery(Rule::NashProduct, &all, &|| false).unwrap();
        assert!(
            nash.gains.iter().all(|g| (g - 4.0).abs() < 1e-6),
            "{nash:?}"
        );
    }
}
