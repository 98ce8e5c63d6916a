use super::*;
use crate::{
    contract,
    decide::{Verdict, decide},
    fixtures::{ME, by_credential, by_peer, call, caller},
    policy::PolicyHandle,
};
use std::sync::Arc;
use tars_certs::ClassTable;
use tars_credentials::Permissions;

const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
const CREATE_KEY: &str = "/tars.auth.v1.ApiKeyService/CreateApiKey";

/// Ids of API keys.
const K1: &str = "0198c5b2d3e4";
const K2: &str = "0198c5b2d3e5";

fn classes() -> ClassTable {
    tars_runtime::config::Certificates::default()
        .class_table()
        .unwrap()
}

fn plan(text: &str) -> Plan {
    let plan = Plan::new(&Limits::default());
    plan.with(text, &classes()).unwrap()
}

fn mistakes(text: &str) -> Vec<FileError> {
    let plan = Plan::new(&Limits::default());
    plan.with(text, &classes()).unwrap_err()
}

#[test]
fn a_call_is_charged_to_its_class_and_to_the_budget_of_its_method() {
    let plan = plan("");
    let me = by_credential(ME, "/gateway", "ada", "user:ada");
    let charges = plan.charges(&me);
    assert_eq!(charges.class.limit, Limit::new(User, 600, MINUTE));
    assert_eq!(charges.class.subject, Subject::Name("ada"));
    let budget = charges.budget.unwrap();
    assert_eq!(budget.limit, Limit::new(Identity, 30, MINUTE));
    assert_eq!(budget.subject, Subject::Name("ada"));
    let create = by_credential(CREATE_KEY, "/gateway", "ada", "user:ada");
    let charges = plan.charges(&create);
    assert_eq!(charges.class.limit.name, Auth);
    let key_changes = Limit::new(KeyChanges, 10, MINUTE);
    assert_eq!(charges.budget.unwrap().limit, key_changes);
    let login = by_peer(LOGIN, PeerClass::Gateway, "/gateway");
    assert!(plan.charges(&login).budget.is_none());
}

#[test]
fn a_hop_between_workloads_is_charged_to_its_peer_alone() {
    let hop = by_peer(ME, PeerClass::Automl, "/automl");
    let plan = plan("");
    let charges = plan.charges(&hop);
    assert_eq!(charges.class.limit.name, Internal);
    assert!(charges.budget.is_none());
}

#[test]
fn a_file_changes_sizes_and_windows() {
    let plan = plan("[limit.key-changes]\ncalls = 20\nwindow_seconds = 3600\n");
    let hourly = Limit::new(KeyChanges, 20, MINUTE * 60);
    assert_eq!(plan.limit(KeyChanges), hourly);
    assert_eq!(plan.limit(Auth), Limit::new(Auth, 10, MINUTE));
}

fn own(who: &str) -> Plan {
    plan(&format!(
        "[[override]]\n{who}\nlimit = \"user\"\ncalls = 5\nwindow_seconds = 1\n"
    ))
}

fn by_key(id: &str) -> Arc<Call> {
    let call = by_peer(ME, PeerClass::Gateway, "/gateway");
    let mut caller = Arc::unwrap_or_clone(caller("ada-id", "key:1", Permissions::ALL));
    let secret = tars_credentials::apikey::Hash::default();
    caller.credential = Credential::ApiKey {
        id: id.to_owned(),
        secret,
    };
    call.set_caller(Arc::new(caller));
    call
}

#[test]
fn an_override_is_for_whom_it_names_alone() {
    let five = Limit::new(User, 5, SECOND);
    let of = |plan: &Plan, call: &Arc<Call>| plan.charges(call).class.limit;
    let (ada, bob) = (
        by_credential(ME, "/gateway", "ada", "user:ada"),
        by_credential(ME, "/gateway", "bob", "user:bob"),
    );
    let user = own("user = \"ada\"");
    assert_eq!(user.overrides(), 1);
    assert_eq!(of(&user, &ada), five);
    assert_eq!(of(&user, &bob), Limit::new(User, 600, MINUTE));
    let budget = user.charges(&ada).budget.unwrap();
    assert_eq!(budget.limit.calls, 30, "of that name alone");
    let peer = plan(
        "[[override]]\npeer = \"/gateway\"\nlimit = \"internal\"\ncalls = 5\nwindow_seconds = 1\n",
    );
    assert_eq!(of(&peer, &ada).calls, 600, "not of whom it carries");
}

