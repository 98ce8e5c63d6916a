//! The gRPC handler of environments that dial in: messages in, orders out, and how a session ended as a
//! status.

use super::Items;
use crate::hosts::{
    Accepted, AgentAnswer, Answer, Conversation, Dtype, Ended, Fault, Hosts, Message, Offer, Order,
    Packed, Work,
};
use futures_util::{Stream, StreamExt, stream};
use std::{sync::Arc, time::Duration};
use tars_interceptors::{Call, call::in_current_trace};
use tars_proto::{
    fault,
    orchestration::v1::{self as pb, *},
    reason,
};
use tars_worlds::{ActionSpace, AgentSpace, Component};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status, Streaming};

/// When a caller should retry whose sessions are too many.
const SOON: Duration = Duration::from_secs(5);

/// Serves hosts.
#[derive(Debug, Clone)]
pub(super) struct HostApi {
    pub(super) hosts: Hosts,
    pub(super) max_message: usize,
}

#[tonic::async_trait]
impl environment_host_service_server::EnvironmentHostService for HostApi {
    type SessionStream = Items<SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let call = Call::of(&request)?;
        let mut messages = Box::pin(request.into_inner().map(message));
        let first = messages.next().await.transpose()?;
        let opened = self.hosts.open(call.owner(), first, self.max_message);
        let (offer, conversation) = opened.map_err(status)?;
        let answer_within = self.hosts.terms().answer_within;
        tracing::info!(owner = call.owner(), environment = %offer.spec.name, "an environment is lent");
        let welcome = stream::iter([Ok(welcome(&offer, answer_within))]);
        let answers = welcome.chain(responses(conversation, messages, offer));
        Ok(Response::new(Box::pin(answers)))
    }
}

fn welcome(offer: &Accepted, answer_within: Duration) -> SessionResponse {
    let millis = u32::try_from(answer_within.as_millis());
    SessionResponse {
        welcome: Some(SessionWelcome {
            environment: offer.spec.name.to_string(),
            answer_within_ms: millis.unwrap_or(u32::MAX),
        }),
        ..SessionResponse::default()
    }
}

/// What the host is sent. The session ends with this stream, and is driven whether or not the host reads.
fn responses(
    conversation: Conversation,
    messages: impl Stream<Item = Result<Message, Status>> + Send + Unpin + 'static,
    offer: Arc<Accepted>,
) -> impl Stream<Item = Result<SessionResponse, Status>> + Send {
    let (sender, orders) = mpsc::channel(1);
    let session = in_current_trace(async move {
        let ended = conversation.run(messages, sender).await;
        let environment = &offer.spec.name;
        match &ended {
            Ok(()) => tracing::info!(%environment, "an environment was taken back"),
            Err(why) => tracing::info!(%environment, ?why, "the session of an environment ended"),
        }
        ended
    });
    let session = AbortOnDropHandle::new(tokio::spawn(session));
    stream::unfold((orders, Some(session)), |(mut orders, mut session)| async {
        if let Some(order) = orders.recv().await {
            return Some((Ok(response(order)), (orders, session)));
        }
        let refusal = match session.take()?.await {
            Ok(Ok(())) => return None,
            Ok(Err(Ended::Fault(fault))) => status(fault),
            Ok(Err(Ended::Transport(status))) => status,
            Err(_) => fault::internal(),
        };
        Some((Err(refusal), (orders, session)))
    })
}

fn status(of: Fault) -> Status {
    let text = of.to_string();
    match of {
        Fault::Version { .. } => {
            fault::precondition(reason::HOST_PROTOCOL, "protocol_version", &text)
        }
        Fault::Offer { field, problem } => {
            fault::invalid_field(&format!("hello.{field}"), &problem)
        }
        Fault::NameTaken(name) => fault::exists("environment", &name, &text),
        Fault::CallerFull => fault::spent(reason::HOSTS_BUSY, "caller", &text, SOON),
        Fault::Full => fault::spent(reason::HOSTS_BUSY, "sessions", &text, SOON),
        Fault::Unexpected(_) => fault::precondition(reason::HOST_PROTOCOL, "session", &text),
        Fault::Answer { field, .. } => {
            let names = [("field", field.as_str())];
            fault::status_with(Code::InvalidArgument, reason::HOST_ANSWER, &text, &names)
        }
        Fault::Late(_) => fault::status(Code::DeadlineExceeded, reason::HOST_LATE, &text),
    }
}

/// Reads a request, which has exactly one message in it.
fn message(request: Result<SessionRequest, Status>) -> Result<Message, Status> {
    let SessionRequest { hello, reset, step } = request?;
    match (hello, reset, step) {
        (Some(hello), None, None) => Ok(Message::Hello(offer(hello)?)),
        (None, Some(HostReset { id, agents }), None) => {
            let agents = agents.into_iter().map(after_reset).collect();
            Ok(Message::Reset(Answer { id, agents }))
        }
        (None, None, Some(HostStep { id, agents })) => {
            let agents = agents.into_iter().map(after_step).collect();
            Ok(Message::Step(Answer { id, agents }))
        }
        _ => Err(fault::invalid_field(
            "hello",
            "exactly one of hello, reset and step is required",
        )),
    }
}

fn offer(hello: HostHello) -> Result<Offer, Status> {
    let agents = hello.agents.into_iter().enumerate();
    Ok(Offer {
        version: hello.protocol_version,
        name: hello.name,
        agents: agents
            .map(|(at, agent)| agent_space(at, agent))
            .collect::<Result<_, _>>()?,
        max_copies: hello.max_copies,
        max_steps: hello.max_steps,
    })
}

