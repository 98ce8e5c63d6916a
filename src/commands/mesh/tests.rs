use super::*;

fn session(gateway: &str, roots: &[&str]) -> Session {
    Session::of(gateway, "ada", roots)
}

fn known(gateway: Option<&str>, roots: &[&str]) -> Known {
    Known {
        gateway: gateway.map(str::to_owned),
        roots: roots.iter().map(|r| (*r).to_owned()).collect(),
        name: "that mesh".to_owned(),
        data_dir: None,
    }
}

#[test]
fn a_flag_names_a_mesh_before_the_configuration_does() {
    let (a, b, default) = (Path::new("/a"), Path::new("/b"), Path::new("/default"));
    let dir = |p: &Path| Named::DataDir(p.to_owned());
    let url = Named::Gateway("http://x:1".to_owned());
    for (what, gateway, flag, configured, want) in [
        ("nothing", None, None, default, Named::Nothing),
        ("--data-dir", None, Some(b), b, dir(b)),
        (
            "--data-dir, though it is the default",
            None,
            Some(default),
            default,
            dir(default),
        ),
        ("the environment or the file", None, None, a, dir(a)),
        ("--gateway", Some("http://x:1"), None, default, url.clone()),
        (
            "--gateway with a slash",
            Some("http://x:1/"),
            None,
            default,
            url.clone(),
        ),
        (
            "--gateway before the environment",
            Some("http://x:1"),
            None,
            a,
            url,
        ),
    ] {
        assert_eq!(
            Named::new(gateway, flag, configured, default).unwrap(),
            want,
            "{what}"
        );
    }
    let both = Named::new(Some("http://x:1"), Some(a), a, default).unwrap_err();
    assert!(both.to_string().contains("both name a mesh"), "{both}");
}

#[test]
fn an_address_has_one_spelling() {
    for text in [
        "http://127.0.0.1:3101",
        "127.0.0.1:3101",
        "http://127.0.0.1:3101/",
        " HTTP://127.0.0.1:3101// ",
    ] {
        assert_eq!(plain_url(text), "http://127.0.0.1:3101", "{text:?}");
    }
    assert_ne!(plain_url("127.0.0.1:3102"), plain_url("127.0.0.1:3101"));
    for (listens, url) in [
        ("127.0.0.1:3101", "http://127.0.0.1:3101"),
        ("0.0.0.0:3101", "http://127.0.0.1:3101"),
        ("[::]:3101", "http://[::1]:3101"),
    ] {
        assert_eq!(url_of(listens.parse().unwrap()), url);
    }
}

#[test]
fn the_configuration_says_where_a_fleet_is() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = |url: Option<&str>| {
        let named = Named::DataDir(dir.path().to_owned());
        Mesh::new(named, PathBuf::from("/default"), url.map(str::to_owned)).known()
    };
    assert_eq!(mesh(Some(A)).unwrap().unwrap().gateway.as_deref(), Some(A));
    let nowhere = mesh(None).unwrap_err().to_string();
    assert!(nowhere.contains("there is no mesh in"), "{nowhere}");
    assert!(!nowhere.contains("just now"), "{nowhere}");
    std::fs::File::create(dir.path().join("lock")).unwrap();
    let starts = mesh(None).unwrap_err().to_string();
    assert!(starts.contains("started just now"), "{starts}");
}

const A: &str = "http://127.0.0.1:1";
const B: &str = "http://127.0.0.1:2";

#[test]
fn a_mesh_that_is_named_gets_its_own_session_or_none() {
    let sessions = [session(A, &["root-a"]), session(B, &["root-b1", "root-b2"])];
    let found = |k: Known| choose(&sessions, Some(&k), None).map(|s| s.gateway.clone());
    // By its roots, wherever it is now and whichever of them it has kept.
    assert_eq!(found(known(Some(A), &["root-a"])).unwrap(), A);
    assert_eq!(found(known(None, &["root-b2", "root-b3"])).unwrap(), B);
    assert_eq!(found(known(Some(A), &["root-b1"])).unwrap(), B, "it moved");
    // By its address, when that is all that is known.
    assert_eq!(found(known(Some(B), &[])).unwrap(), B);
    for (what, mesh) in [
        ("another address", known(Some("http://127.0.0.1:3"), &[])),
        (
            "another mesh",
            known(Some("http://127.0.0.1:3"), &["root-c"]),
        ),
        ("no address, other roots", known(None, &["root-c"])),
    ] {
        let refused = found(mesh).unwrap_err();
        assert!(
            matches!(refused, NoSession::Unknown(_)),
            "{what}: {refused}"
        );
    }
    let remade = found(known(Some(A), &["root-a-again"])).unwrap_err();
    assert!(matches!(remade, NoSession::OtherMesh { .. }), "{remade}");
    assert!(remade.to_string().contains("tars login"), "{remade}");
}

#[test]
fn where_nothing_is_named_only_one_mesh_may_be_meant() {
    let (a, b) = (session(A, &["root-a"]), session(B, &["root-b"]));
    let one = [a.clone()];
    assert_eq!(choose(&one, None, None).unwrap().gateway, A);
    let own = known(Some(A), &["root-a"]);
    assert_eq!(choose(&one, None, Some(&own)).unwrap().gateway, A);
    let stopped = known(None, &["root-b"]);
    assert_eq!(choose(&one, None, Some(&stopped)).unwrap().gateway, A);
    let other = known(Some(B), &["root-b"]);
    let refused = choose(&one, None, Some(&other)).unwrap_err();
    assert!(
        matches!(&refused, NoSession::Several(m) if m.len() == 2),
        "{refused}"
    );
    let two = [a, b];
    let refused = choose(&two, None, None).unwrap_err().to_string();
    for part in [A, B, "ada", "--gateway", "--data-dir"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(choose(&[], None, None).unwrap_err(), NoSession::None);
    let refused = choose(&[], None, Some(&other)).unwrap_err();
    assert!(matches!(refused, NoSession::Unknown(_)), "{refused}");
}
