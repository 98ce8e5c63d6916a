//! Which parameters a mesh can have.

use super::{
    Calibration, Changes, Clients, MAX_APPROVERS, MAX_REPLICAS, MAX_SERVICES, MAX_TENANTS, Rewards,
    Service, Tenant, Traffic,
};
use crate::mesh::spread::Spread;

/// A parameter that no mesh has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("calibration: {0}")]
pub struct BadCalibration(pub String);

impl Calibration {
    /// Checks every parameter.
    ///
    /// # Errors
    ///
    /// The first parameter that no mesh has.
    pub fn check(&self) -> Result<(), BadCalibration> {
        self.check_counts()?;
        for tenant in &self.tenants {
            self.check_tenant(tenant)?;
        }
        for service in &self.services {
            check_service(service)?;
        }
        let entitled: f64 = self.tenants.iter().map(|tenant| tenant.entitlement).sum();
        require((entitled - 1.0).abs() < 1e-6, || {
            "the entitlements do not sum to 1".into()
        })?;
        positive("interval_s", self.interval_s)?;
        positive("bucket_s", self.bucket_s)?;
        positive("objective_s", self.objective_s)?;
        probability("disorder", self.disorder)?;
        if let Some(spread) = &self.spread {
            spread.check()?;
        }
        self.traffic.check()?;
        self.clients.check()?;
        self.rewards.check()?;
        self.changes.check()
    }

    fn check_counts(&self) -> Result<(), BadCalibration> {
        let (tenants, services) = (self.tenants.len(), self.services.len());
        require((1..=MAX_TENANTS).contains(&tenants), || {
            format!("{tenants} tenants; 1 to {MAX_TENANTS} are supported")
        })?;
        require((1..=MAX_SERVICES).contains(&services), || {
            format!("{services} services; 1 to {MAX_SERVICES} are supported")
        })?;
        require(self.max_steps > 0, || "max_steps is 0".into())
    }

    fn check_tenant(&self, tenant: &Tenant) -> Result<(), BadCalibration> {
        let Tenant { name, mix, .. } = tenant;
        positive(&format!("rate of {name}"), tenant.rate)?;
        positive(&format!("work of {name}"), tenant.work)?;
        positive(&format!("entitlement of {name}"), tenant.entitlement)?;
        require(mix.len() + 1 == self.services.len(), || {
            format!("the mix of {name} has a share for each service but the first")
        })?;
        for share in mix {
            probability(&format!("mix of {name}"), *share)?;
        }
        let whole = mix.is_empty() || (mix.iter().sum::<f64>() - 1.0).abs() < 1e-6;
        require(whole, || format!("the mix of {name} does not sum to 1"))
    }
}

impl Changes {
    fn check(&self) -> Result<(), BadCalibration> {
        let quorums = 1..=self.approvers;
        require(
            self.approvers as usize <= MAX_APPROVERS && quorums.contains(&self.min_quorum),
            || {
                format!(
                    "min_quorum is within 1 and the number of approvers, at most {MAX_APPROVERS}"
                )
            },
        )?;
        for (name, chance) in [
            ("bad", self.bad),
            ("risky_bad", self.risky_bad),
            ("available", self.available),
            ("night", self.night),
            ("spots", self.spots),
            ("false_alarms", self.false_alarms),
            ("harm", self.harm),
        ] {
            probability(name, chance)?;
        }
        for (name, number) in [
            ("risky_factor", self.risky_factor),
            ("risky_s", self.risky_s),
            ("quiet_s", self.quiet_s),
            ("answer_s", self.answer_s),
            ("gain_s", self.gain_s),
            ("rollback_s", self.rollback_s),
            ("timeout_s", self.timeout_s[0]),
        ] {
            positive(name, number)?;
        }
        let [shortest, longest] = self.timeout_s;
        require(longest >= shortest && longest.is_finite(), || {
            "timeout_s is not a range".into()
        })?;
        not_negative("proposals", self.proposals)?;
        not_negative("answer_sigma", self.answer_sigma)?;
        not_negative("gain", self.gain)
    }
}

impl Rewards {
    fn check(&self) -> Result<(), BadCalibration> {
        for (name, weight) in [
            ("policy_slow", self.policy_slow),
            ("policy_shed", self.policy_shed),
            ("consensus_gain", self.consensus_gain),
            ("consensus_harm", self.consensus_harm),
            ("consensus_age", self.consensus_age),
            ("ethical_jain", self.ethical_jain),
            ("ethical_worst", self.ethical_worst),
            ("ethical_lost", self.ethical_lost),
            ("resource_cost", self.resource_cost),
            ("resource_slow", self.resource_slow),
            ("resource_change", self.resource_change),
        ] {
            not_negative(name, weight)?;
        }
        Ok(())
    }
}

