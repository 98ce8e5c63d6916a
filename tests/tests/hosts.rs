//! Environments that callers lend over the wire: who sees them, training in them, and hosts that misbehave.

#![allow(clippy::unwrap_used)]

use futures_util::stream;
use std::collections::BTreeMap;
use tars::rest::{Rest, RestError};
use tars_proto::{
    fault,
    orchestration::v1::{
        environment_host_service_client::EnvironmentHostServiceClient,
        evaluate_hyperparameters_response::Event, training_service_client::TrainingServiceClient,
        *,
    },
};
use tars_tests::{PASSWORD, TestMesh, eventually, refusal};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue};

const NAME: &str = "corridor";
const ENVIRONMENT: &str = "external/corridor";
/// Where the corridor ends, with a reward.
const END: i64 = 4;

fn tensor(dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Option<Tensor> {
    Some(Tensor {
        dtype: dtype.into(),
        shape: shape.iter().map(|n| u32::try_from(*n).unwrap()).collect(),
        data,
    })
}

fn numbers(shape: &[usize], values: Vec<f32>) -> Option<Tensor> {
    let data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    tensor(Dtype::F32, shape, data)
}

fn flags(values: &[bool]) -> Option<Tensor> {
    let data = values.iter().copied().map(u8::from).collect();
    tensor(Dtype::Bool, &[values.len()], data)
}

fn hello() -> HostHello {
    let place = Component {
        name: "place".into(),
        unit: "1".into(),
        low: Some(0.0),
        high: Some(1.0),
        source: String::new(),
        scale: Some(4.0),
    };
    HostHello {
        protocol_version: 1,
        name: NAME.into(),
        agents: vec![AgentSpaces {
            agent: "walker".into(),
            observation: vec![place],
            discrete: Some(DiscreteSpace {
                actions: vec!["back".into(), "on".into()],
            }),
            continuous: None,
        }],
        max_copies: 8,
        max_steps: Some(20),
    }
}

fn say_hello(hello: HostHello) -> SessionRequest {
    SessionRequest {
        hello: Some(hello),
        ..SessionRequest::default()
    }
}

/// What the agents of CartPole see is as wide; here the place is seen as often.
fn wide_hello() -> HostHello {
    let mut hello = hello();
    let agent = &mut hello.agents[0];
    agent.observation = vec![agent.observation[0].clone(); 4];
    hello
}

/// A corridor for each copy: where it is, and after how many steps. The place is seen so many times.
struct Corridor(BTreeMap<u32, (i64, u32)>, usize);

impl Corridor {
    fn obey(&mut self, order: SessionResponse) -> SessionRequest {
        if let Some(SessionReset { id, copies, .. }) = order.reset {
            self.0.extend(copies.iter().map(|copy| (*copy, (0, 0))));
            let observations = self.observe(&copies);
            let agents = vec![AgentReset {
                observations,
                masks: None,
            }];
            return SessionRequest {
                reset: Some(HostReset { id, agents }),
                ..SessionRequest::default()
            };
        }
        SessionRequest {
            step: Some(self.step(&order.step.unwrap())),
            ..SessionRequest::default()
        }
    }

    fn observe(&self, copies: &[u32]) -> Option<Tensor> {
        let places = copies.iter().map(|copy| self.0[copy].0 as f32 / END as f32);
        let seen = places.flat_map(|place| vec![place; self.1]);
        numbers(&[copies.len(), self.1], seen.collect())
    }

    fn step(&mut self, order: &SessionStep) -> HostStep {
        let copies = &order.copies;
        let actions = order.actions[0].data.chunks_exact(4);
        for (copy, action) in copies.iter().zip(actions) {
            let (place, steps) = self.0.get_mut(copy).unwrap();
            let by = if action == 1u32.to_le_bytes() { 1 } else { -1 };
            (*place, *steps) = ((*place + by).max(0), *steps + 1);
        }
        let now = |copy: &u32| self.0[copy];
        let terminated: Vec<bool> = copies.iter().map(|c| now(c).0 == END).collect();
        let late = |c: &u32| now(c).0 < END && now(c).1 == 20;
        let truncated: Vec<bool> = copies.iter().map(late).collect();
        let rewards = terminated.iter().map(|end| if *end { 1.0 } else { -0.01 });
        let rewards = numbers(&[copies.len()], rewards.collect());
        let final_observations = self.observe(copies);
        for (at, copy) in copies.iter().enumerate() {
            if terminated[at] || truncated[at] {
                self.0.insert(*copy, (0, 0));
            }
        }
        let agents = vec![AgentStep {
            observations: self.observe(copies),
            masks: None,
            rewards,
            terminated: flags(&terminated),
            truncated: flags(&truncated),
            final_observations,
        }];
        HostStep {
            id: order.id,
            agents,
        }
    }
}

/// A caller who may lend environments.
struct Caller {
    rest: Rest,
    id: String,
    bearer: AsciiMetadataValue,
}

async fn caller(mesh: &TestMesh, name: &str, role: &str) -> Caller {
    let rest = mesh.user(name, role).await;
    let me = rest.get("/auth/me").await.unwrap();
    let body = serde_json::json!({ "username": name, "password": PASSWORD });
    let login = mesh.rest().post("/auth/login", body).await.unwrap();
    let bearer = format!("Bearer {}", login["access_token"].as_str().unwrap());
    Caller {
        rest,
        id: me["user_id"].as_str().unwrap().to_owned(),
        bearer: bearer.parse().unwrap(),
    }
}

/// What a host does with each thing that it is sent: its messages, or the end.
type Behaviour = Box<dyn FnMut(SessionResponse) -> Option<Vec<SessionRequest>> + Send>;

fn honest() -> Behaviour {
    honestly_seen(1)
}

fn honestly_seen(times: usize) -> Behaviour {
    let mut corridor = Corridor(BTreeMap::new(), times);
    Box::new(move |order| {
        let is_welcome = order.welcome.is_some();
        Some(match is_welcome {
            true => Vec::new(),
            false => vec![corridor.obey(order)],
        })
    })
}

/// A host, which goes away when dropped.
struct Host(AbortOnDropHandle<Result<(), Status>>);

impl Host {
    /// How the session ends.
    async fn ended(self) -> Result<(), Status> {
        self.0.await.unwrap()
    }
}

/// Dials in.
fn lend(
    mesh: &TestMesh,
    by: &Caller,
    first: Vec<SessionRequest>,
    mut behaviour: Behaviour,
) -> Host {
    let client = mesh.client("orchestration", "/client/host");
    let mut client = EnvironmentHostServiceClient::new(client);
    let bearer = by.bearer.clone();
    let session = async move {
        let (says, heard) = mpsc::unbounded_channel();
        first.into_iter().for_each(|m| says.send(m).unwrap());
        let messages = stream::unfold(heard, |mut r| async { Some((r.recv().await?, r)) });
        let mut request = Request::new(messages);
        request.metadata_mut().insert("authorization", bearer);
        let mut orders = client.session(request).await?.into_inner();
        while let Some(order) = orders.message().await? {
            let Some(answers) = behaviour(order) else {
                return Ok(());
            };
            answers.into_iter().for_each(|m| says.send(m).unwrap_or(()));
        }
        Ok(())
    };
    Host(AbortOnDropHandle::new(tokio::spawn(session)))
}

async fn is_lent(by: &Caller) -> bool {
    let listed = by.rest.get("/api/v1/orchestration/environments").await;
    let listed = listed.unwrap();
    let names = listed["environments"].as_array().unwrap();
    names.iter().any(|name| name == ENVIRONMENT)
}

async fn lend_honestly(mesh: &TestMesh, by: &Caller) -> Host {
    let host = lend(mesh, by, vec![say_hello(hello())], honest());
    eventually("the environment is lent", || is_lent(by)).await;
    host
}

/// Trains in the corridor on behalf of a caller.
async fn evaluate(mesh: &TestMesh, owner: &Caller, work: &str) -> Result<EvaluationResult, Status> {
    let mut training = TrainingServiceClient::new(mesh.client("orchestration", "/automl"));
    let request = EvaluateHyperparametersRequest {
        agent_type: "dqn".into(),
        environment: ENVIRONMENT.into(),
        seed: 3,
        steps: 600,
        eval_episodes: Some(5),
        on_behalf_of: owner.id.clone(),
        work_id: work.into(),
        fencing_token: 1,
        ..EvaluateHyperparametersRequest::default()
    };
    let mut items = training.evaluate_hyperparameters(request).await?;
    let mut result = None;
    while let Some(item) = items.get_mut().message().await? {
        if let Some(Event::Result(ended)) = item.event {
            result = Some(ended);
        }
    }
    Ok(result.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_lends_is_seen_and_trained_in_by_that_caller_alone() {
    let mesh = TestMesh::alone(tars_tests::config(), tars_runtime::clock::Clock::system()).await;
    let (ann, ben) = (
        caller(&mesh, "ann", "developer").await,
        caller(&mesh, "ben", "developer").await,
    );
    let viewer = caller(&mesh, "eve", "viewer").await;
    let refused = lend(&mesh, &viewer, vec![say_hello(hello())], honest());
    let refused = refused.ended().await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let host = lend_honestly(&mesh, &ann).await;
    let spaces = "/api/v1/orchestration/environments/external%2Fcorridor/spaces";
    let described = ann.rest.get(spaces).await.unwrap()["environment"].clone();
    assert_eq!(described["name"], ENVIRONMENT);
    assert_eq!(described["agents"][0]["discrete"]["actions"][1], "on");
    let place = &described["agents"][0]["observation"][0];
    assert_eq!(
        (&place["source"], &place["scale"]),
        (&"host".into(), &4.0.into())
    );
    assert!(!is_lent(&ben).await);
    assert_eq!(refusal(ben.rest.get(spaces).await).0, 404);
    let unknown = evaluate(&mesh, &ben, "study/ben").await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument, "{unknown}");

    let result = evaluate(&mesh, &ann, "study/ann").await.unwrap();
    assert_eq!((result.steps, result.returns.len()), (600, 5));
    // A walk to the end takes 4 steps, and 20 steps of -0.01 are the longest one.
    assert!(result.returns.iter().all(|r| (-0.21..1.0).contains(r)));
    drop(host);
    eventually("it is taken back", || async { !is_lent(&ann).await }).await;
    assert_eq!(refusal(ann.rest.get(spaces).await).0, 404);
    mesh.mesh.stop().await;
}

const TRAININGS: &str = "/api/v1/orchestration/training";

/// Starts training `policy` in the corridor.
async fn train(by: &Caller, steps: u64) -> Result<serde_json::Value, RestError> {
    let body = serde_json::json!({
        "agents": ["policy"], "environment": ENVIRONMENT, "steps": steps.to_string(), "seed": "3",
    });
    Ok(by.rest.post(TRAININGS, body).await?["run"].clone())
}

/// Starts a search for `policy` in the corridor.
async fn search(by: &Caller) -> Result<serde_json::Value, RestError> {
    let body = serde_json::json!({
        "agent_id": "policy", "environment": ENVIRONMENT, "n_trials": 2, "steps": "300", "seed": "4",
    });
    by.rest.post("/api/v1/optimize", body).await
}

/// Waits until a resource has a state, and returns it.
async fn in_state(by: &Caller, path: &str, name: &str, state: &str) -> serde_json::Value {
    let read = || async { by.rest.get(path).await.unwrap()[name].clone() };
    eventually(state, || async { read().await["state"] == state }).await;
    read().await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_trained_and_searched_for_in_what_their_caller_lends() {
    let mesh = TestMesh::alone(tars_tests::config(), tars_runtime::clock::Clock::system()).await;
    let (ann, ben) = (
        caller(&mesh, "ann", "developer").await,
        caller(&mesh, "ben", "developer").await,
    );
    let lend_wide = || async {
        let host = lend(&mesh, &ann, vec![say_hello(wide_hello())], honestly_seen(4));
        eventually("the environment is lent", || is_lent(&ann)).await;
        host
    };
    // What `policy` would learn from one number could not act upon four.
    let narrow = lend_honestly(&mesh, &ann).await;
    let (status, text) = refusal(train(&ann, 600).await);
    assert_eq!(status, 400, "{text}");
    let text = text.to_string();
    assert!(text.contains("1 observed, 2 actions"), "{text}");
    drop(narrow);
    eventually("it is taken back", || async { !is_lent(&ann).await }).await;

    let host = lend_wide().await;
    assert_eq!(refusal(train(&ben, 600).await).0, 400);
    assert_eq!(refusal(search(&ben).await).0, 400);
    let run = train(&ann, 600).await.unwrap();
    let path = format!("{TRAININGS}/{}", run["run_id"].as_str().unwrap());
    let run = in_state(&ann, &path, "run", "TRAINING_STATE_COMPLETED").await;
    assert_eq!(run["environment"], ENVIRONMENT);
    let member = &run["members"][0];
    assert_eq!(member["weights_version"], "1", "what it learned is live");
    let came_to = member["final_return"].as_f64().unwrap();
    assert!((-0.21..1.0).contains(&came_to), "{came_to}");

    let study = search(&ann).await.unwrap()["optimization_id"].clone();
    let path = format!("/api/v1/studies/{}", study.as_str().unwrap());
    let study = in_state(&ann, &path, "study", "STUDY_STATE_COMPLETED").await;
    assert_eq!(study["environment"], ENVIRONMENT);
    assert_eq!(study["n_completed_trials"], 2);

    let run = train(&ann, 10_000_000).await.unwrap();
    let path = format!("{TRAININGS}/{}", run["run_id"].as_str().unwrap());
    let pausing = format!("{path}/pause");
    let pause = ann.rest.post(&pausing, serde_json::json!({})).await;
    let pause = pause.unwrap_err();
    assert_eq!(pause.reason(), Some("NOT_SAVED"), "{pause}");
    in_state(&ann, &path, "run", "TRAINING_STATE_RUNNING").await;
    drop(host);
    eventually("it is taken back", || async { !is_lent(&ann).await }).await;
    let run = in_state(&ann, &path, "run", "TRAINING_STATE_FAILED").await;
    assert_eq!(run["error_reason"], "HOST_GONE");
    mesh.mesh.stop().await;
}

/// Changes what a host is about to say.
type Spoil = fn(&mut Vec<SessionRequest>);

/// What a host says in place of its first step, and how its session ends.
fn hostilities() -> Vec<(&'static str, Spoil, Code, &'static str)> {
    fn agent(messages: &mut [SessionRequest]) -> &mut AgentStep {
        &mut messages[0].step.as_mut().unwrap().agents[0]
    }
    fn all(messages: &mut [SessionRequest], value: f32) -> Option<Tensor> {
        let copies = agent(messages).terminated.as_ref().unwrap().shape[0] as usize;
        numbers(&[copies], vec![value; copies])
    }
    let bad = Code::InvalidArgument;
    let unexpected = Code::FailedPrecondition;
    vec![
        (
            "a wrong shape",
            |m| agent(m).rewards = numbers(&[0], vec![]),
            bad,
            "HOST_ANSWER",
        ),
        (
            "a reward that is not a number",
            |m| agent(m).rewards = all(m, f32::NAN),
            bad,
            "HOST_ANSWER",
        ),
        (
            "an infinite reward",
            |m| agent(m).rewards = all(m, f32::INFINITY),
            bad,
            "HOST_ANSWER",
        ),
        (
            "nothing of an agent",
            |m| m[0].step.as_mut().unwrap().agents.clear(),
            bad,
            "INVALID_FIELD",
        ),
        (
            "another id",
            |m| m[0].step.as_mut().unwrap().id += 1,
            unexpected,
            "HOST_PROTOCOL",
        ),
        (
            "a second hello",
            |m| m[0] = say_hello(hello()),
            unexpected,
            "HOST_PROTOCOL",
        ),
        (
            "the answer many times",
            |m| *m = vec![m[0].clone(); 500],
            unexpected,
            "HOST_PROTOCOL",
        ),
        (
            "two things in one message",
            |m| m[0].hello = Some(hello()),
            bad,
            "INVALID_FIELD",
        ),
        (
            "more than a message may have",
            |m| agent(m).observations = numbers(&[1, 600_000], vec![0.0; 600_000]),
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
    ]
}

/// Behaves until the first step, in place of whose answer it says something else; `None` hangs up.
fn hostile(spoil: Option<Spoil>) -> Behaviour {
    let mut corridor = Corridor(BTreeMap::new(), 1);
    Box::new(move |order| {
        if order.welcome.is_some() {
            return Some(Vec::new());
        }
        let is_step = order.step.is_some();
        let mut messages = vec![corridor.obey(order)];
        if is_step {
            spoil?(&mut messages);
        }
        Some(messages)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_host_ends_its_session_and_the_training_goes_on_with_its_next() {
    let mesh = TestMesh::alone(tars_tests::config(), tars_runtime::clock::Clock::system()).await;
    let ann = caller(&mesh, "ann", "developer").await;
    let ends = hostilities().into_iter();
    let ends = ends.map(|(what, spoil, code, reason)| (what, Some(spoil), Some((code, reason))));
    let hang_up = ("a host that hangs up", None, None);
    for (what, spoil, expected) in ends.chain([hang_up]) {
        let host = lend(&mesh, &ann, vec![say_hello(hello())], hostile(spoil));
        eventually("it is lent", || is_lent(&ann)).await;
        let work = format!("study/{}", what.replace(' ', "-"));
        let training = async {
            let result = evaluate(&mesh, &ann, &work).await;
            result.unwrap_or_else(|status| panic!("{what}: {status}"))
        };
        let host = async {
            let ended = host.ended().await;
            let ended = ended.err().map(|s| (s.code(), fault::reason(&s)));
            let expected = expected.map(|(code, reason)| (code, Some(reason.to_owned())));
            assert_eq!(ended, expected, "{what}");
            eventually("it is gone", || async { !is_lent(&ann).await }).await;
            lend_honestly(&mesh, &ann).await
        };
        let (result, host) = tokio::join!(training, host);
        assert_eq!(result.steps, 600, "{what}");
        drop(host);
        eventually("it is taken back", || async { !is_lent(&ann).await }).await;
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_wrongly_is_refused() {
    let mesh = TestMesh::alone(tars_tests::config(), tars_runtime::clock::Clock::system()).await;
    let ann = caller(&mesh, "ann", "developer").await;
    let with = |change: fn(&mut HostHello)| {
        let mut hello = hello();
        change(&mut hello);
        vec![say_hello(hello)]
    };
    let step = SessionRequest {
        step: Some(HostStep {
            id: 1,
            agents: vec![AgentStep {
                observations: numbers(&[1, 1], vec![0.0]),
                rewards: numbers(&[1], vec![0.0]),
                terminated: flags(&[false]),
                truncated: flags(&[false]),
                ..AgentStep::default()
            }],
        }),
        ..SessionRequest::default()
    };
    let invalid = (Code::InvalidArgument, "INVALID_FIELD");
    let protocol = (Code::FailedPrecondition, "HOST_PROTOCOL");
    let cases = [
        ("no hello", vec![step], protocol),
        ("nothing", vec![SessionRequest::default()], invalid),
        ("version 2", with(|h| h.protocol_version = 2), protocol),
        ("a bad name", with(|h| h.name = "a_b".into()), invalid),
        ("no agents", with(|h| h.agents.clear()), invalid),
        ("257 copies", with(|h| h.max_copies = 257), invalid),
        ("no action", with(|h| h.agents[0].discrete = None), invalid),
        ("too much for a message", with(wide), invalid),
    ];
    for (what, first, expected) in cases {
        let host = lend(&mesh, &ann, first, honest());
        let status = host.ended().await.unwrap_err();
        let reason = fault::reason(&status).unwrap_or_default();
        assert_eq!(
            (status.code(), reason.as_str()),
            expected,
            "{what}: {status}"
        );
    }
    let _host = lend_honestly(&mesh, &ann).await;
    let twice = lend(&mesh, &ann, vec![say_hello(hello())], honest());
    let twice = twice.ended().await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists, "{twice}");
    mesh.mesh.stop().await;
}

/// An answer for 256 copies of 1000 components takes 2 MB.
fn wide(hello: &mut HostHello) {
    let agent = &mut hello.agents[0];
    agent.observation = vec![agent.observation[0].clone(); 1000];
    hello.max_copies = 256;
}
