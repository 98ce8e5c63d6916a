use super::*;
use tars_proto::table::pool;
use tonic::Status;
use tonic_types::StatusExt;

fn read(message: &str, body: &[u8]) -> Result<DynamicMessage, Status> {
    let descriptor = pool().get_message_by_name(message).expect("a message");
    let mut message = DynamicMessage::new(descriptor);
    let mut reader = Reader::default();
    let json = parse(body).map_err(Status::invalid_argument)?;
    reader.fill(&mut message, json, &Path::ROOT);
    reader.finish().map_or(Ok(message), Err)
}

fn faults(message: &str, body: &str) -> Vec<String> {
    let status = read(message, body.as_bytes()).expect_err(body);
    let details = status.get_details_bad_request().expect("fields");
    let violations = details.field_violations.into_iter();
    violations
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect()
}

fn text(message: &DynamicMessage) -> String {
    String::from_utf8(write(message).unwrap()).unwrap()
}

const USER: &str = "tars.auth.v1.CreateUserRequest";
const KEY: &str = "tars.auth.v1.CreateApiKeyRequest";
const RELOAD: &str = "tars.orchestration.v1.ReloadAgentRequest";
const NASH: &str = "tars.orchestration.v1.ComputeNashRequest";
const SPACE: &str = "tars.automl.v1.CreateStudyRequest";
const REPORT: &str = "tars.automl.v1.ReportTrialRequest";
const AUDIT: &str = "tars.auth.v1.ListAuditEventsRequest";

#[test]
fn a_name_given_twice_is_refused_on_every_level() {
    for (message, body, fault) in [
        (
            KEY,
            r#"{"scopes":["agents.read"],"scopes":[]}"#,
            "scopes: is given twice",
        ),
        (
            USER,
            r#"{"roles":["viewer"],"roles":["admin"]}"#,
            "roles: is given twice",
        ),
        (
            USER,
            r#"{"username":"a","username":"a"}"#,
            "username: is given twice",
        ),
        (
            USER,
            r#"{"username":null,"username":"a"}"#,
            "username: is given twice",
        ),
        (
            RELOAD,
            r#"{"agent_id":"a","agentId":"a"}"#,
            "agent_id: is given twice",
        ),
        (
            RELOAD,
            r#"{"agentId":"a","\u0061gent_id":"b"}"#,
            "agent_id: is given twice",
        ),
        (
            RELOAD,
            r#"{"hyperparameters":{"a":1,"\u0061":2}}"#,
            "hyperparameters[a]: is given twice",
        ),
        (
            RELOAD,
            r#"{"hyperparameters":{"a":{"b":[{"c":1,"c":1}]}}}"#,
            "hyperparameters[a][b][0][c]: is given twice",
        ),
        (
            NASH,
            r#"{"agent_payoffs":{"a":1,"a":2}}"#,
            "agent_payoffs[a]: is given twice",
        ),
        (
            NASH,
            r#"{"players":[{"name":"a"},{"name":"b","name":"c"}]}"#,
            "players[1].name: is given twice",
        ),
        (
            SPACE,
            r#"{"search_space":[{"categorical":{"values":[{"a":1,"a":2}]}}]}"#,
            "search_space[0].categorical.values[0][a]: is given twice",
        ),
    ] {
        assert_eq!(faults(message, body), [fault], "{body}");
    }
}

#[test]
fn an_unknown_name_is_refused_on_every_level() {
    for (message, body, fault) in [
        (
            USER,
            r#"{"admin":true}"#,
            "admin: is not a field of this message",
        ),
        (
            USER,
            r#"{"Username":"a"}"#,
            "Username: is not a field of this message",
        ),
        (
            USER,
            r#"{"[tars.x]":1}"#,
            "[\"[tars.x]\"]: is not a field of this message",
        ),
        (
            NASH,
            r#"{"players":[{"nam":"a"}]}"#,
            "players[0].nam: is not a field of this message",
        ),
        (
            NASH,
            r#"{"options":{"a\nb":1}}"#,
            "options[\"a\\nb\"]: is not a field of this message",
        ),
    ] {
        assert_eq!(faults(message, body), [fault], "{body}");
    }
}

