use super::*;
use crate::ca::{Authority, Request};
use rcgen::KeyPair;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const TERMS: (&str, Lifetimes) = (
    "tars.local",
    Lifetimes {
        root: Duration::from_secs(3650 * 86_400),
        intermediate: Duration::from_secs(30 * 86_400),
    },
);

fn created() -> Contents {
    Contents::create(TERMS.0, TERMS.1, NOW).unwrap()
}

fn copy(dir: &Path, version: u64, contents: &Contents, now: Duration) -> Authority {
    Authority::open_copy(dir, TERMS, (version, contents), now).unwrap()
}

fn request() -> Request {
    Request::new(SpiffeId::new("tars.local", "/auth").unwrap(), DAY)
}

fn replica() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn contents_survive_encoding_and_a_folder() {
    let mut contents = created();
    contents
        .step((RotationStep::Prepare, "ada"), TERMS.0, TERMS.1, NOW)
        .unwrap();
    let decoded = Contents::from_bytes(&contents.to_bytes().unwrap()).unwrap();
    assert_eq!(decoded, contents);
    let dir = replica();
    contents.write(dir.path()).unwrap();
    assert_eq!(Contents::read(dir.path()).unwrap(), contents);
    assert!(!format!("{contents:?}").contains("PRIVATE"));
}

#[test]
fn bytes_that_are_no_contents_are_refused() {
    let text = String::from_utf8(created().to_bytes().unwrap().to_vec()).unwrap();
    let file = text.split("intermediate-").nth(1).unwrap();
    let stem = file.split('"').next().unwrap().to_owned();
    for changed in [
        "{}".to_owned(),
        text[..text.len() - 1].to_owned(),
        text.replace(r#""roots":{"1""#, r#""roots":{"2""#),
        text.replace("active", "retired"),
        text.replace(&format!("intermediate-{stem}"), "../escaped"),
        text.replace(&format!("intermediate-{stem}"), "intermediate-/../x"),
    ] {
        assert_ne!(changed, text);
        let refused = Contents::from_bytes(changed.as_bytes());
        assert!(matches!(refused, Err(CaError::Encoding(_))), "{changed}");
    }
}

#[test]
fn copies_of_one_authority_accept_each_others_leaves() {
    let (one, two, contents) = (replica(), replica(), created());
    let one = copy(one.path(), 1, &contents, NOW);
    let two = copy(two.path(), 1, &contents, NOW);
    assert_eq!(one.roots(), two.roots());
    assert_eq!(one.join_key(), two.join_key());
    let leaf = one.issue(&request(), NOW).unwrap();
    assert!(two.root_above(&leaf.name.issuer).is_some());
}

#[test]
fn a_copy_is_not_changed_by_itself() {
    let (dir, contents) = (replica(), created());
    let ca = copy(dir.path(), 1, &contents, NOW);
    let step = ca.step(RotationStep::Prepare, "ada", NOW);
    assert!(matches!(step, Err(CaError::WorkingCopy)), "{step:?}");
    let floor = ca.raise_not_before(&[(request().id, NOW)]);
    assert!(matches!(floor, Err(CaError::WorkingCopy)), "{floor:?}");
    let later = NOW + DAY * 21;
    assert!(!ca.is_renewal_due(NOW) && ca.is_renewal_due(later));
    let (before, after) = (ca.issue(&request(), NOW), ca.issue(&request(), later));
    assert_eq!(before.unwrap().name.issuer, after.unwrap().name.issuer);
    assert_eq!(Contents::read(dir.path()).unwrap(), contents);
}

#[test]
fn contents_are_adopted_and_steps_are_announced() {
    let (dir, first) = (replica(), created());
    let ca = copy(dir.path(), 1, &first, NOW);
    let (mut steps, mut next) = (ca.subscribe(), first);
    assert!(next.raise_not_before(&[(request().id, NOW)]));
    assert!(!next.raise_not_before(&[(request().id, NOW - DAY)]));
    ca.adopt(2, &next, NOW).unwrap();
    assert!(!steps.has_changed().unwrap(), "no step was taken");
    let leaf = ca.issue(&request(), NOW).unwrap();
    let leaf = crate::peer::PeerCertificate::parse(&leaf.chain[0]).unwrap();
    assert_eq!(leaf.not_before, NOW, "not backdated");
    ca.step_in(&mut next, (RotationStep::Prepare, "ada"), NOW)
        .unwrap();
    ca.adopt(3, &next, NOW).unwrap();
    assert!(steps.has_changed().unwrap());
    steps.mark_unchanged();
    ca.adopt(3, &next, NOW).unwrap();
    assert!(!steps.has_changed().unwrap());
    assert_eq!((ca.copy_version(), ca.roots().len()), (Some(3), 2));
    assert_eq!(Contents::read(dir.path()).unwrap(), next);
    let bundle = fs::read_to_string(ca.bundle_path()).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2);
}

#[test]
fn a_copy_falls_back_with_its_contents_and_takes_another_step_of_the_same_number() {
    let (dir, first) = (replica(), created());
    let ca = copy(dir.path(), 1, &first, NOW);
    let (mut lost, mut taken) = (first.clone(), first.clone());
    for contents in [&mut lost, &mut taken] {
        ca.step_in(contents, (RotationStep::Prepare, "ada"), NOW)
            .unwrap();
    }
    ca.adopt(2, &lost, NOW).unwrap();
    let mut steps = ca.subscribe();
    ca.adopt(2, &taken, NOW).unwrap();
    assert!(steps.has_changed().unwrap(), "the roots are others");
    steps.mark_unchanged();
    assert_eq!(Contents::read(dir.path()).unwrap(), taken);
    ca.adopt(1, &first, NOW).unwrap();
    assert!(steps.has_changed().unwrap());
    assert_eq!((ca.copy_version(), ca.roots().len()), (Some(1), 1));
    assert!(ca.issue(&request(), NOW).is_ok());
    let bundle = fs::read_to_string(ca.bundle_path()).unwrap();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1);
}

