//! Permissions, and the roles that hold them. A role is a set of permissions, and `viewer <
//! developer < admin`.

use std::fmt;
use tars_proto::table::Permission;

/// A role of a new installation. A role holds what the weaker ones hold, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Viewer,
    Developer,
    Admin,
}

impl Role {
    const ALL: [Self; 3] = [Self::Viewer, Self::Developer, Self::Admin];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Developer => "developer",
            Self::Admin => "admin",
        }
    }
}

/// Every permission with the weakest role that holds it. The position of a permission is its bit.
const TABLE: &[(&str, Role)] = &[
    ("session.self", Role::Viewer),
    ("agents.read", Role::Viewer),
    ("training.read", Role::Viewer),
    ("studies.read", Role::Viewer),
    ("proposals.read", Role::Viewer),
    ("agents.step", Role::Viewer),
    ("games.solve", Role::Developer),
    ("agents.reload", Role::Developer),
    ("training.write", Role::Developer),
    ("studies.write", Role::Developer),
    ("proposals.write", Role::Developer),
    ("proposals.approve", Role::Admin),
    ("proposals.apply", Role::Admin),
    ("users.read", Role::Admin),
    ("users.write", Role::Admin),
    ("apikeys.read", Role::Admin),
    ("apikeys.write", Role::Admin),
    ("signingkeys.read", Role::Admin),
    ("audit.read", Role::Admin),
    ("mesh.reflect", Role::Admin),
    ("certificates.read", Role::Admin),
    ("certificates.issue", Role::Admin),
    ("certificates.revoke", Role::Admin),
    ("certificates.roots", Role::Admin),
    ("certificates.issue_operator", Role::Admin),
    ("certificates.issue_workload", Role::Admin),
    ("certificates.revoke_workload", Role::Admin),
    ("apikeys.revoke_any", Role::Admin),
    ("agents.release", Role::Admin),
    ("usage.read", Role::Admin),
];

const NAMES: [&str; TABLE.len()] = {
    let mut names = [""; TABLE.len()];
    let mut at = 0;
    while at < TABLE.len() {
        names[at] = TABLE[at].0;
        at += 1;
    }
    names
};

/// The name of every permission that a rule may require.
pub const PERMISSIONS: &[&str] = &NAMES;

/// The names of the roles of a new installation, weakest first.
pub fn role_names() -> impl Iterator<Item = &'static str> {
    Role::ALL.into_iter().map(Role::as_str)
}

/// The roles of a new installation with their permissions, weakest first.
pub fn default_roles() -> impl Iterator<Item = (&'static str, Permissions)> {
    let held = |role| TABLE.iter().filter(move |(_, weakest)| *weakest <= role);
    Role::ALL
        .map(|role| (role.as_str(), Permissions::of(held(role).map(|p| p.0))))
        .into_iter()
}

/// The union of the permissions of `roles`; a role that does not exist holds none.
pub fn of_roles<'a>(roles: impl IntoIterator<Item = &'a str>) -> Permissions {
    roles
        .into_iter()
        .filter_map(|role| default_roles().find(|(name, _)| *name == role))
        .fold(Permissions::default(), |all, (_, held)| all.union(held))
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u64);

impl Permissions {
    /// Every permission.
    pub const ALL: Self = Self(u64::MAX >> (64 - PERMISSIONS.len()));
    /// Change what an agent answers by.
    pub const RELOAD_AGENTS: Self = Self::known("agents.reload");
    /// Measure and solve games.
    pub const SOLVE_GAMES: Self = Self::known("games.solve");
    /// Decide proposals of others, and withdraw them.
    pub const APPROVE_PROPOSALS: Self = Self::known("proposals.approve");
    /// Revoke the keys of any owner, whatever they hold.
    pub const REVOKE_ANY_API_KEY: Self = Self::known("apikeys.revoke_any");
    /// Issue identities of people.
    pub const ISSUE_CERTIFICATES: Self = Self::known("certificates.issue");
    /// Issue identities of operators.
    pub const ISSUE_OPERATOR: Self = Self::known("certificates.issue_operator");
    /// Issue identities of workloads, and of all servers.
    pub const ISSUE_WORKLOAD: Self = Self::known("certificates.issue_workload");
    /// Revoke identities of people.
    pub const REVOKE_CERTIFICATES: Self = Self::known("certificates.revoke");
    /// Revoke identities of workloads, and those of unknown classes.
    pub const REVOKE_WORKLOAD: Self = Self::known("certificates.revoke_workload");

    /// The set of one permission. A name that is not in the table does not compile where the result
    /// is a constant.
    const fn known(name: &str) -> Self {
        let mut at = 0;
        while at < TABLE.len() {
            if equal(TABLE[at].0.as_bytes(), name.as_bytes()) {
                return Self(1 << at);
            }
            at += 1;
        }
        panic!("the table has no such permission")
    }

