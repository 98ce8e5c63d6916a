//! Proposals as they are shown: an open one beside what is live of its agent now.

use crate::{
    HyperSync, HyperSyncError,
    change::{Change, Standing},
    store::Proposal,
};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tars_proto::params::Params;

/// How long a view waits for what is live of an agent.
const LIVE_WITHIN: Duration = Duration::from_secs(1);

/// What is live of what a proposal changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Live {
    /// Hyperparameters and their version.
    Tuned(Params, u64),
    Standing(Standing),
}

/// What is asked for what is live: an agent, or a version of its weights.
type Subject = (String, Option<u64>);

/// A proposal with what is live of its agent, if it is open and that could be read.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) proposal: Proposal,
    pub(crate) live: Option<Arc<Live>>,
}

impl View {
    /// Whether the agent has changed since the proposal was made; `None` when this is unknown or no
    /// longer matters.
    pub(crate) fn is_stale(&self) -> Option<bool> {
        let live = self.live.as_ref()?;
        let waits = self.proposal.state.is_waiting();
        waits.then(|| self.proposal.staleness(live).is_some())
    }
}

impl Proposal {
    fn subject(&self) -> Subject {
        let version = match &self.change {
            Change::Tuning(_) => None,
            Change::Promotion { promotion } => Some(promotion.version),
        };
        (self.agent_id.clone(), version)
    }

    /// Why the proposal is not about what is live any more; `None` while it is.
    fn staleness(&self, live: &Live) -> Option<HyperSyncError> {
        match (&self.change, live) {
            (Change::Tuning(_), Live::Tuned(_, live)) if *live != self.base_version => {
                Some(HyperSyncError::Stale {
                    live: *live,
                    base: self.base_version,
                })
            }
            (Change::Promotion { promotion }, Live::Standing(now)) => {
                promotion.staleness(now).map(HyperSyncError::Moved)
            }
            _ => None,
        }
    }
}

impl HyperSync {
    /// Refuses a proposal that was made against something else than what is live.
    pub(crate) async fn require_current(&self, proposal: &Proposal) -> Result<(), HyperSyncError> {
        let live = self.live(&proposal.subject()).await?;
        proposal.staleness(&live).map_or(Ok(()), Err)
    }

    async fn live(&self, (agent, version): &Subject) -> Result<Live, HyperSyncError> {
        match version {
            None => {
                let (params, version) = self.read_back(agent).await?;
                Ok(Live::Tuned(params, version))
            }
            Some(version) => Ok(Live::Standing(self.standing(agent, *version).await?)),
        }
    }

    /// A proposal as it is shown, an open one with what is live of its agent.
    pub(crate) async fn view(&self, proposal: Proposal) -> View {
        let mut views = self.views(vec![proposal]).await;
        views.remove(0)
    }

    pub(crate) async fn views(&self, proposals: Vec<Proposal>) -> Vec<View> {
        let open = proposals.iter().filter(|p| !p.state.is_final());
        let subjects: BTreeSet<Subject> = open.map(Proposal::subject).collect();
        let asked = subjects.into_iter().map(|subject| async move {
            let live = tokio::time::timeout(LIVE_WITHIN, self.live(&subject)).await;
            Some((subject, Arc::new(live.ok()?.ok()?)))
        });
        let live: BTreeMap<Subject, Arc<Live>> =
            join_all(asked).await.into_iter().flatten().collect();
        let view = |proposal: Proposal| {
            let shown = !proposal.state.is_final();
            let live = live.get(&proposal.subject()).filter(|_| shown).cloned();
            View { proposal, live }
        };
        proposals.into_iter().map(view).collect()
    }
}
