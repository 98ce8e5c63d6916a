//! How far the living agents are from an equilibrium of the empirical game of a state.

use super::step::measuring_seed;
use crate::{
    Orchestration, OrchestrationError,
    empirical::{self, Scene},
    solvers::{Solve, Watch},
    store::{Episode, GameRecord, NashOrigin, NashPoint},
};
use parking_lot::Mutex;
use rand::SeedableRng;
use std::sync::Arc;
use tars_games::{Options, Solution};
use tars_interceptors::usage::Allowance;
use tars_runtime::{clock::Clock, metrics::Metrics, tasks::to_the_end};
use tars_worlds::{Generator, TimeStep, egta::Plan};
use tokio::time::Instant;
use uuid::Uuid;

/// The distance that was measured last, for a metric that is absent before.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastDistance(Arc<Mutex<Option<f64>>>);

impl LastDistance {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let last = Self::default();
        let read = last.clone();
        metrics.measure(
            "nash_convergence_distance",
            "What the agents would gain by their best actions in the game that is measured after each change of \
             weights, in units of reward per step, summed over the agents",
            "orchestration",
            move || *read.0.lock(),
        );
        last
    }

    fn set(&self, distance: f64) {
        *self.0.lock() = Some(distance);
    }
}

/// The state whose game is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// That of a session.
    Session(Uuid),
    /// That which the agents reach in an episode.
    Episode { seed: u64, steps: u32 },
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) owner: String,
    /// What that owner may use.
    pub(crate) allowance: Allowance,
    pub(crate) place: Place,
    pub(crate) rollouts: usize,
    /// The training run after which it is measured.
    pub(crate) run: Option<Uuid>,
    pub(crate) until: Option<Instant>,
}

/// A game and an equilibrium of it.
#[derive(Debug)]
pub(crate) struct Equilibrium {
    pub(crate) at_us: i64,
    pub(crate) environment: String,
    pub(crate) game: GameRecord,
    pub(crate) solution: Solution,
}

/// A world in which a game is measured, and how it gets there.
struct Ground {
    scene: Scene,
    environment: String,
    /// Determines the rollouts, and the episode.
    seed: u64,
    /// The steps of an episode that lead to the state; none where the world is in it.
    steps: Option<u32>,
}

impl Orchestration {
    /// Measures and solves the game of a state, and adds its distance to the history.
    pub(crate) async fn measure_equilibrium(
        self: &Arc<Self>,
        asked: Measurement,
    ) -> Result<Equilibrium, OrchestrationError> {
        let most = asked.until.map(|until| until - Instant::now());
        let solving = self.usage.begin_solve(&asked.allowance, None, most)?;
        let ground = self.ground(asked.place, &asked.owner).await?;
        let environment = ground.environment.clone();
        let plan = Plan {
            rollouts: asked.rollouts,
            seed: ground.seed,
            ..Plan::default()
        };
        let (tenure, clock) = (self.tenure()?, self.clock.clone());
        let work = move |watch: &Watch| ground.solve(&plan, &clock, watch);
        let solve = Solve::new(&asked.owner, asked.until, solving);
        let (game, solution) = self.solvers.run(solve, work).await??;
        Self::confirm(&tenure)?;
        let equilibrium = Equilibrium {
            at_us: self.clock.now_us(),
            environment,
            game,
            solution,
        };
        let point = equilibrium.point(&asked);
        let this = Arc::clone(self);
        to_the_end(async move {
            this.store.insert_nash_point(&asked.owner, &point).await?;
            if point.regular {
                this.nash.set(point.value);
            }
            Ok(equilibrium)
        })
        .await
    }

    async fn ground(&self, place: Place, owner: &str) -> Result<Ground, OrchestrationError> {
        match place {
            Place::Session(id) => {
                let row = self.open_session(id, owner).await?;
                Ok(Ground {
                    scene: self.scene_of(&row)?,
                    seed: measuring_seed(&row),
                    environment: row.environment,
                    steps: None,
                })
            }
            Place::Episode { seed, steps } => {
                let environment = empirical::environment(&self.agents).to_owned();
                Ok(Ground {
                    scene: Scene::new(&self.agents, &environment)?,
                    environment,
                    seed,
                    steps: Some(steps),
                })
            }
        }
    }
}

impl Ground {
    fn solve(
        mut self,
        plan: &Plan,
        clock: &Clock,
        watch: &Watch,
    ) -> Result<(GameRecord, Solution), OrchestrationError> {
        if let Some(steps) = self.steps {
            warm_up(&mut self.scene, self.seed, steps)?;
        }
        let acted = self.scene.act()?;
        let measured = self.scene.measure(&acted, plan, clock, watch)?;
        let solution = measured.game.solve(&Options::default(), watch)?;
        Ok((measured.record, solution))
    }
}

/// Lets the agents act for some steps of an episode. One that ends is followed by another.
fn warm_up(scene: &mut Scene, seed: u64, steps: u32) -> Result<(), OrchestrationError> {
    let mut rng = Generator::seed_from_u64(seed);
    let agents = scene.world.spec().agents.len();
    let mut got = vec![TimeStep::default(); agents];
    scene.world.reset(&mut rng, &mut scene.seen);
    for _ in 0..steps {
        let acted = scene.act()?.into_iter();
        let joint: Vec<_> = acted.map(|one| one.action).collect();
        scene
            .world
            .step(&joint, &mut rng, &mut scene.seen, &mut got);
        if got.iter().all(TimeStep::is_last) {
            scene.world.reset(&mut rng, &mut scene.seen);
        }
    }
    Ok(())
}

impl Equilibrium {
    fn point(&self, asked: &Measurement) -> NashPoint {
        let players = self.game.players.iter();
        let (session, episode) = match asked.place {
            Place::Session(id) => (Some(id), None),
            Place::Episode { seed, steps } => (None, Some(Episode { seed, steps })),
        };
        NashPoint {
            at_us: self.at_us,
            environment: self.environment.clone(),
            value: self.game.distance,
            low: self.game.low,
            high: self.game.high,
            regular: asked.is_regular(),
            origin: NashOrigin {
                weights: players
                    .map(|p| (p.agent.clone(), p.weights_version))
                    .collect(),
                session,
                episode,
                rollouts: asked.rollouts,
                run: asked.run,
                calibration: self.game.calibration.clone(),
            },
        }
    }
}
