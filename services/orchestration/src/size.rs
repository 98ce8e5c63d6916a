//! How large the state of a run may become. What a run has learned is kept in checkpoints, so that a run which could
//! not leave one is refused before it begins.

use tars_learn::{Part, Size, hyper::ParamViolation};
use tars_runtime::blobs;

const MIB: u64 = 1 << 20;
/// What a checkpoint has beside its learners: the worlds of all copies, what the rules of other agents remember, and
/// evaluations.
const ROOM: u64 = 4 * MIB;
/// What the learners of a run may come to in a checkpoint.
const MOST_SAVED: u64 = blobs::LARGEST as u64 - ROOM;
/// What their buffers may come to, which are not saved.
const MOST_BUFFERED: u64 = 256 * MIB;

/// Refuses learners whose state could not be stored, or that take more memory than one run may, and names the
/// hyperparameter that they grow with.
pub(crate) fn check(learners: &[(&str, Size)]) -> Result<(), Vec<ParamViolation>> {
    let saved = learners
        .iter()
        .map(|(agent, size)| (*agent, size.largest_saved(), size.checkpoint()));
    let buffers = learners
        .iter()
        .map(|(agent, size)| (*agent, size.buffers, size.buffers.bytes));
    let wrong: Vec<ParamViolation> = [
        exceeds("the state that a checkpoint stores", MOST_SAVED, saved),
        exceeds("the buffers of its minibatches", MOST_BUFFERED, buffers),
    ]
    .into_iter()
    .flatten()
    .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong),
    }
}

/// The largest part of learners that together come to more than they may.
fn exceeds<'a>(
    what: &str,
    most: u64,
    learners: impl Iterator<Item = (&'a str, Part, u64)> + Clone,
) -> Option<ParamViolation> {
    let total: u64 = learners.clone().map(|(.., bytes)| bytes).sum();
    let (agent, part, _) = learners.max_by_key(|(_, part, _)| part.bytes)?;
    let lower = match part.parameter {
        "buffer_size" => "lower it, or train for fewer steps",
        _ => "lower it",
    };
    (total > most).then(|| ParamViolation {
        name: part.parameter.to_owned(),
        problem: format!(
            "is too large: {what} would come to {} MiB, of which {} are those of {agent} that grow with it, and {} \
             are allowed: {lower}",
            total.div_ceil(MIB),
            part.bytes.div_ceil(MIB),
            most / MIB,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_learn::{
        Extent, algorithm,
        hyper::{Value, Values},
    };
    use tars_worlds::make_world;

    fn size(algorithm: &str, agent: usize, values: &[(&str, f64)], steps: u64) -> Size {
        let space = make_world("mesh").unwrap().spec().agents[agent].clone();
        let owned = |(name, n): &(&str, f64)| ((*name).to_owned(), Value::Number(*n));
        let values: Values = values.iter().map(owned).collect();
        let found = algorithm::find(algorithm).unwrap();
        let extent = Extent {
            copies: found.copies,
            steps,
        };
        found.size(&space, &values, extent).unwrap()
    }

    fn problem(learners: &[(&str, Size)]) -> (String, String) {
        let wrong = check(learners).unwrap_err();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        (wrong[0].name.clone(), wrong[0].problem.clone())
    }

    #[test]
    fn the_agents_of_the_mesh_fit_together_by_default_for_as_long_as_a_run_may_be() {
        let all = [
            ("dqn", "policy"),
            ("a2c", "consensus"),
            ("ppo", "ethical"),
            ("ddpg", "resource"),
        ];
        let sizes: Vec<(&str, Size)> = all
            .iter()
            .enumerate()
            .map(|(at, (algorithm, agent))| (*agent, size(algorithm, at, &[], 10_000_000)))
            .collect();
        assert_eq!(check(&sizes), Ok(()));
    }

    #[test]
    fn what_could_not_be_stored_is_refused_by_the_parameter_that_it_grows_with() {
        let large = |steps| size("dqn", 0, &[("buffer_size", 1e6)], steps);
        assert_eq!(
            check(&[("policy", large(100_000))]),
            Ok(()),
            "it is never filled"
        );
        let (name, why) = problem(&[("policy", large(1_000_000))]);
        assert_eq!(name, "buffer_size");
        for part in ["policy", "266 MiB", " 60 are allowed", "fewer steps"] {
            assert!(why.contains(part), "{part}: {why}");
        }
        // Rollouts are as long in a short run.
        let long = size("ppo", 2, &[("n_steps", 1e4)], 1);
        let (name, why) = problem(&[("ethical", long); 10]);
        assert_eq!(name, "n_steps");
        assert!(!why.contains("fewer steps"), "{why}");
    }

    #[test]
    fn learners_that_fit_alone_may_not_fit_together() {
        let half = size("dqn", 0, &[("buffer_size", 130_000.0)], 1_000_000);
        let other = size("ddpg", 3, &[("buffer_size", 180_000.0)], 1_000_000);
        assert_eq!(check(&[("policy", half)]), Ok(()));
        assert_eq!(check(&[("resource", other)]), Ok(()));
        let (name, why) = problem(&[("policy", half), ("resource", other)]);
        assert!(name == "buffer_size" && why.contains("policy"), "{why}");
    }

    #[test]
    fn buffers_that_are_not_saved_are_bounded_too() {
        let wide = [("n_steps", 1e4), ("hidden_dim", 512.0)];
        let a2c = size("a2c", 1, &wide, 20_000);
        assert!(a2c.checkpoint() < MOST_SAVED);
        let (name, why) = problem(&[("consensus", a2c)]);
        assert_eq!(name, "n_steps");
        assert!(
            why.contains("buffers") && why.contains("256 are allowed"),
            "{why}"
        );
        let ppo = size(
            "ppo",
            1,
            &[
                ("n_steps", 1e4),
                ("hidden_dim", 512.0),
                ("batch_size", 2048.0),
            ],
            20_000,
        );
        assert_eq!(
            check(&[("ethical", ppo)]),
            Ok(()),
            "its minibatches are small"
        );
    }
}
