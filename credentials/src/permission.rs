//! Permissions, and the roles that hold them. A role is a set of permissions, and `viewer <
//! developer < admin`.

use std::fmt;
use tars_proto::table::Permission;

/// Every permission that a rule may name. The position of a permission is its bit.
pub const PERMISSIONS: &[&str] = &[
    "session.self",
    "agents.read",
    "training.read",
    "studies.read",
    "proposals.read",
    "agents.step",
    "games.solve",
    "agents.reload",
    "training.write",
    "studies.write",
    "proposals.write",
    "proposals.approve",
    "proposals.apply",
    "users.read",
    "users.write",
    "apikeys.read",
    "apikeys.write",
    "signingkeys.read",
    "audit.read",
    "mesh.reflect",
    "certificates.read",
    "certificates.issue",
    "certificates.revoke",
    "certificates.roots",
    "certificates.issue_operator",
    "certificates.issue_workload",
    "certificates.revoke_workload",
    "apikeys.revoke_any",
    "agents.release",
];

const VIEWER: usize = 6;
const DEVELOPER: usize = 11;

/// The roles of a new installation with their permissions, weakest first.
pub fn default_roles() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("viewer", &PERMISSIONS[..VIEWER]),
        ("developer", &PERMISSIONS[..DEVELOPER]),
        ("admin", PERMISSIONS),
    ]
}

/// The union of the permissions of `roles`; a role that does not exist holds none.
pub fn of_roles<'a>(roles: impl IntoIterator<Item = &'a str>) -> Permissions {
    let known = default_roles();
    let names = roles
        .into_iter()
        .filter_map(|role| known.iter().find(|(name, _)| *name == role))
        .flat_map(|(_, permissions)| permissions.iter().copied());
    Permissions::of(names)
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u64);

impl Permissions {
    /// Every permission.
    pub const ALL: Self = Self(u64::MAX >> (64 - PERMISSIONS.len()));

    /// The set of the named permissions; unknown names are ignored.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().filter_map(bit).fold(0, |all, b| all | b))
    }

    /// The permissions in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
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

    /// Whether the named permission is in the set; `false` for an unknown name.
    pub fn contains(self, name: &str) -> bool {
        bit(name).is_some_and(|b| self.0 & b != 0)
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

    #[test]
    fn each_role_includes_the_weaker_ones() {
        let sets: Vec<Permissions> = default_roles()
            .into_iter()
            .map(|(_, p)| Permissions::of(p.iter().copied()))
            .collect();
        assert_eq!(sets[0].intersect(sets[1]), sets[0]);
        assert_eq!(sets[1].intersect(sets[2]), sets[1]);
        assert_eq!(sets[2], Permissions::ALL);
        assert!(!sets[0].contains("studies.write") && sets[1].contains("studies.write"));
        assert!(!sets[1].contains("proposals.approve") && sets[2].contains("proposals.approve"));
    }

    #[test]
    fn roles_are_united_and_unknown_ones_hold_nothing() {
        assert_eq!(of_roles(["viewer", "admin"]), Permissions::ALL);
        assert_eq!(of_roles(["nobody", ""]), Permissions::default());
        assert!(
            of_roles(["developer"])
                .without(of_roles(["viewer"]))
                .contains("studies.write")
        );
        assert!(
            of_roles(["viewer"])
                .without(of_roles(["developer"]))
                .is_empty()
        );
    }

    #[test]
    fn unknown_names_grant_nothing() {
        assert_eq!(
            Permissions::of(["root", "ADMIN", "agents.read "]),
            Permissions::default()
        );
    }
}
