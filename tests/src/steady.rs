//! Whether a process that does the same for long holds more and more.

use crate::{
    h2spec::Conformance,
    memory::{BOUND_MIB_PER_HOUR, Growth},
};
use serde_json::{Value, json};
use std::fmt;

/// What the mean of the last quarter may exceed that of the second by: descriptors and tasks of the connections and
/// calls that happen to be open, and the MiB of an allocator's fragments.
const MORE: f64 = 0.1;

/// What is held at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Resident memory.
    pub memory_mib: f64,
    /// Open file descriptors.
    pub descriptors: f64,
    /// Tasks of the runtime.
    pub tasks: f64,
}

/// A reading of what is held.
type Reading = fn(&Held) -> f64;

const READINGS: [(&str, Reading); 3] = [
    ("memory_mib", |held| held.memory_mib),
    ("descriptors", |held| held.descriptors),
    ("tasks", |held| held.tasks),
];

/// One reading over the time of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// What was read.
    pub name: &'static str,
    /// The means of the second and of the last quarter; `None` where there are too few samples.
    means: Option<(f64, f64)>,
}

impl Course {
    /// Every reading of these samples.
    pub fn of(all: &[Held]) -> Vec<Self> {
        let course = |(name, of): (&'static str, Reading)| Self {
            name,
            means: quarters(all, of),
        };
        READINGS.map(course).to_vec()
    }

    /// Whether it did not grow.
    fn is_flat(&self) -> Option<bool> {
        self.means
            .map(|(second, last)| last <= second * (1.0 + MORE))
    }

    /// All of it. `is_flat` is null where there are too few samples.
    pub fn report(&self) -> Value {
        json!({
            "second_quarter": self.means.map(|m| m.0),
            "last_quarter": self.means.map(|m| m.1),
            "is_flat": self.is_flat(),
        })
    }
}

fn quarters(all: &[Held], of: Reading) -> Option<(f64, f64)> {
    let quarter = all.len() / 4;
    let mean = |part: &[Held]| part.iter().map(of).sum::<f64>() / part.len() as f64;
    let (second, last) = (all.get(quarter..2 * quarter)?, all.get(3 * quarter..)?);
    (quarter > 0).then(|| (mean(second), mean(last)))
}

/// What a run has shown.
#[derive(Debug, Clone)]
pub struct Run {
    /// Calls that failed.
    pub failed: u64,
    /// What h2spec said.
    pub conformance: Conformance,
    /// What was held.
    pub courses: Vec<Course>,
    /// The slope of memory.
    pub memory: Growth,
    /// It was as long as it takes to tell.
    pub is_full: bool,
}

/// Why a run has not shown what it was made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// So many calls failed.
    Calls(u64),
    /// So many cases of h2spec failed that may not.
    Conformance(usize),
    /// Memory grew by so many MiB an hour.
    Memory(f64),
    /// More of this was held at the end.
    Grew(&'static str),
    /// There are too few samples of this to tell.
    Unknown(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls(calls) => write!(f, "{calls} calls failed"),
            Self::Conformance(cases) => write!(f, "{cases} cases of h2spec failed"),
            Self::Memory(slope) => write!(
                f,
                "memory grows by {slope:.1} MiB an hour, and may by {BOUND_MIB_PER_HOUR}"
            ),
            Self::Grew(name) => write!(f, "{name} grew"),
            Self::Unknown(name) => write!(f, "the samples are too few to tell whether {name} grew"),
        }
    }
}

