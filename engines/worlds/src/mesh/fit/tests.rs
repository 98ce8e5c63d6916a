//! Fits against a simulation of single calls, which is as close to a real mesh as arithmetic gets: Poisson
//! arrivals, exponential service times, one first-come-first-served queue for the replicas of each service.

use super::*;
use crate::{mesh::Clients, world::Generator};
use rand::{RngExt, SeedableRng};
use rand_distr::Exp1;

const BOUNDS: [f64; 20] = [
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.5, 5.0,
];

/// A mesh of single calls.
struct Simulation {
    truth: Calibration,
    replicas: Vec<usize>,
    /// Every so many seconds all services stand still for some: what the model does not know.
    stall: Option<(f64, f64)>,
    rng: Generator,
}

struct Call {
    tenant: usize,
    arrived: f64,
    /// When it reaches the next service.
    at: f64,
}

impl Simulation {
    fn new(truth: Calibration, replicas: &[usize], seed: u64) -> Self {
        let rng = Generator::seed_from_u64(seed);
        Self {
            truth,
            replicas: replicas.to_vec(),
            stall: None,
            rng,
        }
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        mean * self.rng.sample::<f64, _>(Exp1)
    }

    /// The calls of a window in the order of their arrival.
    fn arrivals(&mut self, seconds: f64) -> Vec<Call> {
        let mut calls = Vec::new();
        for tenant in 0..self.truth.tenants.len() {
            let mut at = 0.0;
            loop {
                at += self.exponential(1.0 / self.truth.tenants[tenant].rate);
                if at > seconds {
                    break;
                }
                calls.push(Call {
                    tenant,
                    arrived: at,
                    at,
                });
            }
        }
        calls
    }

    /// Lets calls through a service: sets when they leave it, and measures.
    fn serve(&mut self, service: usize, calls: &mut [&mut Call], window: &mut Window) {
        calls.sort_by(|a, b| a.at.total_cmp(&b.at));
        let mut free = vec![0.0f64; self.replicas[service]];
        for call in calls {
            let work = self.truth.tenants[call.tenant].work;
            let time = self.exponential(self.truth.services[service].service_time_s * work);
            let first = free.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
            let start = self.after_stall(first.max(call.at));
            *first = start + time;
            call.at = *first;
            let measured = &mut window.services[service];
            measured.calls += 1.0;
            measured.time_s += time;
            measured.time_squared += time * time;
            window.tenants[call.tenant].service_time_s += time;
        }
    }

    fn after_stall(&self, at: f64) -> f64 {
        match self.stall {
            Some((every, lasts)) if at % every < lasts => at - at % every + lasts,
            _ => at,
        }
    }

    fn window(&mut self, seconds: f64) -> Window {
        let mut window = Window {
            seconds,
            tenants: vec![
                TenantWindow {
                    calls: vec![0.0; self.truth.services.len() - 1],
                    ..TenantWindow::default()
                };
                self.truth.tenants.len()
            ],
            services: vec![ServiceWindow::default(); self.truth.services.len()],
            latencies: Histogram::new(BOUNDS.to_vec(), vec![0.0; 21]).unwrap(),
            approvals: Approvals::default(),
        };
        for (measured, replicas) in window.services.iter_mut().zip(&self.replicas) {
            measured.replicas = *replicas as f64;
        }
        let mut calls = self.arrivals(seconds);
        self.serve(0, &mut calls.iter_mut().collect::<Vec<_>>(), &mut window);
        let mut by_service: Vec<Vec<&mut Call>> =
            self.replicas.iter().map(|_| Vec::new()).collect();
        for call in &mut calls {
            let tenant = &mut window.tenants[call.tenant];
            (tenant.attempts, tenant.admitted) = (tenant.attempts + 1.0, tenant.admitted + 1.0);
            let mut draw: f64 = self.rng.random();
            let mix = &self.truth.tenants[call.tenant].mix;
            let next = mix.iter().position(|share| {
                draw -= share;
                draw < 0.0
            });
            let next = next.unwrap_or(mix.len() - 1);
            tenant.calls[next] += 1.0;
            by_service[next + 1].push(call);
        }
        for (service, mut calls) in by_service.into_iter().enumerate().skip(1) {
            self.serve(service, &mut calls, &mut window);
        }
        let mut counts = vec![0.0; 21];
        for call in &calls {
            let latency = call.at - call.arrived;
            counts[BOUNDS
                .iter()
                .position(|bound| latency <= *bound)
                .unwrap_or(20)] += 1.0;
        }
        window.latencies = Histogram::new(BOUNDS.to_vec(), counts).unwrap();
        window
    }
}

