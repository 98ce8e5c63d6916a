//! What users may use in a month. The quotas come from the configuration and, where there is one, from a file,
//! and are replaced as a whole while the process runs.
//!
//! Each dimension is looked up by itself: the quota of the user, else the largest that one of their roles has,
//! else everybody's. Zero is unlimited.

use arc_swap::ArcSwap;
use serde::Deserialize;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tars_credentials::{Caller, View, permission::role_names};
use tars_runtime::{
    config::{self, bounds::QUOTA},
    usage::{Dimension, Month},
};

/// The quotas in force. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct QuotaHandle(Arc<ArcSwap<Quotas>>);

impl QuotaHandle {
    /// Puts quotas in force.
    pub fn replace(&self, quotas: Quotas) {
        self.0.store(Arc::new(quotas));
    }

    /// What a caller may use.
    pub fn allowance(&self, caller: &Caller) -> Allowance {
        self.0.load().allowance(caller)
    }

    pub(super) fn limit(&self, caller: &Caller, dimension: Dimension) -> Option<u64> {
        self.0.load().limit(caller, dimension)
    }

    pub(super) fn limit_anything(&self) -> bool {
        self.0.load().limit_anything()
    }

    /// The users with quotas of their own who do not exist.
    pub(super) fn strangers(&self, view: &View) -> Vec<String> {
        self.0.load().strangers(view)
    }
}

/// What a user may use in a month of each dimension, in its amounts; `None` is unlimited. Without a user it is that
/// of the mesh, whose own work is not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowance {
    /// The user.
    pub user_id: String,
    limits: [Option<u64>; Dimension::ALL.len()],
}

impl Allowance {
    /// The quota of a dimension.
    pub fn of(&self, dimension: Dimension) -> Option<u64> {
        self.limits[dimension as usize]
    }

    /// Nothing is limited.
    pub fn unlimited(user_id: &str) -> Self {
        Self {
            user_id: user_id.to_owned(),
            ..Self::default()
        }
    }

    /// The same with a quota.
    #[must_use]
    pub fn with(mut self, dimension: Dimension, limit: u64) -> Self {
        self.limits[dimension as usize] = Some(limit);
        self
    }
}

/// The quotas of one user, one role or everybody, in the units of the file; what is absent is not decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    calls: Option<u64>,
    training_steps: Option<u64>,
    solver_seconds: Option<u64>,
}

impl Row {
    fn of(&self, dimension: Dimension) -> Option<u64> {
        match dimension {
            Dimension::Calls => self.calls,
            Dimension::TrainingSteps => self.training_steps,
            Dimension::SolverSeconds => self.solver_seconds,
        }
    }

    fn check(&self) -> Result<(), String> {
        let all = Dimension::ALL.map(|d| (d, self.of(d)));
        if let Some((dimension, _)) = all.into_iter().find(|(_, n)| n.is_some_and(|n| n > QUOTA)) {
            return Err(format!("{dimension} must be between 0 and {QUOTA}"));
        }
        if all.iter().all(|(_, n)| n.is_none()) {
            return Err("names no quota".to_owned());
        }
        Ok(())
    }

    fn limits_anything(&self) -> bool {
        let all = Dimension::ALL.map(|dimension| self.of(dimension));
        all.into_iter().flatten().any(|units| units > 0)
    }

    /// This row where it decides, else the other.
    fn or(self, other: Self) -> Self {
        Self {
            calls: self.calls.or(other.calls),
            training_steps: self.training_steps.or(other.training_steps),
            solver_seconds: self.solver_seconds.or(other.solver_seconds),
        }
    }
}

/// Every quota in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    everybody: Row,
    /// By name or id.
    users: HashMap<String, Row>,
    roles: HashMap<String, Row>,
}

impl Quotas {
    /// The quotas of a configuration.
    pub fn new(quotas: &config::Quotas) -> Self {
        Self {
            everybody: Row {
                calls: Some(quotas.calls),
                training_steps: Some(quotas.training_steps),
                solver_seconds: Some(quotas.solver_seconds),
            },
            ..Self::default()
        }
    }

