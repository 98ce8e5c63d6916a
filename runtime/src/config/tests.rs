use super::*;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn without_settings_the_defaults_apply() {
    assert_eq!(
        Config::load(None, env(&[]), Table::new()).unwrap(),
        Config::default()
    );
}

#[test]
fn flags_override_variables_and_variables_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tars.toml");
    std::fs::write(
        &file,
        "[limits]\nauth_per_minute = 1\npublic_per_minute = 1\nuser_per_minute = 1\n",
    )
    .unwrap();
    let vars = env(&[
        ("TARS__LIMITS__PUBLIC_PER_MINUTE", "2"),
        ("TARS__LIMITS__USER_PER_MINUTE", "2"),
        ("HOME", "x"),
    ]);
    let flags = leaf("limits", "user_per_minute", Value::Integer(3));
    let config = Config::load(Some(&file), vars, flags).unwrap();
    let limits = config.limits;
    assert_eq!(
        (
            limits.auth_per_minute,
            limits.public_per_minute,
            limits.user_per_minute
        ),
        (1, 2, 3)
    );
}

#[test]
fn every_mistake_is_reported_at_once() {
    let vars = env(&[
        ("TARS__LIMITS__AUTH_PER_MINUTE", "many"),
        ("TARS__LISTEN__AUTH", "nowhere"),
        ("TARS__NOSUCH__KEY", "1"),
        ("TARS__LOG__NOSUCH", "1"),
        ("TARS__ALONE", "1"),
    ]);
    let text = Config::load(Some(Path::new("/nonexistent.toml")), vars, Table::new())
        .unwrap_err()
        .to_string();
    for expected in [
        "limits.auth_per_minute",
        "listen.auth",
        "nosuch",
        "log.nosuch",
        "TARS__ALONE",
        "/nonexistent.toml",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn mistakes_of_every_kind_are_reported_together() {
    let vars = env(&[
        ("TARS__LIMITS__AUTH_PER_MINUTE", "many"),
        ("TARS__LOG__NOSUCH", "1"),
        ("TARS__NOSUCH__KEY", "1"),
        ("TARS__ALONE", "1"),
        ("TARS__LISTEN__ADMIN", "0.0.0.0:1"),
        ("TARS__DATABASE__READERS", "0"),
    ]);
    let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
    assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
}

#[test]
fn nothing_is_compared_with_a_value_that_is_invalid() {
    let vars = env(&[
        ("TARS__CONNECTIONS__MAX", "many"),
        ("TARS__CONNECTIONS__MAX_BY_ADDRESS", "100000"),
        ("TARS__DATABASE__PLAINTEXT_LOOPBACK", "perhaps"),
        (
            "TARS__DATABASE__URL",
            "postgresql://me@127.0.0.1/tars?sslmode=disable",
        ),
    ]);
    let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
    let keys: Vec<_> = mistakes
        .iter()
        .filter_map(|m| m.split(':').next())
        .collect();
    let expected = ["connections.max", "database.plaintext_loopback"];
    assert_eq!(keys, expected, "{mistakes:#?}");
}

#[test]
fn what_is_no_section_or_an_unknown_one_is_reported_once() {
    let table: Table = "log = 1\n[empty]\n[nosuch]\na = 1\n[listen]\nadmin = '0.0.0.0:1'\n"
        .parse()
        .unwrap();
    let ConfigErrors(mistakes) = Config::load(None, env(&[]), table).unwrap_err();
    let keys: Vec<_> = mistakes
        .iter()
        .filter_map(|m| m.split([':', ' ']).next())
        .collect();
    assert_eq!(
        keys,
        ["empty", "log", "nosuch.a", "listen.admin"],
        "{mistakes:#?}"
    );
}

#[test]
fn without_its_file_a_setting_is_not_compared() {
    let vars = env(&[("TARS__CONNECTIONS__MAX_BY_ADDRESS", "100000")]);
    let file = Path::new("/nonexistent.toml");
    let ConfigErrors(mistakes) = Config::load(Some(file), vars, Table::new()).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
}

#[test]
fn invalid_values_are_refused_together() {
    let vars = env(&[
        ("TARS__LISTEN__ADMIN", "0.0.0.0:1"),
        ("TARS__LISTEN__GATEWAY", "0.0.0.0:1"),
        ("TARS__TELEMETRY__SAMPLE_RATIO", "2.0"),
    ]);
    let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[test]
fn every_mistake_about_the_addresses_of_services_is_reported() {
    let vars = env(&[
        ("TARS__CONNECT__AUTH", "10.0.0.1:8093,10.0.0.2"),
        ("TARS__CONNECT__HYPERSYNC", "a:1,a:1,b:0"),
        ("TARS__CONNECT__BOOTSTRAP", ""),
        (
            "TARS__CONNECT__AUTOML",
            "automl-0.svc:8097, automl-1.svc:8097",
        ),
    ]);
    let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
    let of = |key: &str| mistakes.iter().filter(|m| m.starts_with(key)).count();
    let found = [
        "connect.auth: ",
        "connect.hypersync: ",
        "connect.bootstrap: ",
    ]
    .map(of);
    assert_eq!((found, mistakes.len()), ([1, 2, 1], 4), "{mistakes:#?}");
}

#[test]
fn every_mistake_about_listeners_is_reported() {
    let vars = env(&[
        (
            "TARS__GATEWAY__TRUSTED_PROXIES",
            r#"["10.0.0.0/8", "10.0.0.1/8", "proxy", "0.0.0.0/0"]"#,
        ),
        ("TARS__GATEWAY__MAX_CONNECTIONS_BY_ADDRESS", "5000"),
        ("TARS__CONNECTIONS__MAX_BY_IDENTITY", "0"),
        ("TARS__TIMEOUTS__HEAD_SECONDS", "0"),
        ("TARS__TIMEOUTS__BODY_BYTES_PER_SECOND", "0"),
        ("TARS__CONNECTIONS__HANDSHAKE_TIMEOUT_SECONDS", "9999"),
    ]);
    let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
    assert_eq!(mistakes.len(), 8, "{mistakes:#?}");
    let vars = env(&[("TARS__GATEWAY__TRUSTED_PROXIES", r#"["10.0.0.0/8", "::1"]"#)]);
    let config = Config::load(None, vars, Table::new()).unwrap();
    assert_eq!(config.gateway.trusted_proxies.len(), 2);
}

#[test]
fn the_printed_configuration_parses_back() {
    let config = Config::default();
    let table: Table = config.to_toml().parse().unwrap();
    assert_eq!(Config::load(None, env(&[]), table).unwrap(), config);
}