/// A mesh that differs from the prior in everything that is fitted.
fn truth() -> Calibration {
    let mut truth = Calibration::shipped();
    for (at, factor) in [1.3, 0.7, 0.8, 1.5].into_iter().enumerate() {
        truth.tenants[at].rate *= factor;
    }
    truth.tenants[2].work = 2.6;
    truth.tenants[0].mix = vec![0.3, 0.3, 0.4];
    for (at, factor) in [1.2, 0.7, 1.2, 0.8].into_iter().enumerate() {
        truth.services[at].service_time_s *= factor;
    }
    truth
}

const REPLICAS: [usize; 4] = [5, 4, 9, 5];

fn windows(simulation: &mut Simulation, count: usize, seconds: f64) -> Vec<Window> {
    (0..count).map(|_| simulation.window(seconds)).collect()
}

#[test]
fn a_fit_finds_the_parameters_of_a_mesh_that_differs_from_the_prior() {
    let windows = windows(&mut Simulation::new(truth(), &REPLICAS, 1), 4, 120.0);
    let (fitted, verdict) = calibrate(&Calibration::shipped(), &windows).unwrap();
    assert_eq!(fitted.check(), Ok(()));
    for (ours, theirs) in fitted.tenants.iter().zip(&truth().tenants) {
        assert!(
            (ours.rate / theirs.rate - 1.0).abs() < 0.08,
            "{ours:?} {theirs:?}"
        );
        assert!(
            (ours.mix[0] - theirs.mix[0]).abs() < 0.04,
            "{ours:?} {theirs:?}"
        );
    }
    let ratio = fitted.tenants[2].work / fitted.tenants[1].work;
    assert!((ratio / 2.6 - 1.0).abs() < 0.1, "{ratio}");
    for (ours, theirs) in fitted.services.iter().zip(&truth().services) {
        let time = |c: &Calibration, s: &Service| s.service_time_s * c.tenants[0].work;
        let (ours, theirs) = (time(&fitted, ours), time(&truth(), theirs));
        assert!((ours / theirs - 1.0).abs() < 0.08, "{ours} {theirs}");
    }
    let Verdict::Calibrated { errors, calls } = verdict else {
        panic!("{verdict:?}")
    };
    assert!(errors.len() == 3 && calls > 40_000.0);
}

#[test]
fn a_mesh_that_stands_still_now_and_then_is_not_what_the_model_describes() {
    let mut simulation = Simulation::new(truth(), &REPLICAS, 1);
    simulation.stall = Some((20.0, 3.0));
    let windows = windows(&mut simulation, 3, 120.0);
    let (_, verdict) = calibrate(&Calibration::shipped(), &windows).unwrap();
    let refused = |reason| matches!(reason, Reason::TailError(_) | Reason::MedianError(_));
    assert!(
        matches!(verdict, Verdict::Uncalibrated { reason } if refused(reason)),
        "{verdict:?}"
    );
}

#[test]
fn load_that_changes_between_windows_is_not_predicted() {
    let mut simulation = Simulation::new(truth(), &REPLICAS, 1);
    let mut all = windows(&mut simulation, 2, 60.0);
    for tenant in &mut simulation.truth.tenants {
        tenant.rate *= 0.4;
    }
    all.extend(windows(&mut simulation, 1, 60.0));
    let (_, verdict) = calibrate(&Calibration::shipped(), &all).unwrap();
    assert!(
        matches!(verdict, Verdict::Uncalibrated { .. }),
        "{verdict:?}"
    );
}

#[test]
fn too_little_data_is_no_calibration() {
    let mut simulation = Simulation::new(truth(), &REPLICAS, 1);
    let prior = Calibration::shipped();
    for (count, seconds) in [(0, 1.0), (1, 120.0), (2, 2.0)] {
        let windows = windows(&mut simulation, count, seconds);
        let (_, verdict) = calibrate(&prior, &windows).unwrap();
        let Verdict::Uncalibrated { reason } = verdict else {
            panic!("{verdict:?}")
        };
        assert!(matches!(reason, Reason::TooLittleData { .. }), "{reason}");
    }
}

#[test]
fn without_measurements_the_prior_stays() {
    let prior = Calibration::shipped();
    let (fitted, _) = calibrate(&prior, &[]).unwrap();
    for (ours, theirs) in fitted.tenants.iter().zip(&prior.tenants) {
        assert!((ours.rate - theirs.rate).abs() < 1e-9 && (ours.work - theirs.work).abs() < 1e-9);
    }
    for (ours, theirs) in fitted.services.iter().zip(&prior.services) {
        assert!((ours.service_time_s - theirs.service_time_s).abs() < 1e-9);
        assert!((ours.service_cv2 - theirs.service_cv2).abs() < 1e-9);
    }
    assert!((fitted.changes.answer_sigma - prior.changes.answer_sigma).abs() < 1e-9);
}

