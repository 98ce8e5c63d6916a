//! The ladder as Orchestration keeps it: the rule `aimd` answers as version 1, and the second version climbs. Once it
//! is ACTIVE it is the third.

use super::{AgentRecord, Call, Handle};
use crate::{
    change::{Incumbent, Placement, Promotion, Stage},
    peers::Ladder,
};
use std::collections::BTreeMap;
use tars_peers::PeerError;
use tars_proto::{
    fault,
    orchestration::v1::{
        Against, AgentComparison, ApplyPromotionRequest, CheckPromotionRequest,
        CheckPromotionResponse, ComparePromotionRequest, Placement as PlacementMessage,
        PromotionRefusal, RevertPromotionRequest, SettlePromotionRequest, Standing,
    },
    reason,
};
use tonic::{Code, Status, async_trait};

pub(crate) const FELL: &str = "an action was not finite";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LadderRecord {
    pub(crate) stage: Stage,
    pub(crate) trial: u64,
    /// The live version.
    pub(crate) live: u64,
    /// What the version has answered in its stage.
    pub(crate) steps: u64,
    pub(crate) fell: String,
    /// The reason of the gate that does not let it pass.
    pub(crate) refusal: Option<&'static str>,
    /// Whether the agent is bound to the live mesh.
    pub(crate) bound: bool,
    /// How often it was moved, up or down.
    pub(crate) moves: usize,
    /// Where each operation has put it; `None` for one that is never to take effect.
    operations: BTreeMap<String, Option<Placement>>,
}

impl LadderRecord {
    pub(super) fn fresh() -> Self {
        Self {
            stage: Stage::Shadow,
            trial: 0,
            live: 1,
            steps: 10,
            fell: String::new(),
            refusal: None,
            bound: true,
            moves: 0,
            operations: BTreeMap::new(),
        }
    }

    /// The version falls by itself.
    pub(super) fn fall(&mut self) {
        match self.stage {
            Stage::Canary => self.stage = Stage::Shadow,
            Stage::Active => {
                self.stage = Stage::Sim;
                self.live = 9;
            }
            other => panic!("nothing falls from {other}"),
        }
        FELL.clone_into(&mut self.fell);
    }

    pub(super) fn is_void(&self, operation: &str) -> bool {
        self.operations.get(operation) == Some(&None)
    }

    fn standing(&self, version: u64) -> Standing {
        let stage = match (version, self.stage) {
            // The number that it has as the ACTIVE one.
            (3, Stage::Active) => Stage::Active,
            (3, _) => Stage::Retired,
            (_, Stage::Active) => Stage::Sim,
            (_, stage) => stage,
        };
        Standing {
            stage: stage.into(),
            trial: self.trial,
            incumbent_version: self.live,
            incumbent_rule: "aimd".to_owned(),
            steps: self.steps,
            blocked: 1,
            fell: self.fell.clone(),
        }
    }

    fn above(&self) -> Result<Stage, Status> {
        match self.stage {
            Stage::Sim | Stage::Retired => Ok(Stage::Shadow),
            Stage::Shadow => Ok(Stage::Canary),
            Stage::Canary => Ok(Stage::Active),
            Stage::Active => Err(gate(reason::STAGE_ORDER)),
        }
    }

    fn ensure_bound(&self) -> Result<(), Status> {
        match self.bound {
            true => Ok(()),
            false => Err(gate(reason::NOT_BOUND)),
        }
    }

    fn placement(&self) -> Placement {
        Placement {
            stage: self.stage,
            version: match self.stage {
                Stage::Active => self.live,
                _ => 2,
            },
            trial: self.trial,
        }
    }

    fn lasts(&self, placement: Placement) -> bool {
        self.placement() == placement
    }

    fn climb(&mut self, request: &ApplyPromotionRequest) -> Result<Placement, Status> {
        if request.incumbent_version != self.live {
            let text = format!("version {} is live", self.live);
            return Err(fault::status(Code::Aborted, reason::VERSION_CHANGED, &text));
        }
        if let Some(reason) = self.refusal {
            return Err(gate(reason));
        }
        self.stage = self.above()?;
        if Stage::named(request.to_stage) != Some(self.stage) {
            return Err(gate(reason::STAGE_ORDER));
        }
        match self.stage {
            Stage::Canary => self.trial += 1,
            Stage::Active => (self.live, self.trial) = (3, 0),
            _ => {}
        }
        self.fell.clear();
        self.moves += 1;
        Ok(self.placement())
    }

    fn lower(&mut self, request: &RevertPromotionRequest) {
        self.moves += 1;
        if self.stage == Stage::Active {
            (self.stage, self.live) = (Stage::Sim, 4);
        } else {
            self.stage = Stage::named(request.from_stage).unwrap();
            self.trial = 0;
        }
    }
}

fn gate(reason: &str) -> Status {
    fault::precondition(reason, "version", "a gate does not let it pass")
}