#[test]
fn contents_that_cannot_be_used_leave_a_copy_as_it_was() {
    let (dir, first) = (replica(), created());
    let ca = copy(dir.path(), 1, &first, NOW);
    let mut damaged = first;
    let root = damaged.roots.get_mut(&1).unwrap();
    root.key = Some(KeyPair::generate().unwrap().serialize_pem().into());
    assert!(ca.adopt(2, &damaged, NOW).is_err());
    assert_eq!(ca.copy_version(), Some(1));
    assert!(ca.issue(&request(), NOW).is_ok());
    let foreign = ca.adopt(2, &created(), NOW);
    assert!(matches!(foreign, Err(CaError::Foreign(_))), "{foreign:?}");
    assert_eq!(ca.copy_version(), Some(1));
}

#[test]
fn an_intermediate_is_renewed_in_the_contents_when_it_is_due() {
    let (dir, mut contents) = (replica(), created());
    let ca = copy(dir.path(), 1, &contents, NOW);
    assert!(!ca.renew_in(&mut contents, NOW).unwrap());
    let later = NOW + DAY * 21;
    assert!(ca.renew_in(&mut contents, later).unwrap());
    assert!(!ca.renew_in(&mut contents, later).unwrap());
    let before = ca.issue(&request(), later).unwrap().name.issuer;
    ca.adopt(2, &contents, later).unwrap();
    let after = ca.issue(&request(), later).unwrap().name.issuer;
    assert_ne!(before, after);
    assert!(ca.root_above(&before).is_some(), "still known");
}

#[test]
fn without_its_root_key_the_contents_renew_nothing() {
    let (dir, mut contents) = (replica(), created());
    contents.roots.get_mut(&1).unwrap().key = None;
    let ca = copy(dir.path(), 1, &contents, NOW);
    let later = NOW + DAY * 21;
    assert!(!ca.is_renewal_due(later));
    assert!(!ca.renew_in(&mut contents, later).unwrap());
    let late = ca.issue(&request(), NOW + DAY * 31);
    assert!(matches!(late, Err(CaError::Expired)), "{late:?}");
}

#[test]
fn a_folder_with_another_authority_is_refused_and_left_alone() {
    let dir = replica();
    let own = Authority::init(dir.path(), TERMS.0, TERMS.1, NOW).unwrap();
    let before = Contents::read(dir.path()).unwrap();
    let refused = Authority::open_copy(dir.path(), TERMS, (1, &created()), NOW);
    let Err(refused) = refused else {
        panic!("accepted");
    };
    assert!(matches!(refused, CaError::Foreign(_)), "{refused}");
    assert_eq!(Contents::read(dir.path()).unwrap(), before);
    // Its own contents are welcome, at a later version too.
    let mut next = before;
    own.step_in(&mut next, (RotationStep::Prepare, "ada"), NOW)
        .unwrap();
    assert_eq!(copy(dir.path(), 9, &next, NOW).roots().len(), 2);
}

#[test]
fn an_authority_of_another_trust_domain_is_refused() {
    let (dir, contents) = (replica(), created());
    let opened = Authority::open_copy(dir.path(), ("evil.example", TERMS.1), (1, &contents), NOW);
    let refused = opened.unwrap_err().to_string();
    for part in ["trust domain evil.example", "trust.domain", TERMS.0] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let dir = replica();
    Authority::init(dir.path(), TERMS.0, TERMS.1, NOW).unwrap();
    let before = Contents::read(dir.path()).unwrap();
    let later = NOW + DAY * 21;
    let opened = Authority::open(dir.path(), "evil.example", TERMS.1, later);
    assert!(matches!(opened, Err(CaError::OtherDomain { .. })));
    assert_eq!(
        Contents::read(dir.path()).unwrap(),
        before,
        "nothing is renewed"
    );
}

#[test]
fn a_rotation_in_contents_ends_with_the_new_root_alone() {
    let (dir, mut contents) = (replica(), created());
    let ca = copy(dir.path(), 1, &contents, NOW);
    for (version, step) in (2..).zip(RotationStep::ALL) {
        let early = ca.step_in(&mut contents, (RotationStep::Remove, "ada"), NOW);
        assert_eq!(early.is_ok(), step == RotationStep::Remove, "{step}");
        if step != RotationStep::Remove {
            ca.step_in(&mut contents, (step, "ada"), NOW).unwrap();
        }
        ca.adopt(version, &contents, NOW).unwrap();
    }
    assert_eq!(contents.roots.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!((ca.version(), ca.roots().len()), (5, 1));
    let leaf = ca.issue(&request(), NOW).unwrap();
    assert_eq!(ca.root_above(&leaf.name.issuer).unwrap().generation, 2);
}

#[test]
fn intermediates_of_a_step_that_was_not_finished_are_removed() {
    let dir = replica();
    let folder = generation::folder(dir.path(), 2);
    let (left, root) = (
        RootContents::create(2, TERMS.0, TERMS.1, NOW - DAY).unwrap(),
        RootContents::create(2, TERMS.0, TERMS.1, NOW).unwrap(),
    );
    left.write(&folder).unwrap();
    root.write(&folder).unwrap();
    assert!(RootContents::read(&folder).unwrap() == root);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
}