#[test]
fn approvals_retries_and_start_ups_are_fitted() {
    let prior = Calibration::shipped();
    let mut window = Simulation::new(truth(), &REPLICAS, 1).window(60.0);
    window.approvals = Approvals {
        proposals: 3_000.0,
        bad: 900.0,
        asked: 21_000.0,
        good_answers: 7_350.0,
        good_approvals: 5_880.0,
        bad_answers: 3_150.0,
        bad_approvals: 945.0,
        log_time: 10_500.0 * 3.5,
        log_time_squared: 10_500.0 * (3.5 * 3.5 + 0.25),
    };
    window.tenants[0].failures = 10_000.0;
    window.tenants[0].retries = 4_000.0;
    window.services[1].start_ups = 100.0;
    window.services[1].start_up_s = 4_000.0;
    let (fitted, _) = calibrate(&prior, &[window]).unwrap();
    let changes = &fitted.changes;
    for (ours, theirs) in [
        (changes.bad, 0.3),
        (changes.available, 0.5),
        (changes.false_alarms, 0.2),
        (changes.spots, 0.7),
        (changes.answer_s.ln(), 3.5),
        (changes.answer_sigma, 0.5),
        (fitted.clients.patient.retries, 0.4),
        (fitted.services[1].start_up_s, 40.0),
    ] {
        assert!(
            (ours / theirs - 1.0).abs() < 0.04,
            "{ours} against {theirs}"
        );
    }
    let Clients { strict, .. } = &fitted.clients;
    assert_eq!(*strict, prior.clients.strict);
}

type Spoil = fn(&mut Window);

#[test]
fn windows_that_nothing_can_measure_are_refused() {
    let prior = Calibration::shipped();
    let good = Simulation::new(truth(), &REPLICAS, 1).window(5.0);
    let spoils: [(Spoil, BadWindow); 6] = [
        (|w| w.seconds = 0.0, BadWindow::Number),
        (|w| w.tenants[0].attempts = f64::NAN, BadWindow::Number),
        (|w| w.services[1].time_s = -1.0, BadWindow::Number),
        (|w| w.approvals.log_time = f64::INFINITY, BadWindow::Number),
        (|w| w.tenants.truncate(2), BadWindow::Shape),
        (|w| w.tenants[1].calls.clear(), BadWindow::Shape),
    ];
    for (spoil, refused) in spoils {
        let mut window = good.clone();
        spoil(&mut window);
        assert_eq!(calibrate(&prior, &[window]).map(drop), Err(refused));
    }
    let histogram =
        |bounds: &[f64], counts: &[f64]| Histogram::new(bounds.to_vec(), counts.to_vec()).map(drop);
    assert_eq!(histogram(&[], &[1.0]), Err(BadWindow::Bounds));
    assert_eq!(histogram(&[0.2, 0.1], &[1.0; 3]), Err(BadWindow::Bounds));
    assert_eq!(histogram(&[0.1, 0.2], &[1.0; 2]), Err(BadWindow::Shape));
    assert_eq!(histogram(&[0.1], &[1.0, -1.0]), Err(BadWindow::Number));
}

#[test]
fn quantiles_of_a_histogram_spread_evenly_within_a_bucket() {
    let histogram = Histogram::new(vec![1.0, 2.0], vec![10.0, 80.0, 10.0]).unwrap();
    assert_eq!(histogram.quantile(0.5), 1.5);
    assert_eq!(histogram.quantile(0.05), 0.5);
    assert_eq!(histogram.quantile(0.99), 2.0);
    assert!(
        Histogram::new(vec![1.0], vec![0.0; 2])
            .unwrap()
            .quantile(0.5)
            .is_nan()
    );
}

/// The fluid model against single calls, where it has to be right by itself: one service near its capacity.
#[test]
fn the_model_predicts_the_latencies_of_an_m_m_c_queue() {
    let mut truth = Calibration::shipped();
    truth.tenants.truncate(1);
    truth.tenants[0].entitlement = 1.0;
    truth.tenants[0].work = 1.0;
    let mut simulation = Simulation::new(truth.clone(), &[3, 3, 2, 1], 2);
    simulation.truth.tenants[0].rate = 60.0;
    truth.tenants[0].rate = 60.0;
    let window = simulation.window(2_000.0);
    let prediction = predict(&truth, &window);
    let errors = Errors::of(&prediction, &window);
    assert!(
        errors.all().into_iter().all(|error| error < 0.12),
        "{errors:?}"
    );
}
