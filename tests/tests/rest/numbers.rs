//! Every number that enters leaves unchanged: over REST and gRPC, through the database.

use super::*;
use tars_proto::automl::v1::{
    GetStudyRequest, ListTrialsRequest, Trial, study_service_client::StudyServiceClient,
};

/// Drawn over all bits, and those that printers and parsers differ about.
fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let special = [
        7.0,
        -3.0,
        0.0,
        -0.0,
        0.1,
        1e23,
        5e-324,
        f64::MAX,
        9_007_199_254_740_992.0,
        0.980_324_641_712_226_9,
    ];
    let mut state = seed | 1;
    let drawn = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of them as large as measurements are.
        let value = f64::from_bits(state);
        if state & 1 == 0 {
            value
        } else {
            (state >> 11) as f64 / (1u64 << 53) as f64
        }
    });
    let all = special.into_iter().chain(drawn.filter(|v| v.is_finite()));
    all.take(n).collect()
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn grpc_parameters(trial: &Trial, n: usize) -> Vec<f64> {
    use prost_types::value::Kind;
    let fields = &trial.parameters.as_ref().unwrap().fields;
    (0..n)
        .map(|i| match fields[&format!("p{i}")].kind {
            Some(Kind::NumberValue(v)) => v,
            _ => panic!("no number"),
        })
        .collect()
}

fn rest_parameters(trial: &Value, n: usize) -> Vec<f64> {
    let value = |i: usize| trial["parameters"][format!("p{i}")].as_f64().unwrap();
    (0..n).map(value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_a_study_leave_as_they_entered() {
    const N: usize = 64;
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let bearer = format!("Bearer {}", http.token);
    let mut grpc = StudyServiceClient::new(mesh.client("automl", "/client/test"));
    for seed in [1, 0x5851_f42d_4c95_7f2d, u64::MAX - 2, u64::MAX] {
        let given = numbers(seed, N);
        // One choice each, so that asking gives just these.
        let space: Vec<String> = given
            .iter()
            .enumerate()
            .map(|(i, v)| format!(r#"{{"name":"p{i}","categorical":{{"values":[{v:e}]}}}}"#))
            .collect();
        let body = format!(
            r#"{{"search_space":[{}],"seed":{seed},"n_trials":2}}"#,
            space.join(",")
        );
        let study = http.json("POST", "/api/v1/studies", &body).await.json();
        assert_eq!(study["study"]["seed"], seed.to_string());
        let id = study["study"]["study_id"].as_str().unwrap().to_owned();
        let path = format!("/api/v1/studies/{id}");
        let asked = http.json("POST", &format!("{path}/ask"), "{}").await.json();
        assert_eq!(bits(&rest_parameters(&asked["trial"], N)), bits(&given));

        let values: Vec<f64> = numbers(seed ^ 0xabcdef, 40)
            .into_iter()
            .filter(|v| *v != 0.0)
            .collect();
        for (step, value) in values.iter().enumerate() {
            let step = u64::MAX - values.len() as u64 + step as u64;
            let body = format!(r#"{{"step":{step},"value":{value:e}}}"#);
            let told = http
                .json("POST", &format!("{path}/trials/0/report"), &body)
                .await;
            assert_eq!(told.status, StatusCode::OK, "{:?}", told.body);
        }
        let score = values[values.len() - 1];
        let body = format!(r#"{{"state":"TRIAL_STATE_COMPLETE","score":{score:e}}}"#);
        http.json("POST", &format!("{path}/trials/0/tell"), &body)
            .await;

        let list = http.get(&format!("{path}/trials")).await.json();
        let trial = &list["trials"][0];
        assert_eq!(bits(&rest_parameters(trial, N)), bits(&given));
        let reported = trial["intermediate_values"].as_array().unwrap();
        let read: Vec<f64> = reported
            .iter()
            .map(|v| v["value"].as_f64().unwrap())
            .collect();
        assert_eq!(bits(&read), bits(&values));
        assert_eq!(
            reported[0]["step"],
            (u64::MAX - values.len() as u64).to_string()
        );
        assert_eq!(trial["score"].as_f64().unwrap().to_bits(), score.to_bits());

        let mut request = tonic::Request::new(ListTrialsRequest {
            study_id: id.clone(),
            ..Default::default()
        });
        request
            .metadata_mut()
            .insert("authorization", bearer.parse().unwrap());
        let trials = grpc.list_trials(request).await.unwrap().into_inner().trials;
        assert_eq!(bits(&grpc_parameters(&trials[0], N)), bits(&given));
        let read: Vec<f64> = trials[0]
            .intermediate_values
            .iter()
            .map(|v| v.value)
            .collect();
        assert_eq!(bits(&read), bits(&values));
        let mut request = tonic::Request::new(GetStudyRequest { study_id: id });
        request
            .metadata_mut()
            .insert("authorization", bearer.parse().unwrap());
        let study = grpc
            .get_study(request)
            .await
            .unwrap()
            .into_inner()
            .study
            .unwrap();
        assert_eq!(
            (study.seed, study.best_trial.unwrap().score),
            (seed, Some(score))
        );
    }
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_numbers_stay_whole() {
    let mesh = TestMesh::start().await;
    let http = Http::new(&mesh).await;
    let body = r#"{"search_space":[{"name":"n","int":{"low":7,"high":"7"}},{"name":"c","categorical":{"values":[64,0.5,"x",true]}}],"n_trials":1}"#;
    let study = http.json("POST", "/api/v1/studies", body).await;
    let text = String::from_utf8(study.body.to_vec()).unwrap();
    assert!(text.contains(r#"[64,0.5,"x",true]"#), "{text}");
    let id = study.json()["study"]["study_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let asked = http
        .json("POST", &format!("/api/v1/studies/{id}/ask"), "{}")
        .await;
    let text = String::from_utf8(asked.body.to_vec()).unwrap();
    assert!(
        text.contains(r#""n":7}"#) || text.contains(r#""n":7,"#),
        "{text}"
    );

    let agent = "/api/v1/orchestration/agents/policy";
    for (given, read) in [("64", "64"), ("32.0", "32"), ("1.6e1", "16")] {
        let body =
            format!(r#"{{"hyperparameters":{{"batch_size":{given},"gamma":0.9803246417122269}}}}"#);
        let reloaded = http.json("POST", &format!("{agent}/reload"), &body).await;
        assert_eq!(reloaded.status, StatusCode::OK, "{:?}", reloaded.body);
        let text = String::from_utf8(http.get(agent).await.body.to_vec()).unwrap();
        assert!(text.contains(&format!(r#""batch_size":{read},"#)), "{text}");
        assert!(text.contains(r#""gamma":0.9803246417122269"#), "{text}");
    }
    let game = r#"{"players":[{"name":"a","actions":["x"],"payoffs":[0.9803246417122269]},{"name":"b","actions":["y"],"payoffs":[7]}]}"#;
    let solved = http.json("POST", "/api/v1/orchestration/nash", game).await;
    let text = String::from_utf8(solved.body.to_vec()).unwrap();
    assert!(
        text.contains("0.9803246417122269") && text.contains(r#""b":7.0"#),
        "{text}"
    );
    mesh.mesh.stop().await;
}