#[test]
fn a_key_with_a_limit_of_its_own_is_not_charged_to_its_owner() {
    let plan = own(&format!("key = \"{K1}\""));
    let (k1, k2) = (by_key(K1), by_key(K2));
    let charge = plan.charges(&k1).class;
    assert_eq!((charge.limit.calls, charge.subject), (5, Subject::Key(K1)));
    let charge = plan.charges(&k2).class;
    let owner = Subject::Name("ada-id");
    assert_eq!((charge.limit.calls, charge.subject), (600, owner));
}

#[test]
fn a_network_has_a_limit_for_each_of_its_addresses() {
    let plan = plan(
        "[[override]]\naddress = \"10.1.0.0/16\"\nlimit = \"auth\"\ncalls = 50\nwindow_seconds = 60\n",
    );
    let from = |client| call(LOGIN, PeerClass::Gateway, "/gateway", client);
    let (inside, outside) = (from([10, 1, 2, 3]), from([10, 2, 0, 1]));
    assert_eq!(plan.charges(&inside).class.limit.calls, 50);
    assert_eq!(plan.charges(&outside).class.limit.calls, 10);
}

#[test]
fn a_limit_for_a_part_of_a_site_leaves_the_rest_of_it_alone() {
    let own = |network: &str| {
        plan(&format!(
            "[[override]]\naddress = \"{network}\"\nlimit = \"auth\"\ncalls = 50\nwindow_seconds = 60\n"
        ))
    };
    let from = |net| {
        let client = [0x2001, 0xdb8, 1, net, 0, 0, 0, 1];
        call(LOGIN, PeerClass::Gateway, "/gateway", client)
    };
    let of_site = |plan: &Plan, net| plan.charges(&from(net)).site.map(|site| site.limit.calls);
    let part = own("2001:db8:1:2::/64");
    assert_eq!(of_site(&part, 2), None);
    assert_eq!(of_site(&part, 3), Some(100), "as without it");
    assert_eq!(of_site(&own("2001:db8:1::/48"), 2), Some(500));
}

#[test]
fn a_site_is_as_large_as_it_is_set_and_may_do_as_much() {
    let plan = Plan::new(&Limits {
        site_prefix: 56,
        site_factor: 3,
        ..Limits::default()
    });
    let site = |net| {
        let client = [0x2001, 0xdb8, 1, net, 0, 0, 0, 1];
        let call = call(LOGIN, PeerClass::Gateway, "/gateway", client);
        let site = plan.charges(&call).site.unwrap();
        let Subject::Site(number) = site.subject else {
            panic!("{site:?}");
        };
        (number, site.limit.calls)
    };
    assert_eq!(site(0x200), site(0x2ff));
    assert_ne!(site(0x200).0, site(0x300).0);
    assert_eq!(site(0x200).1, 30);
}

#[test]
fn a_site_has_no_more_calls_than_a_limit_may_have() {
    let plan = Plan::new(&Limits {
        auth_per_minute: EXACT_CALLS,
        site_factor: 1_000_000_000,
        ..Limits::default()
    });
    let call = call(
        LOGIN,
        PeerClass::Gateway,
        "/gateway",
        [0x2001, 0xdb8, 1, 2, 0, 0, 0, 1],
    );
    assert_eq!(plan.charges(&call).site.unwrap().limit.calls, EXACT_CALLS);
}

