//! Agreements on one joint action or on a lottery among them, measured from what each player has
//! without one: Nash's product (1950), Kalai and Smorodinsky's even share of what is possible
//! (1975), and the best least gain.

use crate::lottery::LinearProgram;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The largest product of gains.
    NashProduct,
    /// The largest even share of each one's best possible gain.
    KalaiSmorodinsky,
    /// The largest least gain.
    MaxMin,
    /// The largest sum of gains.
    Utilitarian,
}

/// A lottery over outcomes, by their index.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreement {
    pub lottery: Vec<f64>,
    pub gains: Vec<f64>,
}

/// Gains below this are none.
const NONE: f64 = 1e-9;
/// The concave search ends when no outcome promises more than this share.
const GAP: f64 = 1e-9;
const STEPS: u32 = 20_000;

/// `gains[outcome][player]` is what an outcome gives beyond the disagreement. The index of the best
/// outcome in which nobody loses; `None` when there is none.
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
        // Among equals the one with the larger sum: never one that another dominates.
        let key = (score(outcome), outcome.iter().sum());
        if best.is_none_or(|(_, b)| key > b) {
            best = Some((index, key));
        }
    }
    best.map(|(index, _)| index)
}

/// The same over lotteries. `None` when there is no lottery in which nobody loses, when outcomes
/// are not of the same players, or when it was stopped.
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
            let able = (0..players).filter(|p| best[*p] > NONE).collect();
            product(&scaled, able, start, stopped)?
        }
    };
    Some(Agreement {
        gains: (0..players).map(|i| mean(gains, &lottery, i)).collect(),
        lottery,
    })
}

/// A program over the lotteries in which nobody loses.
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

/// The most that each player could have in a lottery in which nobody loses.
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

/// The lottery whose least gain, in each player's unit, is largest. Who has no unit does not count;
/// a little of the sum decides between equals.
fn best_least_share(
    gains: &[Vec<f64>],
    units: &[f64],
    stopped: &dyn Fn() -> bool,
) -> Option<Vec<f64>> {
    if units.iter().all(|u| *u <= NONE) {
        return most_in_sum(gains, stopped);
    }
    let sums = gains.iter().map(|o| 1e-6 * o.iter().sum::<f64>());
    let mut program = rational(gains, sums, 1.0);
    for (player, unit) in units.iter().enumerate().filter(|(_, u)| **u > NONE) {
        program.at_least(column(gains, player), *unit, 0.0);
    }
    program.solve(stopped)
}

fn is_rational(outcome: &[f64]) -> bool {
    outcome.iter().all(|g| *g >= 0.0)
}

/// Each player's best gain among the outcomes where nobody loses.
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

/// The product's logarithm; an outcome that leaves fewer players without gain comes first.
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

/// A lottery in use, what it gives those who can gain, and its weight.
struct Atom {
    lottery: Vec<f64>,
    gains: Vec<f64>,
    weight: f64,
}

/// Maximises the product of gains by pairwise steps (Lacoste-Julien and Jaggi, 2015): weight moves
/// from the worst lottery in use to the best possible one, as far as that helps.
fn product(
    gains: &[Vec<f64>],
    able: Vec<usize>,
    start: Vec<f64>,
    stopped: &dyn Fn() -> bool,
) -> Option<Vec<f64>> {
    let players = gains[0].len();
    let atom = |lottery: Vec<f64>, weight| Atom {
        gains: able.iter().map(|p| mean(gains, &lottery, *p)).collect(),
        lottery,
        weight,
    };
    // Those who can gain nothing must not lose either; without any, an outcome itself is best.
    let best_lottery = |worths: &[f64]| -> Option<Vec<f64>> {
        if able.len() == players {
            let best = (0..gains.len()).max_by(|a, b| worths[*a].total_cmp(&worths[*b]))?;
            let mut lottery = vec![0.0; gains.len()];
            lottery[best] = 1.0;
            return Some(lottery);
        }
        let mut program = LinearProgram::new(worths.iter().copied(), 0.0);
        for player in (0..players).filter(|p| !able.contains(p)) {
            program.at_least(column(gains, player), 0.0, 0.0);
        }
        program.solve(stopped)
    };
    let mut atoms = vec![atom(start, 1.0)];
    for step in 0..STEPS {
        if able.is_empty() || (step % 16 == 15 && stopped()) {
            break;
        }
        let now: Vec<f64> = (0..able.len())
            .map(|p| atoms.iter().map(|a| a.weight * a.gains[p]).sum())
            .collect();
        let worth = |gain: &dyn Fn(usize) -> f64| -> f64 {
            now.iter().enumerate().map(|(p, n)| gain(p) / n).sum()
        };
        let worths: Vec<f64> = gains.iter().map(|o| worth(&|p| o[able[p]])).collect();
        let towards = atom(best_lottery(&worths)?, 0.0);
        if worth(&|p| towards.gains[p]) - able.len() as f64 <= GAP {
            break;
        }
        let value = |a: &Atom| worth(&|p| a.gains[p]);
        let worst =
            (0..atoms.len()).min_by(|a, b| value(&atoms[*a]).total_cmp(&value(&atoms[*b])))?;
        let best = match atoms.iter().position(|a| a.lottery == towards.lottery) {
            Some(known) => known,
            None => {
                atoms.push(towards);
                atoms.len() - 1
            }
        };
        let pairs = atoms[best].gains.iter().zip(&atoms[worst].gains);
        let change: Vec<f64> = pairs.map(|(b, w)| b - w).collect();
        let moved = line_search(&now, &change, atoms[worst].weight);
        atoms[best].weight += moved;
        atoms[worst].weight -= moved;
        atoms.retain(|a| a.weight > 0.0);
    }
    let mut lottery = vec![0.0; gains.len()];
    for atom in &atoms {
        crate::kernel::add_scaled(&mut lottery, atom.weight, &atom.lottery);
    }
    Some(lottery)
}

/// The best step in 0..=most for the sum of logarithms, by bisection on its slope.
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
    fn rules_choose_among_outcomes() {
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
        // Nobody is left worse off for a tie.
        assert_eq!(
            outcome(Rule::MaxMin, &gains(&[&[1.0, 1.0], &[1.0, 2.0]])),
            Some(1)
        );
    }

    #[test]
    fn a_cake_is_divided() {
        // Linear utilities: Nash gives each half of the weight.
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
    fn who_can_gain_nothing_does_not_stop_the_others() {
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
    fn lotteries_may_use_outcomes_in_which_somebody_loses() {
        let all = gains(&[&[9.0, -1.0], &[-1.0, 9.0]]);
        let nash = lottery(Rule::NashProduct, &all, &|| false).unwrap();
        assert!(
            nash.gains.iter().all(|g| (g - 4.0).abs() < 1e-6),
            "{nash:?}"
        );
    }
}
