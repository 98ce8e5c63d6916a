//! HyperSync's gRPC handlers.

mod promotions;
mod watch;

use crate::{
    HyperSync,
    attention::Resolution as Resolve,
    change::{Change, Tuning, Verification as Verified},
    lost::LostHold,
    proposals::Decision,
    propose::Climb,
    saga::measure::{self, Purpose},
    store::{Assessment, Proposal as Row, State, Which},
    views::{Live, View},
};
use futures_util::Stream;
use std::{pin::Pin, sync::Arc};
use tars_interceptors::Call;
use tars_proto::{
    MAX_RESPONSE, fault,
    hypersync::v1::*,
    params::{self, Param, Params},
    time::timestamp,
};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;
use watch::Watcher;

#[derive(Debug, Clone)]
pub(crate) struct Api {
    service: Arc<HyperSync>,
}

pub(crate) fn routes(service: Arc<HyperSync>, max_message: usize) -> Routes {
    let server = sync_service_server::SyncServiceServer::new(Api { service });
    let server = server.max_decoding_message_size(max_message);
    Routes::new(server.max_encoding_message_size(MAX_RESPONSE))
}

fn id(text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| fault::invalid_field("update_id", "must be a UUID"))
}

fn state(from: State) -> ProposalState {
    match from {
        State::PendingApproval => ProposalState::PendingApproval,
        State::Approved => ProposalState::Approved,
        State::Rejected => ProposalState::Rejected,
        State::Withdrawn => ProposalState::Withdrawn,
        State::Applying => ProposalState::Applying,
        State::GivingUp => ProposalState::GivingUp,
        State::Verifying => ProposalState::Verifying,
        State::Completed => ProposalState::Completed,
        State::RollingBack => ProposalState::RollingBack,
        State::RolledBack => ProposalState::RolledBack,
        State::Failed => ProposalState::Failed,
        State::NeedsAttention => ProposalState::NeedsAttention,
        State::Kept => ProposalState::Kept,
    }
}

fn assessment_state(from: Assessment) -> AssessmentState {
    match from {
        Assessment::Pending => AssessmentState::Pending,
        Assessment::Completed => AssessmentState::Completed,
        Assessment::Failed => AssessmentState::Failed,
        Assessment::NotMade => AssessmentState::NotMade,
    }
}

fn verification(from: Verified) -> Verification {
    Verification {
        baseline_return: measure::mean(&from.baseline),
        candidate_return: measure::mean(&from.candidate),
        seeds: from.seeds,
        baseline_returns: from.baseline,
        candidate_returns: from.candidate,
        improvement: from.improvement,
        improvement_low: from.low,
        improvement_high: from.high,
        steps: from.steps,
    }
}

fn changes(tuning: &Tuning, live: Option<&Params>) -> Vec<ParameterChange> {
    let value = |params: &Params, name: &String| params.get(name).cloned().map(Into::into);
    let change = |(name, proposed): (&String, &Param)| ParameterChange {
        name: name.clone(),
        current: value(&tuning.current_params, name),
        live: live.and_then(|live| value(live, name)),
        proposed: Some(proposed.clone().into()),
    };
    tuning.new_params.iter().map(change).collect()
}

/// The fields of a proposal that say what it changes; the others are empty.
fn of_change(view: &View) -> Proposal {
    match &view.proposal.change {
        Change::Tuning(tuning) => of_tuning(view, tuning),
        Change::Promotion { promotion } => promotions::of_promotion(view, promotion),
    }
}

fn of_tuning(view: &View, tuning: &Tuning) -> Proposal {
    let row = &view.proposal;
    let live = match view.live.as_deref() {
        Some(Live::Tuned(params, version)) => Some((params, *version)),
        _ => None,
    };
    Proposal {
        study_id: tuning.study_id.clone(),
        trial_number: tuning.trial_number,
        current_params: Some(params::to_struct(&tuning.current_params)),
        new_params: Some(params::to_struct(&tuning.new_params)),
        new_score: tuning.new_score,
        base_version: row.base_version,
        applied_version: (row.applied_version > 0).then_some(row.applied_version),
        verification: tuning.verification.clone().map(verification),
        changes: changes(tuning, live.map(|live| live.0)),
        assessment: tuning.assessment.clone().map(verification),
        verification_seeds: measure::seeds_of(row.id, tuning, Purpose::Verification),
        live_version: live.map(|live| live.1),
        ..Proposal::default()
    }
}

fn proposal(view: View) -> Proposal {
    let (change, stale) = (of_change(&view), view.is_stale());
    let row = view.proposal;
    let assessment_state = assessment_state(row.assessed()).into();
    Proposal {
        update_id: row.id.to_string(),
        agent_id: row.agent_id,
        agent_type: row.agent_type,
        state: state(row.state).into(),
        proposed_by: row.proposed_by,
        decided_by: row.decided_by,
        applied_by: row.applied_by,
        reason: row.reason,
        error_message: row.error,
        revision: u64::try_from(row.revision).unwrap_or_default(),
        created_at: Some(timestamp(row.created_us)),
        approved_at: row.decided_us.map(timestamp),
        applied_at: row.applied_us.map(timestamp),
        ended_at: row.ended_us.map(timestamp),
        environment: row.environment,
        note: row.note,
        assessment_error: row.assessment_error,
        stale,
        attention: row.attention,
        assessment_state,
        approved_without_assessment: row.approved_without_assessment,
        resolved_by: row.resolved_by,
        resolution_reason: row.resolution_reason,
        ..change
    }
}

impl Api {
    async fn shown(&self, row: Row) -> Option<Proposal> {
        Some(proposal(self.service.view(row).await))
    }

    async fn all_shown(&self, rows: Vec<Row>) -> Vec<Proposal> {
        let views = self.service.views(rows).await;
        views.into_iter().map(proposal).collect()
    }
}