#[test]
fn every_mistake_is_reported_and_no_value_is_echoed() {
    let body = r#"{"username":["hunter2"],"password":20231224,"roles":[1,null,"x"]}"#;
    let found = faults(USER, body);
    assert_eq!(
        found,
        [
            "username: must be a string",
            "password: must be a string",
            "roles[0]: must be a string",
            "roles[1]: must not be null",
        ]
    );
    for body in [
        r#"{"password":{"hunter2":1}}"#,
        r#"{"password":true}"#,
        r#"{"roles":"hunter2"}"#,
        r#"{"roles":{"hunter2":"hunter2"}}"#,
        r#"{"password":"hunter2\ud800"}"#,
    ] {
        let status = read(USER, body.as_bytes()).unwrap_err();
        let shown = format!("{status:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let body = r#"{"players":[{"payoffs":[1,2,"x"]},{"payoffs":[true]}],"default_payoff":"1e5x"}"#;
    assert_eq!(
        faults(NASH, body),
        [
            "players[0].payoffs[2]: must be a number",
            "players[1].payoffs[0]: must be a number",
            "default_payoff: must be a number",
        ]
    );
}

#[test]
fn invalid_json_is_refused() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let bad: [&[u8]; 17] = [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{}x",
        b"{} \0",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b"{\"username\":\"\xff\"}",
        b"{\"username\":\"\xc0\xaf\"}",
        b"{\"username\":\"a\nb\"}",
        b"{'username':'a'}",
        b"{\"username\":\"a\",}",
        b"{\"username\":NaN}",
        b"{\"roles\":[1 2]}",
        b"{\"n\":01}",
        deep.as_bytes(),
    ];
    for body in bad {
        let refused = read(USER, body);
        assert!(refused.is_err(), "{}", String::from_utf8_lossy(body));
    }
    for lone in [r#""\ud800""#, r#""\udc00x""#, r#""\ud800\u0041""#] {
        let body = format!("{{\"username\":{lone}}}");
        assert_eq!(faults(USER, &body), ["username: is not Unicode text"]);
        let body = format!("{{\"hyperparameters\":{{{lone}:1}}}}");
        assert_eq!(
            faults(RELOAD, &body),
            ["hyperparameters: is not Unicode text"]
        );
    }
    let pair = read(USER, br#"{"username":"\ud83d\ude00"}"#).unwrap();
    assert!(text(&pair).contains('\u{1F600}'));
}

#[test]
fn values_nest_as_deep_as_the_contract_allows() {
    let nested = |n: usize| {
        let (open, close) = ("{\"a\":".repeat(n - 1), "}".repeat(n - 1));
        format!("{{\"hyperparameters\":{{\"a\":{open}1{close}}}}}")
    };
    assert!(read(RELOAD, nested(MAX_STRUCT_DEPTH).as_bytes()).is_ok());
    let found = faults(RELOAD, &nested(MAX_STRUCT_DEPTH + 1));
    assert!(found[0].ends_with("is nested too deeply"), "{found:?}");
    let found = faults(RELOAD, &nested(50_000));
    assert!(found[0].ends_with("is nested too deeply"), "{found:?}");
}

#[test]
fn null_is_absence() {
    let body = br#"{"agent_id":null,"hyperparameters":null,"expected_version":null,"reason":"x"}"#;
    let absent = read(RELOAD, body).unwrap();
    assert_eq!(absent, read(RELOAD, br#"{"reason":"x"}"#).unwrap());
    let value = read(RELOAD, br#"{"hyperparameters":{"a":null}}"#).unwrap();
    assert!(text(&value).contains(r#""a":null"#));
}

#[test]
fn numbers_are_written_as_they_were_parsed() {
    let body = r#"{"hyperparameters":{"int":7,"float":0.9803246417122269,"big":9007199254740992,"zero":-0.0,"list":[1,1.5,-3]}}"#;
    let read_back = read(RELOAD, body.as_bytes()).unwrap();
    for kept in [
        r#""int":7"#,
        r#""float":0.9803246417122269"#,
        r#""big":9007199254740992"#,
        r#""zero":-0.0"#,
        r#""list":[1,1.5,-3]"#,
    ] {
        assert!(
            text(&read_back).contains(kept),
            "{kept}: {}",
            text(&read_back)
        );
    }
    for (digits, problem) in [
        ("9007199254740993", "2^53"),
        ("-9007199254740993", "2^53"),
        ("18446744073709551616", "2^53"),
        ("1e400", "out of range"),
    ] {
        let found = faults(
            RELOAD,
            &format!("{{\"hyperparameters\":{{\"seed\":{digits}}}}}"),
        );
        assert!(
            found[0].starts_with("hyperparameters[seed]: ") && found[0].contains(problem),
            "{found:?}"
        );
    }
}

#[test]
fn integers_are_numbers_or_strings_exact_to_the_last_bit() {
    let step = |value: &str| {
        let body = format!("{{\"step\":{value}}}");
        read(REPORT, body.as_bytes())
            .map(|m| m.get_field_by_name("step").unwrap().as_u64().unwrap())
    };
    for value in [
        "18446744073709551615",
        "\"18446744073709551615\"",
        "18446744073709551615.0",
    ] {
        assert_eq!(step(value).unwrap(), u64::MAX);
    }
    for value in ["7.0", "7e0", "\"7\"", "\"7.0\"", "70e-1"] {
        assert_eq!(step(value).unwrap(), 7, "{value}");
    }
    for value in [
        "18446744073709551616",
        "1.8446744073709552e19",
        "-1",
        "7.5",
        "\"\"",
        "\" 7\"",
        "\"+7\"",
        "\"0x7\"",
        "true",
        "[7]",
    ] {
        assert!(step(value).is_err(), "{value}");
    }
}

/// Doubles of every bit pattern, and those about which formatters and parsers disagree.
fn doubles() -> impl Iterator<Item = f64> {
    let special = [
        0.0,
        -0.0,
        5e-324,
        f64::MIN_POSITIVE,
        f64::MAX,
        f64::MIN,
        0.1,
        1e23,
        9_007_199_254_740_993.0,
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let drawn = (0..10_000).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f64::from_bits(state)
    });
    special.into_iter().chain(drawn).filter(|v| v.is_finite())
}

#[test]
fn every_double_survives_json_both_ways() {
    for chunk in doubles().collect::<Vec<_>>().chunks(500) {
        let values: Vec<String> = chunk.iter().map(|v| format!("{v:e}")).collect();
        let body = format!(
            "{{\"players\":[{{\"payoffs\":[{0}]}}],\"candidate_actions\":[{{\"a\":[{0}]}}]}}",
            values.join(",")
        );
        let first = read(NASH, body.as_bytes()).unwrap();
        let second = read(NASH, &write(&first).unwrap()).unwrap();
        for message in [&first, &second] {
            let players = message.get_field_by_name("players").unwrap();
            let player = players.as_list().unwrap()[0].as_message().unwrap();
            let payoffs = player.get_field_by_name("payoffs").unwrap();
            let bits = payoffs
                .as_list()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap().to_bits());
            assert!(bits.eq(chunk.iter().map(|v| v.to_bits())));
        }
        assert!(write(&first).unwrap() == write(&second).unwrap());
    }
}

#[test]
fn every_integer_survives_json_both_ways() {
    let mut state = 88_172_645_463_325_252_u64;
    for shift in 0..64 {
        for _ in 0..100 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let n = state >> shift;
            for body in [format!("{{\"seed\":{n}}}"), format!("{{\"seed\":\"{n}\"}}")] {
                let message = read(SPACE, body.as_bytes()).unwrap();
                assert!(text(&message).contains(&format!("\"seed\":\"{n}\"")));
            }
            let low = n as i64;
            let body = format!("{{\"search_space\":[{{\"int\":{{\"low\":{low}}}}}]}}");
            let message = read(SPACE, body.as_bytes()).unwrap();
            assert!(text(&message).contains(&format!("\"low\":\"{low}\"")));
        }
    }
}

#[test]
fn enums_times_and_maps_follow_the_mapping() {
    let good = read(
        NASH,
        br#"{"options":{"algorithm":"NASH_ALGORITHM_LEMKE_HOWSON","time_limit":"1.5s"}}"#,
    );
    let same = read(NASH, br#"{"options":{"algorithm":2,"timeLimit":"1.500s"}}"#);
    assert_eq!(good.unwrap(), same.unwrap());
    for (message, body, fault) in [
        (
            NASH,
            r#"{"options":{"algorithm":"nash_algorithm_lemke_howson"}}"#,
            "options.algorithm: must be one of NASH_ALGORITHM_LINEAR_PROGRAMME, NASH_ALGORITHM_LEMKE_HOWSON, NASH_ALGORITHM_SUPPORT_ENUMERATION, NASH_ALGORITHM_ITERATED_POLYMATRIX, NASH_ALGORITHM_LOGIT_HOMOTOPY, NASH_ALGORITHM_FICTITIOUS_PLAY, NASH_ALGORITHM_REGRET_MATCHI…",
        ),
        (
            NASH,
            r#"{"options":{"algorithm":2.5}}"#,
            "options.algorithm: must be one of NASH_ALGORITHM_LINEAR_PROGRAMME, NASH_ALGORITHM_LEMKE_HOWSON, NASH_ALGORITHM_SUPPORT_ENUMERATION, NASH_ALGORITHM_ITERATED_POLYMATRIX, NASH_ALGORITHM_LOGIT_HOMOTOPY, NASH_ALGORITHM_FICTITIOUS_PLAY, NASH_ALGORITHM_REGRET_MATCHI…",
        ),
        (AUDIT, r#"{"start_time":1}"#, "start_time: must be a string"),
        (
            NASH,
            r#"{"agent_payoffs":{"a":null}}"#,
            "agent_payoffs[a]: must not be null",
        ),
        (
            NASH,
            r#"{"agent_payoffs":[]}"#,
            "agent_payoffs: must be an object",
        ),
        (NASH, r#"{"options":[]}"#, "options: must be an object"),
        (NASH, r#"{"players":{}}"#, "players: must be a list"),
    ] {
        assert_eq!(faults(message, body), [fault], "{body}");
    }
}

#[test]
fn only_one_member_of_a_oneof_may_be_given() {
    // The contract has no oneof, but `google.protobuf.Value` does.
    const VALUE: &str = "google.protobuf.Value";
    let two = r#"{"stringValue":"a","bool_value":true}"#;
    assert_eq!(
        faults(VALUE, two),
        ["bool_value: cannot be given together with string_value"]
    );
    assert!(read(VALUE, br#"{"stringValue":null,"bool_value":true}"#).is_ok());
}
