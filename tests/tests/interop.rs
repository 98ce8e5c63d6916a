//! Clients that are not ours. `cargo xtask test` installs them and sets `TARS_TEST_TOOLS`.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tars::rest::Rest;
use tars_proto::orchestration::v1::{
    EvaluateHyperparametersRequest, EvaluationResult, evaluate_hyperparameters_response::Event,
    training_service_client::TrainingServiceClient,
};
use tars_tests::{TestMesh, eventually};

fn tools() -> PathBuf {
    let dir = std::env::var_os("TARS_TEST_TOOLS").expect("`cargo xtask test` sets TARS_TEST_TOOLS");
    PathBuf::from(dir)
}

fn tool(name: &str) -> PathBuf {
    tools().join("venv/bin").join(name)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

async fn run(mut command: Command) -> (bool, String) {
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python with grpcio: cargo xtask test"]
async fn a_python_client_does_the_job_over_mtls() {
    let mesh = TestMesh::start().await;
    let ready = mesh.dir.path().join("python-ready.json");
    mesh.mesh.ready.save(&ready).unwrap();
    let mut command = Command::new(tool("python"));
    command
        .arg(repository().join("tests/interop/client.py"))
        .arg(ready)
        .arg(repository().join("proto"));
    let (good, text) = run(command).await;
    assert!(good && text.trim_end().ends_with("ok"), "{text}");
    mesh.mesh.stop().await;
}

fn grpcurl(mesh: &TestMesh, service: &str, token: Option<&str>, args: &[&str]) -> Command {
    let ready = &mesh.mesh.ready;
    let mut command = Command::new(tool("grpcurl"));
    command
        .arg("-cacert")
        .arg(&ready.ca)
        .arg("-cert")
        .arg(&ready.client_cert)
        .arg("-key")
        .arg(&ready.client_key);
    if let Some(token) = token {
        command.args(["-H", &format!("authorization: Bearer {token}")]);
    }
    let (options, call) = args.split_at(
        args.iter()
            .position(|a| !a.starts_with('-') && !a.starts_with('{'))
            .unwrap(),
    );
    command.args(options).arg(mesh.target(service)).args(call);
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs grpcurl: cargo xtask test"]
async fn grpcurl_lists_describes_and_calls_by_reflection() {
    let mesh = TestMesh::start().await;
    let password = std::fs::read_to_string(&mesh.mesh.ready.admin_password_file).unwrap();
    let body = serde_json::json!({ "username": "admin", "password": password });
    let token = mesh.rest().post("/auth/login", body).await.unwrap()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();

    let (good, text) = run(grpcurl(&mesh, "automl", Some(&token), &["list"])).await;
    assert!(
        good && text.contains("tars.automl.v1.StudyService"),
        "{text}"
    );
    let describe = ["describe", "tars.automl.v1.StudyService.Optimize"];
    let (good, text) = run(grpcurl(&mesh, "automl", Some(&token), &describe)).await;
    assert!(
        good && text.contains("tars.policy.v1.rule") && text.contains("/api/v1/optimize"),
        "{text}"
    );
    let call = ["tars.orchestration.v1.OrchestrationService/ListAgents"];
    let (good, text) = run(grpcurl(&mesh, "orchestration", Some(&token), &call)).await;
    assert!(good && text.contains("\"policy\""), "{text}");
    // An operator's certificate alone is enough to look around, and then to log in.
    let (good, text) = run(grpcurl(&mesh, "auth", None, &["list"])).await;
    assert!(good && text.contains("tars.auth.v1.AuthService"), "{text}");
    let credentials = serde_json::json!({ "username": "admin", "password": password }).to_string();
    let login = ["-d", credentials.as_str(), "tars.auth.v1.AuthService/Login"];
    let (good, text) = run(grpcurl(&mesh, "auth", None, &login)).await;
    assert!(good && text.contains("access"), "{text}");
    let (good, text) = run(grpcurl(&mesh, "orchestration", None, &call)).await;
    assert!(!good, "what needs a credential still does: {text}");
    let mut bare = Command::new(tool("grpcurl"));
    bare.arg("-cacert").arg(&mesh.mesh.ready.ca).args([
        "-connect-timeout",
        "2",
        &mesh.target("auth"),
        "list",
    ]);
    let (good, text) = run(bare).await;
    assert!(!good, "no certificate, no answer: {text}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs npm: cargo xtask test"]
async fn a_linter_finds_nothing_in_the_openapi_document() {
    let mesh = TestMesh::start().await;
    let mut linter = Command::new(tools().join("npm/node_modules/.bin/redocly"));
    linter
        .args(["lint", "--max-problems", "20", "--format", "stylish"])
        .arg(format!("{}/openapi.json", mesh.mesh.ready.gateway))
        .env("REDOCLY_TELEMETRY", "off");
    let (good, text) = run(linter).await;
    assert!(good && !text.contains("warning"), "{text}");
    mesh.mesh.stop().await;
}

/// Trains in an environment that is lent, on behalf of its owner.
async fn evaluate(
    mesh: &TestMesh,
    owner: &str,
    (environment, agent_type, agent): (&str, &str, &str),
) -> Result<EvaluationResult, tonic::Status> {
    let mut training = TrainingServiceClient::new(mesh.client("orchestration", "/automl"));
    let request = EvaluateHyperparametersRequest {
        agent_type: agent_type.into(),
        environment: format!("external/{environment}"),
        seed: 5,
        steps: 1500,
        eval_episodes: Some(2),
        on_behalf_of: owner.into(),
        work_id: format!("study/{environment}"),
        fencing_token: 1,
        agent: agent.into(),
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

/// Trains an agent that lives in the built-in CartPole in the one that is lent, and waits until it has.
async fn train_in_cartpole(by: &Rest) {
    let trainings = "/api/v1/orchestration/training";
    let body = serde_json::json!({
        "agents": ["policy"], "environment": "external/cartpole", "steps": "1500", "seed": "5",
    });
    let run = by.post(trainings, body).await.unwrap()["run"].clone();
    let path = format!("{trainings}/{}", run["run_id"].as_str().unwrap());
    let read = || async { by.get(&path).await.unwrap()["run"].clone() };
    eventually("the run ends", || async {
        !read().await["ended_at"].is_null()
    })
    .await;
    let run = read().await;
    assert_eq!(run["state"], "TRAINING_STATE_COMPLETED", "{run}");
    let member = &run["members"][0];
    assert_eq!(member["weights_version"], "1", "{run}");
    let came_to = member["final_return"].as_f64().unwrap();
    assert!((1.0..=500.0).contains(&came_to), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python with grpcio, Gymnasium and PettingZoo: cargo xtask test"]
async fn agents_learn_in_environments_that_are_lent_from_python() {
    let mesh = TestMesh::alone(tars_tests::config(), tars_runtime::clock::Clock::system()).await;
    let ready = mesh.dir.path().join("python-ready.json");
    mesh.mesh.ready.save(&ready).unwrap();
    let mut python = Command::new(tool("python"))
        .arg(repository().join("tests/interop/hosts.py"))
        .arg(ready)
        .arg(repository().join("proto"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(python.stdout.take().unwrap()).lines();
    let reading = tokio::task::spawn_blocking(move || {
        let owner = output.find_map(|line| Some(line.unwrap().strip_prefix("owner ")?.to_owned()));
        (owner, output)
    });
    let (owner, output) = reading.await.unwrap();
    let owner = owner.expect("the script says whose the environments are");
    // Bounds of the returns of an episode, whatever was learned.
    let cases = [
        (("cartpole", "dqn", ""), 1.0..=500.0),
        (("pendulum", "ddpg", ""), -2000.0..=0.0),
        (("taxi", "dqn", ""), -2000.0..=20.0),
        (("hunt", "a2c", "hunter"), 0.0..=3.0),
        (("hunt", "ddpg", "hare"), 0.0..=0.0),
        (("fragile", "ppo", ""), 1.0..=500.0),
    ];
    for (case, bounds) in cases {
        let result = evaluate(&mesh, &owner, case).await;
        let result = result.unwrap_or_else(|status| panic!("{case:?}: {status}"));
        let within = result.returns.iter().all(|r| bounds.contains(r));
        assert!(within && result.steps >= 1500, "{case:?}: {result:?}");
    }
    let hopper = mesh.rest().login("hopper", "a long password").await;
    train_in_cartpole(&hopper.unwrap()).await;
    drop(python.stdin.take());
    let ended = tokio::task::spawn_blocking(move || {
        let rest: Vec<String> = output.map_while(Result::ok).collect();
        (python.wait().unwrap().success(), rest)
    });
    let (good, rest) = ended.await.unwrap();
    assert!(
        good && rest.last().is_some_and(|line| line == "ok"),
        "{rest:?}"
    );
    mesh.mesh.stop().await;
}