#[test]
fn every_mistake_is_reported_and_nothing_is_changed() {
    let size = "calls = 5\nwindow_seconds = 1\n";
    for (text, reason) in [
        ("[limit.auth]\ncalls = 0\nwindow_seconds = 60", "calls"),
        ("[limit.auth]\ncalls = 100001\nwindow_seconds = 60", "calls"),
        (
            "[limit.user]\ncalls = 1000000001\nwindow_seconds = 60",
            "calls",
        ),
        ("[limit.auth]\ncalls = -1\nwindow_seconds = 60", "calls"),
        (
            "[limit.auth]\ncalls = 4294967296\nwindow_seconds = 60",
            "calls",
        ),
        ("[limit.auth]\ncalls = nan\nwindow_seconds = 60", "calls"),
        (
            "[limit.auth]\ncalls = 1\nwindow_seconds = 0",
            "window_seconds",
        ),
        (
            "[limit.auth]\ncalls = 1\nwindow_seconds = 9999999",
            "window_seconds",
        ),
        ("[limit.nobody]\ncalls = 1\nwindow_seconds = 1", "nobody"),
        ("[limit.auth]\ncalls = 1", "window_seconds"),
        ("[limits.auth]\ncalls = 1\nwindow_seconds = 1", "limits"),
        (
            "[[override]]\nlimit = \"user\"\ncalls = 1\nwindow_seconds = 1",
            "exactly one",
        ),
        (
            "[[override]]\naddress = \"2001:db8::/65\"\nlimit = \"auth\"\ncalls = 1\nwindow_seconds = 1",
            "write the /64",
        ),
        (
            "[[override]]\naddress = \"2001:db8::1\"\nlimit = \"auth\"\ncalls = 1\nwindow_seconds = 1",
            "write the /64",
        ),
    ] {
        let found = format!("{}", mistakes(text)[0]);
        assert!(found.contains(reason), "{text}: {found}");
    }
    let two = format!("[[override]]\nuser = \"a\"\nkey = \"b\"\nlimit = \"user\"\n{size}");
    let address = format!("[[override]]\naddress = \"here\"\nlimit = \"auth\"\n{size}");
    assert_eq!(mistakes(&format!("{two}{address}")).len(), 2);
}

/// An override for whom `whom` names.
fn row(whom: &str, limit: &str) -> String {
    format!("[[override]]\n{whom}\nlimit = \"{limit}\"\ncalls = 5\nwindow_seconds = 1\n")
}

