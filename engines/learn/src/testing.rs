//! What the tests that compare with stored vectors share.

use serde::de::DeserializeOwned;

/// Stored vectors; `tests/vectors/generate.py` writes them.
pub(crate) fn vectors<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

/// Checks that two numbers differ by no more than `tolerance`, in units of the larger one when that is beyond 1.
#[track_caller]
pub(crate) fn assert_near(ours: f32, theirs: f32, tolerance: f32, what: &str) {
    let unit = ours.abs().max(theirs.abs()).max(1.0);
    let near = (ours - theirs).abs() <= tolerance * unit;
    assert!(near, "{what}: {ours} against {theirs}");
}

/// Checks two vectors against each other, component by component.
#[track_caller]
pub(crate) fn assert_all_near(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert_near(*a, *b, tolerance, &format!("{what} {at}"));
    }
}
