use super::*;
use crate::fixtures::{ME, by_credential, by_peer, call};
use std::sync::Arc;

const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
const CREATE_KEY: &str = "/tars.auth.v1.ApiKeyService/CreateApiKey";

fn plan(text: &str) -> Plan {
    Plan::new(&Limits::default()).with(text).unwrap()
}

fn mistakes(text: &str) -> Vec<String> {
    Plan::new(&Limits::default()).with(text).unwrap_err()
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
    let mut caller = Arc::unwrap_or_clone(crate::fixtures::caller(
        "ada-id",
        "key:1",
        tars_credentials::Permissions::ALL,
    ));
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
    assert_eq!(of(&own("peer = \"/gateway\""), &ada).calls, 600);
}

#[test]
fn a_key_with_a_limit_of_its_own_is_not_charged_to_its_owner() {
    let plan = own("key = \"k1\"");
    let (k1, k2) = (by_key("k1"), by_key("k2"));
    let charge = plan.charges(&k1).class;
    assert_eq!(
        (charge.limit.calls, charge.subject),
        (5, Subject::Key("k1"))
    );
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
fn every_mistake_is_reported_and_nothing_is_changed() {
    let size = "calls = 5\nwindow_seconds = 1\n";
    for (text, reason) in [
        ("[limit.auth]\ncalls = 0\nwindow_seconds = 60", "calls"),
        ("[limit.auth]\ncalls = 10001\nwindow_seconds = 60", "calls"),
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
    ] {
        let found = mistakes(text).join("; ");
        assert!(found.contains(reason), "{text}: {found}");
    }
    let two = format!("[[override]]\nuser = \"a\"\nkey = \"b\"\nlimit = \"user\"\n{size}");
    let address = format!("[[override]]\naddress = \"here\"\nlimit = \"auth\"\n{size}");
    assert_eq!(mistakes(&format!("{two}{address}")).len(), 2);
}
