//! All equilibria where that can be said, and the best of those found, by a stated preference.

use crate::{
    Game, Options, logit,
    newton::Newton,
    pure,
    search::{self, Control, Method, Search, Solution},
    solve::{embed, portfolio},
    supports::{self, Budget},
    vertices::{self, MAX_ALL},
};

/// Which equilibrium is wanted when there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    #[default]
    Any,
    /// The largest sum of payoffs.
    Welfare,
    /// The largest least payoff, each as a share of its player's range.
    Fairness,
    /// The limit of the logit branch, which needs no comparison.
    Logit,
}

/// Equilibria, each with its certificate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Equilibria {
    /// With two players the extreme ones: all others are mixtures of these within a component.
    pub found: Vec<Solution>,
    /// The connected component of each.
    pub components: Vec<usize>,
    /// Whether there are no others.
    pub complete: bool,
}

/// What looking for equilibria to choose from may cost, where not all can be found.
const TO_CHOOSE_FROM: Budget = Budget {
    supports: 50_000,
    systems: 2_000,
};
/// Equilibria kept of a game that has more.
const MAX_FOUND: usize = 4_096;

impl Game {
    /// Finds all equilibria that it can, until it is stopped: all extreme ones of a two-player game
    /// that has no more than [`MAX_ALL`] undominated actions a player; otherwise pure ones, then
    /// one on each support where there is one.
    pub fn equilibria(&self, options: &Options, control: &dyn Control) -> Equilibria {
        self.within(Budget::ENDLESS, options, control)
    }

    fn within(&self, budget: Budget, options: &Options, control: &dyn Control) -> Equilibria {
        let tolerance = options.tolerance(self);
        let kept = pure::undominated(self, &|| control.is_stopped());
        if self.players() == 2 && kept.iter().all(|k| k.len() <= MAX_ALL) {
            return self.extremes(&kept, tolerance, control);
        }
        let mut search = Search::new(self, tolerance, control);
        let profiles = collect(&mut search, budget, options.seed);
        let mut found = Vec::with_capacity(profiles.len());
        for (index, (method, profile)) in profiles.iter().enumerate() {
            // The first is worth its certificate even when the time is over.
            if index > 0 && control.is_stopped() {
                break;
            }
            let kernel = &mut search.kernel;
            let solution = search::certify_with(kernel, self, profile, *method, tolerance);
            if solution.converged() {
                found.push(solution);
            }
        }
        // One player's equilibria are the mixtures of its best actions.
        let alone = self.players() == 1;
        let component = |index| if alone { 0 } else { index };
        Equilibria {
            components: (0..found.len()).map(component).collect(),
            complete: alone && found.len() == profiles.len(),
            found,
        }
    }

    fn extremes(&self, kept: &[Vec<usize>], tolerance: f64, control: &dyn Control) -> Equilibria {
        let small = self.restricted(kept);
        let extremes = vertices::search(&small, &|| control.is_stopped());
        let mut complete = extremes.complete && extremes.profiles.len() <= MAX_FOUND;
        let mut out = Equilibria {
            found: Vec::new(),
            components: Vec::new(),
            complete: false,
        };
        let pairs = extremes.profiles.iter().zip(&extremes.components);
        for (profile, component) in pairs.take(MAX_FOUND) {
            let whole = embed(self, kept, profile);
            let mut solution = search::certify(self, &whole, Method::VertexEnumeration, tolerance);
            solution.seen_at(extremes.bases);
            if solution.converged() {
                out.found.push(solution);
                out.components.push(*component);
            } else {
                complete = false;
            }
        }
        out.complete = complete;
        out
    }

    /// The preferred one of the equilibria that were found, and those it was chosen from.
    pub fn select(
        &self,
        preference: Preference,
        options: &Options,
        control: &dyn Control,
    ) -> (Solution, Equilibria) {
        let mut all = match preference {
            Preference::Any | Preference::Logit => Equilibria::default(),
            _ => self.within(TO_CHOOSE_FROM, options, control),
        };
        let worth = |s: &Solution| self.worth(preference, s);
        let best = all
            .found
            .iter()
            .max_by(|a, b| worth(a).total_cmp(&worth(b)));
        let chosen = match best {
            Some(best) => best.clone(),
            None if preference == Preference::Logit && self.players() > 1 => {
                let mut search = Search::new(self, options.tolerance(self), control);
                logit::search(&mut search, &mut Newton::new(self));
                search.finish()
            }
            None => self.any(options, control),
        };
        if all.found.is_empty() && chosen.converged() {
            all.found.push(chosen.clone());
            all.components.push(0);
        }
        (chosen, all)
    }

    fn worth(&self, preference: Preference, solution: &Solution) -> f64 {
        let shares = solution.payoffs.iter().enumerate();
        match preference {
            Preference::Fairness => shares
                .filter(|(i, _)| self.span(*i) > 0.0)
                .map(|(i, p)| (p - self.low(i)) / self.span(i))
                .fold(f64::INFINITY, f64::min),
            _ => solution.payoffs.iter().sum(),
        }
    }
}

/// Pure equilibria, then one on each support where there is one; one at least, if that takes a
/// search.
fn collect(search: &mut Search<'_>, budget: Budget, seed: u64) -> Vec<(Method, Vec<f64>)> {
    let game = search.game;
    let mut profiles: Vec<(Method, Vec<f64>)> = pure::equilibria(game)
        .into_iter()
        .take(MAX_FOUND)
        .map(|cell| (Method::Pure, pure::profile(game, cell)))
        .collect();
    if game.players() == 1 {
        return profiles;
    }
    let mut newton = Newton::new(game);
    supports::search(search, &mut newton, budget, &mut |found| {
        profiles.push((Method::SupportEnumeration, found.to_vec()));
        profiles.len() >= MAX_FOUND
    });
    if profiles.is_empty() && !search.is_stopped() {
        portfolio(search, seed);
        profiles.push((search.method(), search.best().to_vec()));
    }
    profiles
}