fn agent_space(at: usize, from: AgentSpaces) -> Result<AgentSpace, Status> {
    let action = match (from.discrete, from.continuous) {
        (Some(DiscreteSpace { actions }), None) => {
            ActionSpace::Discrete(actions.into_iter().map(Into::into).collect())
        }
        (None, Some(ContinuousSpace { components })) => {
            ActionSpace::Continuous(components.into_iter().map(component).collect())
        }
        _ => {
            return Err(fault::invalid_field(
                &format!("hello.agents[{at}]"),
                "either discrete or continuous is required",
            ));
        }
    };
    Ok(AgentSpace {
        name: from.agent.into(),
        observation: from.observation.into_iter().map(component).collect(),
        action,
    })
}

/// A bound beyond what an f32 holds is none; a scale beyond it is refused with the offer.
fn component(from: pb::Component) -> Component {
    Component {
        name: from.name.into(),
        unit: from.unit.into(),
        low: from.low.map_or(f32::NEG_INFINITY, |low| low as f32),
        high: from.high.map_or(f32::INFINITY, |high| high as f32),
        scale: from.scale.map_or(1.0, |scale| scale as f32),
        source: match from.source.is_empty() {
            true => "host".into(),
            false => from.source.into(),
        },
    }
}

fn packed(from: Tensor) -> Packed {
    let dtype = match from.dtype() {
        pb::Dtype::F32 => Dtype::F32,
        pb::Dtype::U32 => Dtype::U32,
        // The contract requires a type.
        pb::Dtype::Bool | pb::Dtype::Unspecified => Dtype::Bool,
    };
    let Tensor { shape, data, .. } = from;
    Packed { dtype, shape, data }
}

fn after_reset(from: AgentReset) -> AgentAnswer {
    AgentAnswer {
        observations: from.observations.map(packed),
        masks: from.masks.map(packed),
        ..AgentAnswer::default()
    }
}

fn after_step(from: AgentStep) -> AgentAnswer {
    AgentAnswer {
        observations: from.observations.map(packed),
        masks: from.masks.map(packed),
        rewards: from.rewards.map(packed),
        terminated: from.terminated.map(packed),
        truncated: from.truncated.map(packed),
        final_observations: from.final_observations.map(packed),
    }
}

fn tensor(from: Packed) -> Tensor {
    let dtype = match from.dtype {
        Dtype::F32 => pb::Dtype::F32,
        Dtype::U32 => pb::Dtype::U32,
        Dtype::Bool => pb::Dtype::Bool,
    };
    Tensor {
        dtype: dtype.into(),
        shape: from.shape,
        data: from.data,
    }
}

fn response(order: Order) -> SessionResponse {
    let id = order.id;
    match order.work {
        Work::Reset { copies, seed } => SessionResponse {
            reset: Some(SessionReset { id, copies, seed }),
            ..SessionResponse::default()
        },
        Work::Step { copies, actions } => {
            let actions = actions.into_iter().map(tensor).collect();
            SessionResponse {
                step: Some(SessionStep {
                    id,
                    copies,
                    actions,
                }),
                ..SessionResponse::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_a_code_and_a_reason() {
        let answer = Fault::Answer {
            field: "agents[0].rewards".into(),
            problem: "is missing".into(),
        };
        let offer = Fault::Offer {
            field: "name".into(),
            problem: "is taken".into(),
        };
        let version = Fault::Version {
            given: 2,
            required: 1,
        };
        let cases = [
            (version, Code::FailedPrecondition, "HOST_PROTOCOL"),
            (
                Fault::Unexpected("no"),
                Code::FailedPrecondition,
                "HOST_PROTOCOL",
            ),
            (answer, Code::InvalidArgument, "HOST_ANSWER"),
            (offer, Code::InvalidArgument, "INVALID_FIELD"),
            (Fault::Late(SOON), Code::DeadlineExceeded, "HOST_LATE"),
            (Fault::CallerFull, Code::ResourceExhausted, "HOSTS_BUSY"),
            (Fault::Full, Code::ResourceExhausted, "HOSTS_BUSY"),
            (
                Fault::NameTaken("x".into()),
                Code::AlreadyExists,
                "ALREADY_EXISTS",
            ),
        ];
        for (fault, code, reason) in cases {
            let status = status(fault);
            let found = fault::reason(&status).unwrap_or_default();
            assert_eq!((status.code(), found.as_str()), (code, reason), "{status}");
        }
    }

    #[test]
    fn a_request_has_one_message_and_an_agent_one_kind_of_action() {
        let refused = |request| message(Ok(request)).unwrap_err().code();
        assert_eq!(refused(SessionRequest::default()), Code::InvalidArgument);
        let agent = AgentSpaces {
            agent: "a".into(),
            discrete: Some(DiscreteSpace::default()),
            continuous: Some(ContinuousSpace::default()),
            ..AgentSpaces::default()
        };
        let hello = HostHello {
            agents: vec![agent],
            ..HostHello::default()
        };
        let both = SessionRequest {
            hello: Some(hello.clone()),
            ..SessionRequest::default()
        };
        assert_eq!(refused(both), Code::InvalidArgument);
        let reset = Some(HostReset::default());
        let two = SessionRequest {
            hello: Some(hello),
            reset,
            ..SessionRequest::default()
        };
        assert_eq!(refused(two), Code::InvalidArgument);
    }
}