type Items = Pin<Box<dyn Stream<Item = Result<WatchProposalResponse, Status>> + Send>>;

#[tonic::async_trait]
impl sync_service_server::SyncService for Api {
    async fn propose_update(
        &self,
        request: Request<ProposeUpdateRequest>,
    ) -> Result<Response<ProposeUpdateResponse>, Status> {
        let call = Call::of(&request)?;
        let ProposeUpdateRequest {
            study_id,
            note,
            verification_seeds,
        } = request.into_inner();
        let (caller, seeds) = (call.require_caller()?, verification_seeds);
        let row = self
            .service
            .propose(caller, &study_id, &note, seeds)
            .await?;
        Ok(Response::new(ProposeUpdateResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn propose_promotion(
        &self,
        request: Request<ProposePromotionRequest>,
    ) -> Result<Response<ProposePromotionResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let climb = Climb {
            to: promotions::stage(asked.to_stage)?,
            agent_id: asked.agent_id,
            version: asked.version,
            note: asked.note,
        };
        let caller = call.require_caller()?;
        let row = self.service.propose_promotion(caller, climb).await?;
        Ok(Response::new(ProposePromotionResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn approve_proposal(
        &self,
        request: Request<ApproveProposalRequest>,
    ) -> Result<Response<ApproveProposalResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let caller = call.require_caller()?;
        let row = self
            .service
            .decide(
                caller,
                id(&asked.update_id)?,
                Decision::Approve {
                    without_assessment: asked.without_assessment,
                },
                &asked.reason,
            )
            .await?;
        Ok(Response::new(ApproveProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn reject_proposal(
        &self,
        request: Request<RejectProposalRequest>,
    ) -> Result<Response<RejectProposalResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let caller = call.require_caller()?;
        let row = self
            .service
            .decide(
                caller,
                id(&asked.update_id)?,
                Decision::Reject,
                &asked.reason,
            )
            .await?;
        Ok(Response::new(RejectProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn apply_proposal(
        &self,
        request: Request<ApplyProposalRequest>,
    ) -> Result<Response<ApplyProposalResponse>, Status> {
        let call = Call::of(&request)?;
        let update_id = id(&request.get_ref().update_id)?;
        let row = self
            .service
            .apply_approved(call.require_caller()?, update_id)
            .await?;
        Ok(Response::new(ApplyProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn withdraw_proposal(
        &self,
        request: Request<WithdrawProposalRequest>,
    ) -> Result<Response<WithdrawProposalResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let caller = call.require_caller()?;
        let update_id = id(&asked.update_id)?;
        let row = self
            .service
            .withdraw(caller, update_id, &asked.reason)
            .await?;
        Ok(Response::new(WithdrawProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn resolve_proposal(
        &self,
        request: Request<ResolveProposalRequest>,
    ) -> Result<Response<ResolveProposalResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let resolution = match asked.resolution() {
            Resolution::RollBack => Resolve::RollBack,
            Resolution::KeepLive => Resolve::KeepLive,
            Resolution::Unspecified => {
                return Err(fault::invalid_field("resolution", "is required"));
            }
        };
        let (caller, update_id) = (call.require_caller()?, id(&asked.update_id)?);
        let row = self
            .service
            .resolve(caller, update_id, resolution, asked.reason)
            .await?;
        Ok(Response::new(ResolveProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn release_lost_hold(
        &self,
        request: Request<ReleaseLostHoldRequest>,
    ) -> Result<Response<ReleaseLostHoldResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let lost = LostHold {
            id: id(&asked.update_id)?,
            agent_id: asked.agent_id,
            by: call.require_caller()?.label.clone(),
            reason: asked.reason,
        };
        self.service.release_lost(lost).await?;
        Ok(Response::new(ReleaseLostHoldResponse {}))
    }

    async fn get_proposal(
        &self,
        request: Request<GetProposalRequest>,
    ) -> Result<Response<GetProposalResponse>, Status> {
        let row = self.service.get(id(&request.get_ref().update_id)?).await?;
        Ok(Response::new(GetProposalResponse {
            proposal: self.shown(row).await,
        }))
    }

    async fn list_pending_proposals(
        &self,
        request: Request<ListPendingProposalsRequest>,
    ) -> Result<Response<ListPendingProposalsResponse>, Status> {
        let ListPendingProposalsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (rows, next_page_token) = self
            .service
            .list(Which::Pending, &page_token, page_size)
            .await?;
        let proposals = self.all_shown(rows).await;
        Ok(Response::new(ListPendingProposalsResponse {
            proposals,
            next_page_token,
        }))
    }

    async fn list_proposal_history(
        &self,
        request: Request<ListProposalHistoryRequest>,
    ) -> Result<Response<ListProposalHistoryResponse>, Status> {
        let ListProposalHistoryRequest {
            page_size,
            page_token,
            open_only,
        } = request.into_inner();
        let which = if open_only { Which::Open } else { Which::All };
        let (rows, next_page_token) = self.service.list(which, &page_token, page_size).await?;
        let proposals = self.all_shown(rows).await;
        Ok(Response::new(ListProposalHistoryResponse {
            proposals,
            next_page_token,
        }))
    }

    type WatchProposalStream = Items;

    async fn watch_proposal(
        &self,
        request: Request<WatchProposalRequest>,
    ) -> Result<Response<Items>, Status> {
        let asked = request.into_inner();
        let id = id(&asked.update_id)?;
        self.service.get(id).await?;
        let service = Arc::clone(&self.service);
        let watcher = Watcher::new(service, id, asked.after_sequence, asked.with_progress);
        Ok(Response::new(watcher.items()))
    }
}