impl AgentRecord {
    fn step_up(&mut self, request: &ApplyPromotionRequest) -> Result<Placement, Status> {
        self.ladder.ensure_bound()?;
        self.admit(&request.change_id, request.fencing_token)?;
        self.not_held(&request.change_id)?;
        let placement = match self.ladder.operations.get(&request.operation_id).copied() {
            Some(None) => return Err(fault::status(Code::Aborted, "SUPERSEDED", "given up")),
            Some(Some(done)) if self.hold.is_some() || !self.ladder.lasts(done) => return Ok(done),
            Some(Some(done)) => done,
            None => self.ladder.climb(request)?,
        };
        let id = request.operation_id.clone();
        self.ladder.operations.insert(id, Some(placement));
        self.hold = Some((request.change_id.clone(), false));
        Ok(placement)
    }

    fn step_back(&mut self, request: &RevertPromotionRequest) -> Result<(), Status> {
        self.ladder.ensure_bound()?;
        self.admit(&request.change_id, request.fencing_token)?;
        let operations = &mut self.ladder.operations;
        let taken = *operations
            .entry(request.operation_id.clone())
            .or_insert(None);
        if taken.is_some_and(|placement| self.ladder.lasts(placement)) {
            self.not_held(&request.change_id)?;
            self.ladder.lower(request);
        }
        Ok(())
    }

    fn settle_step(&mut self, request: &SettlePromotionRequest) -> Result<(), Status> {
        self.ladder.ensure_bound()?;
        self.admit(&request.change_id, request.fencing_token)?;
        if let Some(completed) = &request.completed {
            let placement = Placement::try_from(*completed).unwrap();
            if !self.ladder.lasts(placement) {
                let text = "it does not stand there any more";
                return Err(fault::status(Code::Aborted, reason::VERSION_CHANGED, text));
            }
        }
        let own = |(change, _): &mut (String, bool)| *change == request.change_id;
        self.hold.take_if(own);
        Ok(())
    }
}

/// A step of the second version.
pub(crate) fn step(from: Stage, to: Stage) -> Promotion {
    Promotion {
        version: 2,
        from,
        to,
        incumbent: Incumbent {
            version: 1,
            rule: "aimd".to_owned(),
        },
        comparison: None,
        placement: None,
        verification: None,
    }
}

#[async_trait]
impl Ladder for Handle {
    async fn standing(&self, _: &str, version: u64) -> Result<Standing, PeerError> {
        let standing = |stored: &mut AgentRecord| Ok(stored.ladder.standing(version));
        self.0.meet(Call::Standing, standing).await
    }

    async fn check(
        &self,
        request: CheckPromotionRequest,
    ) -> Result<CheckPromotionResponse, PeerError> {
        let check = |stored: &mut AgentRecord| {
            let ladder = &stored.ladder;
            let (above, asked) = (ladder.above()?, Stage::named(request.to_stage));
            if asked.is_some_and(|asked| asked != above) {
                return Err(gate(reason::STAGE_ORDER));
            }
            let refusal = ladder.refusal.map(|reason| PromotionRefusal {
                reason: reason.to_owned(),
                message: "a gate does not let it pass".to_owned(),
            });
            Ok(CheckPromotionResponse {
                standing: Some(ladder.standing(request.version)),
                to_stage: above.into(),
                refusal,
            })
        };
        self.0.meet(Call::Check, check).await
    }

    async fn compare(
        &self,
        request: ComparePromotionRequest,
    ) -> Result<Option<AgentComparison>, PeerError> {
        let compare = |stored: &mut AgentRecord| {
            Ok(Some(AgentComparison {
                agent_id: request.agent_id,
                version: request.version,
                incumbent_version: stored.ladder.live,
                incumbent_rule: "aimd".to_owned(),
                seeds: 30,
                incumbent: Some(Against {
                    name: "aimd".to_owned(),
                    difference: 0.2,
                    low: 0.1,
                    high: 0.3,
                    ..Against::default()
                }),
                ..AgentComparison::default()
            }))
        };
        self.0.meet(Call::Compare, compare).await
    }

    async fn step_up(
        &self,
        request: ApplyPromotionRequest,
    ) -> Result<Option<PlacementMessage>, PeerError> {
        let step = |stored: &mut AgentRecord| stored.step_up(&request);
        let placement = self.0.meet(Call::StepUp, step).await?;
        Ok(Some(placement.into()))
    }

    async fn step_back(&self, request: RevertPromotionRequest) -> Result<(), PeerError> {
        let step = |stored: &mut AgentRecord| stored.step_back(&request);
        self.0.meet(Call::StepBack, step).await
    }

    async fn settle(&self, request: SettlePromotionRequest) -> Result<(), PeerError> {
        let settle = |stored: &mut AgentRecord| stored.settle_step(&request);
        self.0.meet(Call::SettleStep, settle).await
    }
}
