//! Waiting times of a service with several replicas and one queue.
//!
//! In the long run the mean wait is that of Allen and Cunneen's approximation for G/G/c (Allen, "Probability,
//! Statistics, and Queueing Theory", 1990), which is exact for M/M/c and, with one replica, for M/G/1. An
//! interval is too short for the long run of a busy service, so the wait approaches it: it rises no faster
//! than the queue of a critically loaded service does (reflected Brownian motion), and falls no faster than
//! the idle capacity allows.

/// Utilisation up to which the long run is considered; above, the queue of the fluid model grows instead.
const MAX_UTILISATION: f64 = 0.995;

/// The chance that an arriving call must wait in M/M/c with `load` erlangs (Erlang C); 1 where the servers
/// are overloaded.
pub fn erlang_c(servers: u32, load: f64) -> f64 {
    let c = f64::from(servers);
    if load >= c {
        return 1.0;
    }
    if load <= 0.0 {
        return 0.0;
    }
    // The inverse of Erlang B by its recursion, without factorials.
    let mut inverse_b = 1.0;
    for n in 1..=servers {
        inverse_b = 1.0 + inverse_b * f64::from(n) / load;
    }
    let b = 1.0 / inverse_b;
    b / (1.0 - load / c * (1.0 - b))
}

/// What a service is offered in an interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) servers: u32,
    /// Arrivals per second.
    pub(crate) rate: f64,
    /// The mean service time in s.
    pub(crate) service_time: f64,
    pub(crate) service_cv2: f64,
    pub(crate) arrival_cv2: f64,
}

/// The wait of a call that finds no queue of the fluid model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wait {
    /// The mean in s.
    pub(crate) mean: f64,
    pub(crate) variance: f64,
}

impl Load {
    /// Calls per second that all servers complete.
    fn capacity(&self) -> f64 {
        f64::from(self.servers) / self.service_time
    }

    pub(crate) fn utilisation(&self) -> f64 {
        self.rate / self.capacity()
    }

    /// The chance of waiting, and the mean wait in the long run.
    fn long_run(&self) -> (f64, f64) {
        let utilisation = self.utilisation().min(MAX_UTILISATION);
        let delayed = erlang_c(self.servers, utilisation * f64::from(self.servers));
        let variability = (self.arrival_cv2 + self.service_cv2) / 2.0;
        let spare = self.capacity() * (1.0 - utilisation);
        (delayed, variability * delayed / spare)
    }

    /// The wait after an interval of this load that began with a mean wait of `before`.
    pub(crate) fn wait(&self, before: f64, interval: f64) -> Wait {
        let (delayed, target) = self.long_run();
        let mean = if before <= target {
            target.min((before * before + self.diffusion() * interval).sqrt())
        } else {
            let spare = 1.0 - self.utilisation().min(MAX_UTILISATION);
            target.max(before - spare * interval)
        };
        Wait {
            mean,
            variance: spread(mean, delayed),
        }
    }

    /// The rate at which the squared mean wait grows from an empty queue at full load, in s²/s.
    fn diffusion(&self) -> f64 {
        let capacity = self.capacity();
        let departing = self.rate.min(capacity);
        let variance = self.rate * self.arrival_cv2 + departing * self.service_cv2;
        std::f64::consts::FRAC_2_PI * variance / (capacity * capacity)
    }
}

/// The variance of a wait that is zero for those who are not delayed, and exponential for the others.
fn spread(mean: f64, delayed: f64) -> f64 {
    if delayed <= 0.0 {
        return 0.0;
    }
    mean * mean * (2.0 / delayed - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Erlang C by its textbook sum.
    fn by_sum(servers: u32, load: f64) -> f64 {
        let term = |n: u32| (1..=n).fold(1.0, |all, k| all * load / f64::from(k));
        let last = term(servers) * f64::from(servers) / (f64::from(servers) - load);
        last / ((0..servers).map(term).sum::<f64>() + last)
    }

    fn load(servers: u32, rate: f64) -> Load {
        Load {
            servers,
            rate,
            service_time: 0.1,
            service_cv2: 1.0,
            arrival_cv2: 1.0,
        }
    }

    fn settled(load: Load) -> Wait {
        (0..10_000).fold(Wait::default(), |wait, _| load.wait(wait.mean, 5.0))
    }

    #[test]
    fn erlang_c_is_its_sum_and_has_its_limits() {
        for servers in [1, 2, 5, 20] {
            for share in [0.1, 0.5, 0.9, 0.99] {
                let load = share * f64::from(servers);
                let (ours, sum) = (erlang_c(servers, load), by_sum(servers, load));
                assert!((ours / sum - 1.0).abs() < 1e-9, "{servers} {share}");
            }
            assert_eq!(erlang_c(servers, 0.0), 0.0);
            assert_eq!(erlang_c(servers, f64::from(servers)), 1.0);
        }
        assert!((erlang_c(1, 0.7) - 0.7).abs() < 1e-12);
    }

    #[test]
    fn the_settled_wait_is_that_of_m_m_c_and_m_g_1() {
        let m_m_3 = settled(load(3, 27.0));
        let expected = by_sum(3, 2.7) / (30.0 - 27.0);
        assert!((m_m_3.mean / expected - 1.0).abs() < 1e-9);
        let m_d_1 = settled(Load {
            service_cv2: 0.0,
            ..load(1, 8.0)
        });
        let pollaczek_khinchine = 8.0 * 0.01 / (2.0 * 0.2);
        assert!((m_d_1.mean / pollaczek_khinchine - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_spread_of_an_m_m_1_wait_is_exact() {
        // W is 0 with 1 - ρ, and exponential with rate μ - λ otherwise.
        let wait = settled(load(1, 8.0));
        let second: f64 = 0.8 * 2.0 / (2.0 * 2.0);
        assert!((wait.variance - (second - 0.4 * 0.4)).abs() < 1e-9);
    }

    #[test]
    fn a_wait_neither_jumps_up_nor_down() {
        let busy = load(1, 9.9);
        let (first, last) = (busy.wait(0.0, 5.0), settled(busy));
        assert!(
            first.mean > 0.1 && first.mean < last.mean / 5.0,
            "{first:?} {last:?}"
        );
        let relieved = load(1, 5.0).wait(last.mean, 5.0);
        assert!((last.mean - relieved.mean - 2.5).abs() < 1e-9);
    }

    #[test]
    fn an_overloaded_service_has_a_finite_wait_here() {
        let wait = settled(load(2, 50.0));
        assert!(wait.mean.is_finite() && wait.mean > 1.0);
    }
}