    /// The set of the named permissions; unknown names are ignored.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().filter_map(bit).fold(0, |all, b| all | b))
    }

    /// The permissions in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The permissions in both sets.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The permissions in this set but not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set has no permissions.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all permissions of `other` are in this set.
    pub fn includes(self, other: Self) -> bool {
        other.without(self).is_empty()
    }

    /// Whether a permission of the contract is in the set; `false` for one that was parsed with
    /// another vocabulary than [`PERMISSIONS`].
    pub fn holds(self, permission: Permission) -> bool {
        let known = PERMISSIONS.get(permission.index());
        known.is_some_and(|name| *name == permission.as_str())
            && self.0 & (1 << permission.index()) != 0
    }

    /// The names of the permissions, in the order of [`PERMISSIONS`].
    pub fn names(self) -> Vec<&'static str> {
        let held = |at: usize| self.0 & (1 << at) != 0;
        let names = PERMISSIONS.iter().copied().enumerate();
        names
            .filter_map(|(at, name)| held(at).then_some(name))
            .collect()
    }
}

/// `==` is not const.
const fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

fn bit(name: &str) -> Option<u64> {
    PERMISSIONS
        .iter()
        .position(|p| *p == name)
        .map(|at| 1 << at)
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const VIEWER: [&str; 6] = [
        "agents.read",
        "agents.step",
        "proposals.read",
        "session.self",
        "studies.read",
        "training.read",
    ];
    const DEVELOPER: [&str; 5] = [
        "agents.reload",
        "games.solve",
        "proposals.write",
        "studies.write",
        "training.write",
    ];
    const ADMIN: [&str; 19] = [
        "agents.release",
        "apikeys.read",
        "apikeys.revoke_any",
        "apikeys.write",
        "audit.read",
        "certificates.issue",
        "certificates.issue_operator",
        "certificates.issue_workload",
        "certificates.read",
        "certificates.revoke",
        "certificates.revoke_workload",
        "certificates.roots",
        "mesh.reflect",
        "proposals.apply",
        "proposals.approve",
        "signingkeys.read",
        "usage.read",
        "users.read",
        "users.write",
    ];

    #[test]
    fn each_role_holds_exactly_its_permissions_and_those_of_the_weaker_ones() {
        let expected = [
            ("viewer", VIEWER.to_vec()),
            ("developer", [&VIEWER[..], &DEVELOPER].concat()),
            ("admin", [&VIEWER[..], &DEVELOPER, &ADMIN].concat()),
        ];
        assert_eq!(default_roles().count(), expected.len());
        for ((name, held), (expected_name, expected)) in default_roles().zip(expected) {
            assert_eq!(name, expected_name);
            let held: BTreeSet<_> = held.names().into_iter().collect();
            assert_eq!(held, expected.into_iter().collect(), "{name}");
        }
    }

    #[test]
    fn each_permission_is_listed_once_and_has_a_bit() {
        let names: BTreeSet<_> = PERMISSIONS.iter().collect();
        assert_eq!(names.len(), PERMISSIONS.len());
        assert_eq!(
            Permissions::of(PERMISSIONS.iter().copied()),
            Permissions::ALL
        );
        assert_eq!(Permissions::ALL.names(), PERMISSIONS);
    }

    #[test]
    fn roles_are_united_and_unknown_ones_hold_nothing() {
        assert_eq!(of_roles(["viewer", "admin"]), Permissions::ALL);
        assert_eq!(of_roles(["nobody", ""]), Permissions::default());
        let (viewer, developer) = (of_roles(["viewer"]), of_roles(["developer"]));
        assert!(developer.includes(viewer) && !viewer.includes(developer));
        assert_eq!(of_roles(["developer", "viewer"]), developer);
    }

    #[test]
    fn a_named_constant_is_the_permission_of_that_name() {
        for (constant, name) in [
            (Permissions::RELOAD_AGENTS, "agents.reload"),
            (Permissions::SOLVE_GAMES, "games.solve"),
            (Permissions::APPROVE_PROPOSALS, "proposals.approve"),
            (Permissions::REVOKE_ANY_API_KEY, "apikeys.revoke_any"),
            (Permissions::ISSUE_CERTIFICATES, "certificates.issue"),
            (Permissions::ISSUE_OPERATOR, "certificates.issue_operator"),
            (Permissions::ISSUE_WORKLOAD, "certificates.issue_workload"),
            (Permissions::REVOKE_CERTIFICATES, "certificates.revoke"),
            (Permissions::REVOKE_WORKLOAD, "certificates.revoke_workload"),
        ] {
            assert_eq!(constant.names(), [name]);
        }
    }

    #[test]
    fn unknown_names_grant_nothing() {
        assert_eq!(
            Permissions::of(["root", "ADMIN", "agents.read "]),
            Permissions::default()
        );
    }
}