/// What is wrong with the only override that is refused.
fn refused(text: &str) -> OverrideError {
    match &mistakes(text)[..] {
        [FileError::Override { why, .. }] => why.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn nobody_has_a_limit_that_never_counts_them() {
    for (whom, kind, limits) in [
        (
            "user = \"ada\"",
            Kind::User,
            &["auth", "public", "internal"][..],
        ),
        (
            "key = \"0198c5b2d3e4\"",
            Kind::Key,
            &["auth", "public", "internal"],
        ),
        (
            "peer = \"/automl\"",
            Kind::Peer,
            &["auth", "public", "identity", "key-changes"],
        ),
        (
            "address = \"10.0.0.0/8\"",
            Kind::Address,
            &["user", "internal", "identity", "key-changes"],
        ),
    ] {
        for name in limits {
            let found = refused(&row(whom, name));
            assert!(
                matches!(found, OverrideError::NotCounted { kind: k, .. } if k == kind),
                "{whom} {name}: {found}"
            );
        }
    }
    let message = mistakes(&row("key = \"0198c5b2d3e4\"", "auth"))[0].to_string();
    assert_eq!(
        message,
        "override 1: the limit auth counts by address, never by key; by key counts user, identity, key-changes"
    );
}

#[test]
fn nobody_has_a_limit_who_cannot_be() {
    for user in [
        "",
        "Ada",
        "ada bob",
        "-ada",
        "0198C5B2-D3E4-7000-8000-000000000001",
        "ádá",
    ] {
        let found = refused(&row(&format!("user = \"{user}\""), "user"));
        assert_eq!(found, OverrideError::User(user.to_owned()));
    }
    for key in ["", "k1", "0198c5b2d3e", "0198c5b2d3e45", "0198c5b2d3e-"] {
        let found = refused(&row(&format!("key = \"{key}\""), "user"));
        assert_eq!(found, OverrideError::Key(key.to_owned()));
    }
    for peer in [
        "",
        "automl",
        "/",
        "/automl/",
        "spiffe://tars.local/automl",
        "/a b",
    ] {
        let found = refused(&row(&format!("peer = \"{peer}\""), "internal"));
        assert!(
            matches!(found, OverrideError::Peer { .. }),
            "{peer}: {found}"
        );
    }
    for peer in ["/automi", "/user", "/ns/prod/sa/nobody"] {
        let found = refused(&row(&format!("peer = \"{peer}\""), "internal"));
        assert_eq!(found, OverrideError::Classless(peer.to_owned()));
    }
    for good in [
        row("user = \"ada\"", "user"),
        row(
            "user = \"0198c5b2-d3e4-7000-8000-000000000001\"",
            "identity",
        ),
        row("key = \"0198c5b2d3e4\"", "key-changes"),
        row("peer = \"/ns/prod/sa/automl\"", "internal"),
        row("peer = \"/client/bot\"", "internal"),
        row("peer = \"/user/ada\"", "user"),
        row("address = \"10.1.2.3\"", "public"),
        row("address = \"2001:db8::/64\"", "public"),
    ] {
        assert_eq!(plan(&good).overrides(), 1, "{good}");
    }
}

#[test]
fn an_override_that_an_earlier_one_hides_is_refused() {
    let twice = row("user = \"ada\"", "user") + &row("user = \"ada\"", "user");
    assert_eq!(refused(&twice), OverrideError::Again(1, Kind::User));
    let others = row("user = \"ada\"", "identity") + &row("key = \"0198c5b2d3e4\"", "user");
    assert_eq!(
        plan(&format!("{}{others}", row("user = \"ada\"", "user")))
            .users
            .len(),
        1
    );
    let (wide, narrow) = (
        row("address = \"10.0.0.0/8\"", "auth"),
        row("address = \"10.1.0.0/16\"", "auth"),
    );
    let message = mistakes(&format!("{wide}{narrow}"))[0].to_string();
    assert_eq!(
        message,
        "override 2: every address of 10.1.0.0/16 has the limit of override 1, 10.0.0.0/8: put the smaller network first"
    );
    plan(&format!("{narrow}{wide}"));
    plan(&format!(
        "{wide}{}",
        row("address = \"10.1.0.0/16\"", "public")
    ));
}

/// Every way in which the contract lets a call be charged to somebody that an override can name, as a limit, a kind
/// and, of a peer, its class.
fn charged() -> Vec<(LimitName, Kind, Option<PeerClass>)> {
    let (plan, policy) = (plan(""), PolicyHandle::default());
    let mut all = Vec::new();
    for method in contract().unwrap().iter() {
        for class in PeerClass::ALL {
            for has_caller in [false, true] {
                let call = by_peer(&method.path, class, "/peer");
                if has_caller {
                    call.set_caller(caller("ada", "user:ada", Permissions::ALL));
                }
                if decide(&policy, &call) != Verdict::Allowed {
                    continue;
                }
                let charges = plan.charges(&call);
                all.extend(charges.iter().map(|charge| match charge.subject {
                    Subject::Name("ada") => (charge.limit.name, Kind::User, None),
                    Subject::Address(_) | Subject::Site(_) => {
                        (charge.limit.name, Kind::Address, None)
                    }
                    _ => (charge.limit.name, Kind::Peer, Some(class)),
                }));
            }
        }
    }
    all
}

#[test]
fn every_limit_that_counts_somebody_can_be_overridden_for_them_and_no_other() {
    let charged = charged();
    for limit in LimitName::ALL {
        for kind in [Kind::User, Kind::Address] {
            let counts = charged.iter().any(|(l, k, _)| (*l, *k) == (limit, kind));
            assert_eq!(limit.counts().contains(&kind), counts, "{limit} {kind}");
        }
        // A key stands for its owner.
        let of = |kind| limit.counts().contains(&kind);
        assert_eq!(of(Kind::Key), of(Kind::User), "{limit}");
        let mut by_peer = false;
        // A joiner has no certificate, and so no path.
        for class in PeerClass::ALL
            .into_iter()
            .filter(|c| *c != PeerClass::Joiner)
        {
            let counts = charged.contains(&(limit, Kind::Peer, Some(class)));
            assert_eq!(file::counts_class(limit, class), counts, "{limit} {class}");
            by_peer |= counts;
        }
        assert_eq!(of(Kind::Peer), by_peer, "{limit}");
    }
}