    /// The same with what a file changes.
    ///
    /// # Errors
    ///
    /// Every mistake in the text.
    pub fn with(&self, text: &str) -> Result<Self, Vec<String>> {
        let file: File = toml::from_str(text).map_err(|e| vec![e.to_string()])?;
        let (mut quotas, mut mistakes) = (self.clone(), Vec::new());
        if let Some(row) = file.quota {
            mistakes.extend(row.check().err().map(|mistake| format!("quota: {mistake}")));
            quotas.everybody = row.or(quotas.everybody);
        }
        for (n, row) in file.overrides.into_iter().enumerate() {
            if let Err(mistake) = quotas.add(row) {
                mistakes.push(format!("override {}: {mistake}", n + 1));
            }
        }
        if mistakes.is_empty() {
            Ok(quotas)
        } else {
            Err(mistakes)
        }
    }

    fn add(&mut self, given: Override) -> Result<(), String> {
        let row = Row {
            calls: given.calls,
            training_steps: given.training_steps,
            solver_seconds: given.solver_seconds,
        };
        row.check()?;
        let (rows, who) = match (given.user, given.role) {
            (Some(user), None) => (&mut self.users, user),
            (None, Some(role)) if !role_names().any(|name| name == role) => {
                let roles: Vec<_> = role_names().collect();
                return Err(format!(
                    "there is no role {role:?}, but {}",
                    roles.join(", ")
                ));
            }
            (None, Some(role)) => (&mut self.roles, role),
            _ => return Err("names exactly one of user and role".to_owned()),
        };
        match rows.insert(who.clone(), row) {
            Some(_) => Err(format!("{who:?} is named before")),
            None => Ok(()),
        }
    }

    /// The quota of a dimension, in its amounts.
    fn limit(&self, caller: &Caller, dimension: Dimension) -> Option<u64> {
        let of_user = self.of_user(caller, dimension);
        let units = of_user
            .or_else(|| self.of_roles(caller, dimension))
            .or_else(|| self.everybody.of(dimension))?;
        (units > 0).then(|| units.saturating_mul(dimension.unit()))
    }

    fn of_user(&self, caller: &Caller, dimension: Dimension) -> Option<u64> {
        if self.users.is_empty() {
            return None;
        }
        let rows = [&caller.owner_id, &caller.username];
        let mut rows = rows.into_iter().filter_map(|who| self.users.get(who));
        rows.find_map(|row| row.of(dimension))
    }

    fn of_roles(&self, caller: &Caller, dimension: Dimension) -> Option<u64> {
        let rows = caller.roles.iter().filter_map(|role| self.roles.get(role));
        let quotas = rows.filter_map(|row| row.of(dimension));
        // Unlimited is the largest.
        quotas.max_by_key(|units| units.wrapping_sub(1))
    }

    fn limit_anything(&self) -> bool {
        let rows = self.users.values().chain(self.roles.values());
        let mut rows = rows.chain([&self.everybody]);
        rows.any(Row::limits_anything)
    }

    fn strangers(&self, view: &View) -> Vec<String> {
        let strangers = view.strangers(self.users.keys());
        let named = strangers.into_iter().map(|who| format!("user {who}"));
        named.collect()
    }

    fn allowance(&self, caller: &Caller) -> Allowance {
        Allowance {
            user_id: caller.owner_id.clone(),
            limits: Dimension::ALL.map(|dimension| self.limit(caller, dimension)),
        }
    }
}

/// The file of quotas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    quota: Option<Row>,
    #[serde(default, rename = "override")]
    overrides: Vec<Override>,
}

/// The quotas of one user (by name or id) or role.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    user: Option<String>,
    role: Option<String>,
    calls: Option<u64>,
    training_steps: Option<u64>,
    solver_seconds: Option<u64>,
}

/// Why a quota does not let work begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaRefusal {
    /// It does not allow as much.
    #[error(transparent)]
    Over(OverQuota),
    /// What is used of it is not known yet.
    #[error(
        "what you have used of your quota is not known yet, as this process has just started; repeat the call in a second"
    )]
    Unknown,
}