impl Spread {
    fn check(&self) -> Result<(), BadCalibration> {
        let rises = self.quantiles.windows(2).all(|pair| pair[0] <= pair[1]);
        require(!self.quantiles.is_empty() && rises, || {
            "the quantiles of the spread do not rise".into()
        })?;
        for quantile in &self.quantiles {
            positive("a quantile of the spread", *quantile)?;
        }
        not_negative("cv2 of the spread", self.cv2)
    }
}

impl Traffic {
    fn check(&self) -> Result<(), BadCalibration> {
        probability("diurnal", self.diurnal)?;
        not_negative("peak_hour", self.peak_hour)?;
        positive("burst_factor", self.burst_factor)?;
        positive("burst_s", self.burst_s)?;
        positive("calm_s", self.calm_s)?;
        require(
            self.dispersion >= 1.0 && self.dispersion.is_finite(),
            || "dispersion is below 1".into(),
        )
    }
}

impl Clients {
    fn check(&self) -> Result<(), BadCalibration> {
        for patience in [self.patient, self.strict] {
            positive("timeout_s", patience.timeout_s)?;
            probability("retries", patience.retries)?;
            not_negative("budget", patience.budget)?;
        }
        probability("transient", self.transient)?;
        probability("shed_retries", self.shed_retries)
    }
}

fn check_service(service: &Service) -> Result<(), BadCalibration> {
    let name = &service.name;
    positive(&format!("service_time_s of {name}"), service.service_time_s)?;
    not_negative(&format!("service_cv2 of {name}"), service.service_cv2)?;
    not_negative(&format!("arrival_cv2 of {name}"), service.arrival_cv2)?;
    not_negative(&format!("start_up_s of {name}"), service.start_up_s)?;
    positive(&format!("price of {name}"), service.price)?;
    positive(&format!("queue_s of {name}"), service.queue_s)?;
    let range = 1..=MAX_REPLICAS;
    let replicas = range.contains(&service.min_replicas)
        && range.contains(&service.max_replicas)
        && service.min_replicas <= service.max_replicas;
    require(replicas, || {
        format!("the replicas of {name} are not a range within 1 and {MAX_REPLICAS}")
    })
}

fn require(met: bool, message: impl FnOnce() -> String) -> Result<(), BadCalibration> {
    if met {
        Ok(())
    } else {
        Err(BadCalibration(message()))
    }
}

fn positive(name: &str, number: f64) -> Result<(), BadCalibration> {
    require(number > 0.0 && number.is_finite(), || {
        format!("{name} is not positive")
    })
}

fn not_negative(name: &str, number: f64) -> Result<(), BadCalibration> {
    require(number >= 0.0 && number.is_finite(), || {
        format!("{name} is negative")
    })
}

fn probability(name: &str, number: f64) -> Result<(), BadCalibration> {
    require((0.0..=1.0).contains(&number), || {
        format!("{name} is not within 0 and 1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_and_the_constant_calibration_are_sound() {
        assert_eq!(Calibration::shipped().check(), Ok(()));
        assert_eq!(Calibration::constant(10.0, 0.05, 1).check(), Ok(()));
    }

    #[test]
    fn a_calibration_survives_json_and_an_unknown_parameter_is_refused() {
        let shipped = Calibration::shipped();
        let mut json = serde_json::to_value(&shipped).unwrap();
        assert_eq!(
            serde_json::from_value::<Calibration>(json.clone()).unwrap(),
            shipped
        );
        json["surprise"] = 1.into();
        assert!(serde_json::from_value::<Calibration>(json).is_err());
    }

    type Spoil = fn(&mut Calibration);

    #[test]
    fn what_no_mesh_has_is_refused_by_name() {
        let cases: [(&str, Spoil); 14] = [
            ("tenants", |c| c.tenants.clear()),
            ("services", |c| c.services.clear()),
            ("max_steps", |c| c.max_steps = 0),
            ("rate of web", |c| c.tenants[0].rate = f64::NAN),
            ("mix of web", |c| c.tenants[0].mix[0] = 0.9),
            ("mix of web", |c| c.tenants[0].mix.push(0.0)),
            ("entitlements", |c| c.tenants[0].entitlement = 0.5),
            ("service_time_s of gateway", |c| {
                c.services[0].service_time_s = 0.0;
            }),
            ("replicas of gateway", |c| c.services[0].min_replicas = 60),
            ("dispersion", |c| c.traffic.dispersion = 0.5),
            ("retries", |c| c.clients.strict.retries = 1.5),
            ("min_quorum", |c| c.changes.min_quorum = 8),
            ("resource_cost", |c| c.rewards.resource_cost = f64::NAN),
            ("timeout_s", |c| c.changes.timeout_s = [60.0, 30.0]),
        ];
        for (name, spoil) in cases {
            let mut calibration = Calibration::shipped();
            spoil(&mut calibration);
            let refused = calibration.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