impl Run {
    /// # Errors
    ///
    /// Everything that failed or grew and, in a run of full length, that could not be judged. h2spec may be left out.
    pub fn judge(&self) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        if self.failed > 0 {
            faults.push(Fault::Calls(self.failed));
        }
        let cases = self.conformance.unexpected().len();
        if cases > 0 {
            faults.push(Fault::Conformance(cases));
        }
        match self.memory {
            Growth::Grows(slope) => faults.push(Fault::Memory(slope)),
            Growth::Unknown if self.is_full => faults.push(Fault::Unknown("memory")),
            Growth::Unknown | Growth::Flat => {}
        }
        faults.extend(
            self.courses
                .iter()
                .filter_map(|course| match course.is_flat() {
                    Some(false) => Some(Fault::Grew(course.name)),
                    None if self.is_full => Some(Fault::Unknown(course.name)),
                    None | Some(true) => None,
                }),
        );
        match faults.is_empty() {
            true => Ok(()),
            false => Err(faults),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(n: f64) -> Held {
        Held {
            memory_mib: 100.0,
            descriptors: 50.0,
            tasks: n,
        }
    }

    /// A run in which tasks are as many as `tasks` tells for each of its samples.
    fn run(samples: usize, tasks: impl Fn(usize) -> f64) -> Run {
        let all: Vec<_> = (0..samples).map(|n| held(tasks(n))).collect();
        Run {
            failed: 0,
            conformance: Conformance::LeftOut,
            courses: Course::of(&all),
            memory: Growth::Flat,
            is_full: true,
        }
    }

    #[test]
    fn a_run_that_holds_the_same_at_its_end_is_good_also_without_h2spec() {
        let noisy = run(360, |n| 40.0 + (n % 5) as f64);
        assert_eq!(noisy.judge(), Ok(()));
        // What fills at first is no growth.
        assert_eq!(run(360, |n| 40.0_f64.min(n as f64)).judge(), Ok(()));
        assert_eq!(
            run(360, |n| 40.0 + 40.0 * f64::from(u8::from(n == 359))).judge(),
            Ok(())
        );
    }

    #[test]
    fn what_is_held_more_of_at_the_end_has_grown() {
        let leak = run(360, |n| 40.0 + n as f64 / 20.0);
        assert_eq!(leak.judge(), Err(vec![Fault::Grew("tasks")]));
        let short = Run {
            is_full: false,
            ..leak
        };
        assert_eq!(
            short.judge(),
            Err(vec![Fault::Grew("tasks")]),
            "of any length"
        );
        let all: Vec<_> = (0..360)
            .map(|n| Held {
                memory_mib: n as f64,
                ..held(1.0)
            })
            .collect();
        let courses = Course::of(&all);
        assert_eq!(courses[0].report()["is_flat"], false);
        assert_eq!(courses[1].report()["is_flat"], true);
    }

    #[test]
    fn the_slope_of_memory_is_judged_by_itself() {
        let slope = |memory, is_full| {
            Run {
                memory,
                is_full,
                ..run(360, |_| 40.0)
            }
            .judge()
        };
        let grows = Err(vec![Fault::Memory(9.5)]);
        assert_eq!(slope(Growth::Grows(9.5), true), grows);
        assert_eq!(slope(Growth::Grows(9.5), false), grows);
        assert_eq!(
            slope(Growth::Unknown, true),
            Err(vec![Fault::Unknown("memory")])
        );
        assert_eq!(slope(Growth::Unknown, false), Ok(()));
    }

    #[test]
    fn too_few_samples_fail_a_full_run_and_no_other() {
        for samples in [0, 3] {
            let few = run(samples, |_| 40.0);
            assert!(few.courses[0].report()["is_flat"].is_null());
            let names = ["memory_mib", "descriptors", "tasks"];
            assert_eq!(few.judge(), Err(names.map(Fault::Unknown).to_vec()));
            let short = Run {
                is_full: false,
                ..few
            };
            assert_eq!(short.judge(), Ok(()));
        }
        assert_eq!(run(4, |_| 40.0).judge(), Ok(()));
    }

    #[test]
    fn calls_and_cases_that_fail_are_told_beside_what_grew() {
        let summary = "2 tests, 0 passed, 0 skipped, 2 failed";
        let report = "<testcase package=\"a\" classname=\"b\"><failure/><testcase package=\"a\" classname=\"c\"><error/>";
        let bad = Run {
            failed: 3,
            conformance: Conformance::read(summary, report).unwrap(),
            memory: Growth::Grows(8.1),
            ..run(8, |n| n as f64)
        };
        let faults = bad.judge().unwrap_err();
        let expected = [
            Fault::Calls(3),
            Fault::Conformance(2),
            Fault::Memory(8.1),
            Fault::Grew("tasks"),
        ];
        assert_eq!(faults, expected);
        let text = faults[2].to_string();
        assert_eq!(text, "memory grows by 8.1 MiB an hour, and may by 8");
    }
}
