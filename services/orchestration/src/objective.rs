//! Whether the live mesh keeps its latency objective, as far as an agent sees it.
//!
//! At most one call in [`MOST_SLOW`] may be slower than the objective. An agent sees that as the share of slow calls,
//! or as their 95th percentile in units of the objective. What is observed by tenant or service has no share of calls
//! in it, so that an agent that sees nothing else is not judged.

use tars_worlds::AgentSpace;

/// One call in this many may be slow, those that failed by then included.
const MOST_SLOW: f32 = 20.0;

/// Where an agent sees it, and from what number on the objective is breached.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Objective {
    at: usize,
    most: f32,
}

impl Objective {
    /// The objective by what an agent observes; `None` where it sees neither component.
    pub(crate) fn of(space: &AgentSpace) -> Option<Self> {
        let seen = |component: &str, most: f32| {
            let at = space.position(component)?;
            Some(Self { at, most })
        };
        seen("slow", 1.0 / MOST_SLOW).or_else(|| seen("latency_p95", 1.0))
    }

    /// Whether more calls than may be were slow when this was observed.
    pub(crate) fn is_breached(&self, observation: &[f32]) -> bool {
        observation
            .get(self.at)
            .is_some_and(|seen| *seen > self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_worlds::make_world;

    fn objective(world: &str, agent: usize) -> (AgentSpace, Option<Objective>) {
        let space = make_world(world).unwrap().spec().agents[agent].clone();
        let objective = Objective::of(&space);
        (space, objective)
    }

    #[test]
    fn it_is_seen_in_slow_calls_or_in_their_percentile() {
        for (agent, component, most) in [
            (0, "latency_p95", 1.0),
            (1, "slow", 0.05),
            (3, "slow", 0.05),
        ] {
            let (space, objective) = objective("mesh", agent);
            let objective = objective.unwrap();
            let mut seen = vec![0.0; space.observation.len()];
            assert!(!objective.is_breached(&seen));
            let at = space.position(component).unwrap();
            seen[at] = most;
            assert!(!objective.is_breached(&seen), "as many as may be");
            seen[at] = most * 1.01;
            assert!(objective.is_breached(&seen));
            seen.fill(space.observation[at].high);
            seen[at] = 0.0;
            assert!(!objective.is_breached(&seen), "nothing else counts");
            assert!(
                !objective.is_breached(&seen[..at]),
                "an observation that is cut"
            );
        }
    }

    #[test]
    fn an_agent_that_does_not_see_it_has_none() {
        assert_eq!(objective("mesh", 2).1, None, "latencies by tenant");
        assert_eq!(objective("cartpole", 0).1, None);
    }
}
