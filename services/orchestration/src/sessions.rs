//! Sessions: worlds that callers step, with the living agents in them.
//!
//! A session is a row with the state of its world, so that it survives the process and is stepped at any replica.
//! Each step starts from the row and replaces it if nobody else has meanwhile.

mod equilibrium;
mod history;
mod step;
mod watch;

pub(crate) use equilibrium::{Equilibrium, LastDistance, Measurement, Place};
pub(crate) use step::{StepCall, SteppedSession};
pub(crate) use watch::{StepEvent, Watcher};

use crate::{
    Orchestration, OrchestrationError,
    empirical::{self, Scene},
    store::{self, SessionBody, SessionRow, StepRecord},
};
use rand::SeedableRng;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tars_runtime::{page, tasks::to_the_end};
use tars_worlds::Generator;
use uuid::Uuid;

/// Open sessions of one owner.
const OPEN: i64 = 16;
/// Sessions of one owner that are retained after they were closed.
const CLOSED: i64 = 16;
/// How long a session is retained after its last use.
const UNUSED: Duration = Duration::from_secs(24 * 3600);

/// A session with what its agents observe.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionView {
    pub(crate) row: SessionRow,
    pub(crate) observations: BTreeMap<String, Vec<f32>>,
}

impl SessionView {
    fn new(row: SessionRow, scene: &Scene) -> Self {
        let seen = scene.observations();
        let observations = seen.map(|(agent, seen)| (agent.to_owned(), seen.to_vec()));
        Self {
            row,
            observations: observations.collect(),
        }
    }
}

fn no_session(id: Uuid) -> OrchestrationError {
    OrchestrationError::NotFound("session", id.to_string())
}

impl Orchestration {
    /// Creates a session in the first state of an episode, and deletes those that are no longer retained.
    pub(crate) async fn create_session(
        self: &Arc<Self>,
        owner: String,
        environment: Option<String>,
        seed: Option<u64>,
    ) -> Result<SessionView, OrchestrationError> {
        let living = || empirical::environment(&self.agents).to_owned();
        let environment = environment.unwrap_or_else(living);
        let seed = seed.unwrap_or_else(|| self.seeds.draw());
        let mut scene = Scene::new(&self.agents, &environment)?;
        let mut rng = Generator::seed_from_u64(seed);
        scene.world.reset(&mut rng, &mut scene.seen);
        let now_us = self.clock.now_us();
        let row = SessionRow {
            id: Uuid::now_v7(),
            owner,
            environment,
            seed: seed as i64,
            steps: 0,
            episode: 1,
            episode_steps: 0,
            created_us: now_us,
            used_us: now_us,
            closed_us: None,
            world: scene.snapshot()?,
            body: SessionBody {
                rng,
                recent: BTreeMap::new(),
            },
        };
        let view = SessionView::new(row, &scene);
        let this = Arc::clone(self);
        to_the_end(async move {
            this.insert_session(&view.row).await?;
            Ok(view)
        })
        .await
    }

    async fn insert_session(&self, row: &SessionRow) -> Result<(), OrchestrationError> {
        let age = i64::try_from(UNUSED.as_micros()).unwrap_or(i64::MAX);
        let mut tx = self.store.begin("sessions.create").await?;
        store::delete_old_sessions(&mut tx, &row.owner, row.created_us - age, CLOSED).await?;
        let open = store::open_sessions(&mut tx, &row.owner).await?;
        if open >= OPEN {
            return Err(OrchestrationError::SessionsFull(open));
        }
        store::insert_session(&mut tx, row).await?;
        Ok(self.sessions.commit(tx).await?)
    }

    /// A session of its owner.
    pub(crate) async fn session(
        &self,
        id: Uuid,
        owner: &str,
    ) -> Result<SessionView, OrchestrationError> {
        let row = self.session_row(id, owner).await?;
        let scene = self.scene_of(&row)?;
        Ok(SessionView::new(row, &scene))
    }

    async fn session_row(&self, id: Uuid, owner: &str) -> Result<SessionRow, OrchestrationError> {
        let found = self.store.session(id, owner).await?;
        found.ok_or_else(|| no_session(id))
    }

    /// A session that can be stepped.
    async fn open_session(&self, id: Uuid, owner: &str) -> Result<SessionRow, OrchestrationError> {
        let row = self.session_row(id, owner).await?;
        match row.closed_us {
            None => Ok(row),
            Some(_) => Err(OrchestrationError::SessionClosed),
        }
    }

    /// The world of a session, in its state.
    fn scene_of(&self, row: &SessionRow) -> Result<Scene, OrchestrationError> {
        let mut scene = Scene::new(&self.agents, &row.environment)?;
        scene.restore(&row.world)?;
        Ok(scene)
    }

    /// The sessions of an owner, newest first, and the token of the next page.
    pub(crate) async fn list_sessions(
        &self,
        owner: &str,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<SessionRow>, String), OrchestrationError> {
        let before = page::start(token, Uuid::max())?;
        let size = page::size(page_size);
        let rows = self.store.sessions(owner, before, size).await?;
        Ok(rows.cut(|row| row.id.to_string()))
    }

    /// Closes a session; one that is closed stays as it is.
    pub(crate) async fn close_session(
        self: &Arc<Self>,
        id: Uuid,
        owner: String,
    ) -> Result<SessionRow, OrchestrationError> {
        let this = Arc::clone(self);
        to_the_end(async move {
            let mut tx = this.store.begin("sessions.close").await?;
            store::close_session(&mut tx, id, &owner, this.clock.now_us()).await?;
            let row = store::session(&mut tx, id, &owner).await?;
            let row = row.ok_or_else(|| no_session(id))?;
            this.sessions.commit(tx).await?;
            Ok(row)
        })
        .await
    }

    /// The steps of a session, newest first, and the token of the next page.
    pub(crate) async fn list_steps(
        &self,
        id: Uuid,
        owner: &str,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<StepRecord>, String), OrchestrationError> {
        self.session_row(id, owner).await?;
        let before = page::start(token, i64::MAX)?;
        let size = page::size(page_size);
        let rows = self.store.steps_before(id, before, size).await?;
        Ok(rows.cut(|row| row.step.to_string()))
    }
}

#[cfg(test)]
mod tests;
