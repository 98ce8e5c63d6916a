//! All equilibria of a game, as far as they can be enumerated, and the best one by a preference.

use crate::{
    Game, Options, logit,
    newton::Newton,
    pure,
    search::{self, Control, Method, Search, Solution},
    solve::{embed, portfolio},
    supports::{self, Budget},
    vertices::{self, MAX_ALL},
};

/// Which equilibrium [`Game::select`] chooses when there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// The first one that is found.
    #[default]
    Any,
    /// The largest sum of payoffs.
    Welfare,
    /// The largest minimum of the payoffs, each as a share of its player's payoff range.
    Fairness,
    /// The limit of the principal branch of logit equilibria (McKelvey and Palfrey, 1995), which is
    /// unique in almost every game and is found without enumeration.
    Logit,
}

/// A set of equilibria, each with its certificate.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Equilibria {
    /// The equilibria. With two players the extreme ones: every other equilibrium is a mixture of
    /// these within one component.
    pub found: Vec<Solution>,
    /// The number of the connected component that each equilibrium belongs to.
    pub components: Vec<usize>,
    /// Whether the enumeration is known to have missed none.
    pub complete: bool,
}

/// The budget of a selection where not all equilibria can be enumerated.
const SELECTION_BUDGET: Budget = Budget {
    supports: 50_000,
    systems: 2_000,
};
/// The largest number of equilibria that are returned.
const MAX_FOUND: usize = 4_096;

impl Game {
    /// Enumerates equilibria until it is stopped: all extreme ones of a two-player game with at most
    /// [`MAX_ALL`] undominated actions for each player; otherwise the pure ones, and then one on
    /// each support that has one.
    pub fn equilibria(&self, options: &Options, control: &dyn Control) -> Equilibria {
        self.within(Budget::UNLIMITED, options, control)
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
            // The first one is certified even when the time is over.
            if index > 0 && control.is_stopped() {
                break;
            }
            let kernel = &mut search.kernel;
            let solution = search::certify_with(kernel, self, profile, *method, tolerance);
            if solution.converged() {
                found.push(solution);
            }
        }
        // The equilibria of a single player are the mixtures of its best actions: one component.
        let single = self.players() == 1;
        let component = |index| if single { 0 } else { index };
        Equilibria {
            components: (0..found.len()).map(component).collect(),
            complete: single && found.len() == profiles.len(),
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
            solution.set_iterations(extremes.bases);
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

    /// Finds the preferred equilibrium. Returns it with the equilibria it was chosen from.
    pub fn select(
        &self,
        preference: Preference,
        options: &Options,
        control: &dyn Control,
    ) -> (Solution, Equilibria) {
        let mut all = match preference {
            Preference::Any | Preference::Logit => Equilibria::default(),
            _ => self.within(SELECTION_BUDGET, options, control),
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
            None => self.any_equilibrium(options, control),
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

/// The pure equilibria, then one on each support that has one. When that finds none, the portfolio
/// searches for one.
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