/// A quota that does not allow what is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverQuota {
    /// Of what.
    pub dimension: Dimension,
    /// How much is allowed in the month.
    pub limit: u64,
    /// How much is used, or promised to work that runs.
    pub used: u64,
    /// How much was asked for.
    pub asked: u64,
    /// The month.
    pub month: Month,
    /// When it was refused, since the Unix epoch.
    pub at: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::caller;
    use tars_credentials::Permissions;

    fn of(user: &str, roles: &[&str]) -> Caller {
        let mut of = Caller::clone(&caller(user, "label", Permissions::ALL));
        of.roles = roles.iter().map(|role| (*role).to_owned()).collect();
        of
    }

    fn limits(quotas: &Quotas, caller: &Caller) -> [Option<u64>; 3] {
        quotas.allowance(caller).limits
    }

    #[test]
    fn nothing_is_limited_by_default() {
        let quotas = Quotas::new(&config::Quotas::default());
        assert_eq!(limits(&quotas, &of("ada", &["viewer"])), [None; 3]);
    }

    #[test]
    fn each_dimension_is_that_of_the_user_else_of_a_role_else_of_everybody() {
        let base = config::Quotas {
            calls: 10,
            solver_seconds: 5,
            ..config::Quotas::default()
        };
        let text = r#"
            [quota]
            training_steps = 1000
            [[override]]
            role = "viewer"
            calls = 3
            [[override]]
            role = "developer"
            calls = 300
            [[override]]
            role = "admin"
            calls = 0
            [[override]]
            user = "ada"
            training_steps = 7
        "#;
        let quotas = Quotas::new(&base).with(text).unwrap();
        let solver = Some(5_000_000);
        for (user, roles, expected) in [
            ("bob", &[][..], [Some(10), Some(1000), solver]),
            ("bob", &["viewer"], [Some(3), Some(1000), solver]),
            (
                "bob",
                &["viewer", "developer"],
                [Some(300), Some(1000), solver],
            ),
            ("bob", &["developer", "admin"], [None, Some(1000), solver]),
            ("ada", &["viewer"], [Some(3), Some(7), solver]),
        ] {
            assert_eq!(
                limits(&quotas, &of(user, roles)),
                expected,
                "{user} {roles:?}"
            );
        }
    }

    #[test]
    fn a_user_of_their_own_may_be_unlimited() {
        let text = "[quota]\ncalls = 5\n[[override]]\nuser = \"ada\"\ncalls = 0";
        let quotas = Quotas::default().with(text).unwrap();
        assert_eq!(limits(&quotas, &of("ada", &[]))[0], None);
        assert_eq!(limits(&quotas, &of("bob", &[]))[0], Some(5));
    }

    #[test]
    fn a_role_that_does_not_exist_is_a_mistake() {
        let text = "[[override]]\nrole = \"viewers\"\ncalls = 3";
        let mistakes = Quotas::default().with(text).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert!(
            mistakes[0].starts_with("override 1: there is no role \"viewers\", but "),
            "{mistakes:?}"
        );
        assert!(mistakes[0].contains("viewer, "), "{mistakes:?}");
    }

    #[test]
    fn users_that_do_not_exist_are_told() {
        let text = r#"
            [[override]]
            user = "ada"
            calls = 3
            [[override]]
            user = "adda"
            calls = 3
            [[override]]
            user = "018f"
            calls = 3
        "#;
        let quotas = Quotas::default().with(text).unwrap();
        let view = View::default();
        let known = tars_proto::auth::v1::WatchCredentialsResponse {
            reset: true,
            users: vec![tars_proto::auth::v1::UserView {
                user_id: "018f".to_owned(),
                username: "ada".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        view.apply(&known, 0);
        assert_eq!(quotas.strangers(&view), ["user adda"]);
    }

    #[test]
    fn every_mistake_is_named_and_nothing_is_taken() {
        let text = r#"
            [quota]
            calls = 1000000000001
            [[override]]
            calls = 3
            [[override]]
            user = "ada"
            role = "viewer"
            calls = 3
            [[override]]
            user = "ada"
            [[override]]
            user = "bob"
            calls = 1
            [[override]]
            user = "bob"
            calls = 2
        "#;
        let mistakes = Quotas::default().with(text).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "quota: calls must be between 0 and 1000000000000",
                "override 1: names exactly one of user and role",
                "override 2: names exactly one of user and role",
                "override 3: names no quota",
                "override 5: \"bob\" is named before",
            ]
        );
        for bad in [
            "quotas = 1",
            "[quota]\ncalls = -1",
            "[quota]\nstorage = 1",
            "[quota]",
        ] {
            assert!(Quotas::default().with(bad).is_err(), "{bad}");
        }
    }
}
