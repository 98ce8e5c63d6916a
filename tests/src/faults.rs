//! Load on a mesh of replicas while what it depends on fails, and a checker of what was recorded.
//!
//! Every call is recorded with its answer. One that failed without a definite answer may or may not have
//! been carried out; everything else has to be found in the mesh afterwards exactly as it was acknowledged.

use crate::{
    PASSWORD, governed,
    postgres::Postgres,
    process::{Running, kill},
    redis::Redis,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tars::rest::{Rest, RestError};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// After this a call counts as failed without an answer.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// The pause between two calls of one worker.
const PAUSE: Duration = Duration::from_millis(25);
/// How soon a revoked key is refused by every process, with the time that a busy machine needs.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// How soon every replica carries out calls after the end of a fault, with the time that a busy machine
/// needs.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
/// States that no proposal leaves by itself.
const ENDED: &[&str] = &[
    "PROPOSAL_STATE_COMPLETED",
    "PROPOSAL_STATE_ROLLED_BACK",
    "PROPOSAL_STATE_FAILED",
    "PROPOSAL_STATE_NEEDS_ATTENTION",
    "PROPOSAL_STATE_REJECTED",
    "PROPOSAL_STATE_WITHDRAWN",
];

/// What a call led to.
#[derive(Debug)]
enum Answer {
    Done(Value),
    /// It was not carried out.
    Refused,
    /// It may have been carried out.
    Unknown,
}

/// One call, for how long a fault was felt.
#[derive(Debug, Clone)]
struct Call {
    what: &'static str,
    gateway: usize,
    began: Instant,
    ended: Instant,
    /// Whether there was no definite answer.
    failed: bool,
    /// What was answered other than success.
    message: Option<String>,
}

/// What is known of a change that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Acknowledged,
    Refused,
    Unknown,
}

impl From<&Answer> for Known {
    fn from(answer: &Answer) -> Self {
        match answer {
            Answer::Done(_) => Self::Acknowledged,
            Answer::Refused => Self::Refused,
            Answer::Unknown => Self::Unknown,
        }
    }
}

/// A use of a key after its revocation was acknowledged.
#[derive(Debug)]
struct Use {
    #[expect(dead_code, reason = "shown when a check fails")]
    gateway: usize,
    #[expect(dead_code, reason = "shown when a check fails")]
    after: Duration,
    accepted: bool,
}

/// So many refusals in a row show that every replica knows of a revocation: a gateway's calls are spread
/// over replicas, each of which learns of it by itself.
const REFUSALS: usize = 12;

/// The uses that count at last.
fn last_uses(uses: &[Use]) -> &[Use] {
    &uses[uses.len().saturating_sub(REFUSALS)..]
}

fn is_refused(uses: &[Use]) -> bool {
    last_uses(uses).iter().all(|each| !each.accepted)
}

#[derive(Debug, Default)]
struct History {
    calls: Vec<Call>,
    users: BTreeMap<String, Known>,
    /// By their reason, which is unique.
    reloads: BTreeMap<String, Known>,
    revoked: Vec<(String, Vec<Use>)>,
    studies: Vec<String>,
    /// Proposals that were approved and whose application was acknowledged.
    applied: BTreeSet<String>,
}

#[derive(Debug)]
struct Shared {
    /// Administrators, one at each replica.
    gateways: Vec<Rest>,
    /// The same without a credential.
    strangers: Vec<Rest>,
    history: Mutex<History>,
    next: AtomicU64,
    stop: CancellationToken,
}

/// How long a fault was felt.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Felt {
    /// The fault.
    pub fault: String,
    /// The number of calls between the fault and the recovery from it.
    pub calls: usize,
    /// How many of them failed.
    pub failed: usize,
    /// From the fault to the end of the last call that failed, in milliseconds.
    pub felt_ms: u64,
    /// The longest call that succeeded, in milliseconds.
    pub slowest_ms: u64,
}

impl fmt::Display for Felt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            calls,
            failed,
            felt_ms,
            slowest_ms,
        } = self;
        write!(
            f,
            "{fault}: {failed} of {calls} calls failed, felt for {felt_ms} ms, slowest success {slowest_ms} ms"
        )
    }
}

/// Callers that change and read everything at every replica, until it is ended.
pub struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts the callers, and waits until each has succeeded.
    ///
    /// # Panics
    ///
    /// If the administrator cannot log in, or a first study does not end.
    pub async fn start(mesh: &Running) -> Self {
        let password = std::fs::read_to_string(&mesh.ready.admin_password_file);
        let password = password.expect("the password file");
        let replicas = mesh.ready.replicas.iter();
        let strangers: Vec<_> = replicas.map(|r| Rest::new(&r.urls["gateway"])).collect();
        let mut admins = Vec::new();
        for gateway in &strangers {
            admins.push(gateway.login("admin", &password).await.expect("a login"));
        }
        let study = governed::study(&admins[0], 1).await;
        governed::finished(&admins[0], &study).await;
        let developer = json!({ "username": "dev", "password": PASSWORD, "roles": ["developer"] });
        let made = admins[0].post("/admin/users", developer).await;
        made.expect("a developer is created");
        let developer = strangers[0].login("dev", PASSWORD).await.expect("a login");
        let shared = Arc::new(Shared {
            gateways: admins,
            strangers,
            history: Mutex::default(),
            next: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        let mut workers = JoinSet::new();
        for at in 0..shared.gateways.len() {
            workers.spawn(Arc::clone(&shared).read(at));
            workers.spawn(Arc::clone(&shared).create_users(at));
            workers.spawn(Arc::clone(&shared).revoke_keys(at));
        }
        workers.spawn(Arc::clone(&shared).search());
        workers.spawn(Arc::clone(&shared).govern(developer, study));
        let this = Self { shared, workers };
        this.recovered().await;
        this
    }

    /// Waits until every kind of call succeeds at every replica, from now on.
    pub async fn recovered(&self) {
        let since = Instant::now();
        while let Some((what, gateway)) = self.missing(since) {
            assert!(
                since.elapsed() < RECOVERED_WITHIN,
                "no {what} at gateway {gateway} succeeds again: {:?}",
                self.last_calls(what, gateway)
            );
            sleep(PAUSE).await;
        }
    }

    /// A kind of call, and a replica where none of it has succeeded since then.
    fn missing(&self, since: Instant) -> Option<(&'static str, usize)> {
        let history = self.shared.history.lock();
        let calls = history.calls.iter().filter(|call| call.began >= since);
        let succeeded: BTreeSet<_> = calls
            .filter(|call| !call.failed)
            .map(|call| (call.what, call.gateway))
            .collect();
        let kinds = ["read", "user", "key"].into_iter();
        let mut wanted =
            kinds.flat_map(|what| (0..self.shared.gateways.len()).map(move |at| (what, at)));
        wanted.find(|kind| !succeeded.contains(kind))
    }

    fn last_calls(&self, what: &str, gateway: usize) -> Vec<Call> {
        let history = self.shared.history.lock();
        let own = history.calls.iter().rev();
        let own = own.filter(|call| (call.what, call.gateway) == (what, gateway));
        own.take(3).cloned().collect()
    }

    /// Brings about a fault, ends it after a while, and waits until the mesh has recovered. Returns how
    /// long it was felt.
    pub async fn suffer<T>(
        &self,
        fault: &str,
        lasts: Duration,
        on: &mut T,
        begin: impl Fn(&mut T),
        end: impl Fn(&mut T),
    ) -> Felt {
        let since = Instant::now();
        begin(on);
        sleep(lasts).await;
        end(on);
        self.recovered().await;
        self.felt(fault, since)
    }

    /// What a fault that began then did to the calls since.
    fn felt(&self, fault: &str, since: Instant) -> Felt {
        let history = self.shared.history.lock();
        let calls: Vec<_> = history
            .calls
            .iter()
            .filter(|call| call.ended >= since)
            .collect();
        let failed = || calls.iter().filter(|call| call.failed);
        let last = failed().map(|call| call.ended).max();
        let took = |call: &&&Call| call.ended - call.began;
        let slowest = calls
            .iter()
            .filter(|call| !call.failed)
            .map(|call| took(&call));
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Felt {
            fault: fault.to_owned(),
            calls: calls.len(),
            failed: failed().count(),
            felt_ms: last.map_or(0, |last| ms(last.saturating_duration_since(since))),
            slowest_ms: slowest.max().map_or(0, ms),
        }
    }

    /// Ends the callers, and checks what they recorded against the mesh, which must have recovered.
    ///
    /// # Panics
    ///
    /// With the first thing that is wrong.
    pub async fn check(mut self) {
        self.shared.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("no caller panics");
        }
        let history = std::mem::take(&mut *self.shared.history.lock());
        for rest in &self.shared.gateways {
            check_users(rest, &history).await;
            check_studies(rest, &history).await;
        }
        check_reloads(&self.shared.gateways[0], &history).await;
        check_revoked(&history);
        check_sagas(&self.shared.gateways[0], &history).await;
    }
}

impl Shared {
    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn goes_on(&self) -> bool {
        !self.stop.is_cancelled()
    }

    /// Makes a call, and records how it went.
    async fn call(
        &self,
        what: &'static str,
        gateway: usize,
        call: impl Future<Output = Result<Value, RestError>>,
    ) -> Answer {
        let began = Instant::now();
        let answered = timeout(CALL_LIMIT, call).await;
        let (answer, message) = match answered {
            Ok(Ok(value)) => (Answer::Done(value), None),
            Ok(Err(RestError::Refused {
                status, message, ..
            })) if status.is_client_error() => (Answer::Refused, Some(message)),
            Ok(Err(error)) => (Answer::Unknown, Some(error.to_string())),
            Err(_) => (Answer::Unknown, Some("no answer".to_owned())),
        };
        self.history.lock().calls.push(Call {
            what,
            gateway,
            began,
            ended: Instant::now(),
            failed: matches!(answer, Answer::Unknown),
            message,
        });
        answer
    }

    async fn read(self: Arc<Self>, at: usize) {
        while self.goes_on() {
            let listed = self.gateways[at].get("/api/v1/studies?page_size=1");
            self.call("read", at, listed).await;
            sleep(PAUSE).await;
        }
    }

    async fn create_users(self: Arc<Self>, at: usize) {
        while self.goes_on() {
            let name = format!("user-{at}-{}", self.unique());
            let body = json!({ "username": name, "password": PASSWORD, "roles": ["viewer"] });
            let made = self.gateways[at].post("/admin/users", body);
            let known = Known::from(&self.call("user", at, made).await);
            self.history.lock().users.insert(name, known);
            sleep(PAUSE).await;
        }
    }

    /// Makes a key at one replica, revokes it there, and uses it everywhere.
    async fn revoke_keys(self: Arc<Self>, at: usize) {
        while self.goes_on() {
            sleep(PAUSE).await;
            let name = format!("key-{at}-{}", self.unique());
            let made = json!({ "service_name": name });
            let made = self.gateways[at].post("/auth/service-token", made);
            let Answer::Done(key) = self.call("key", at, made).await else {
                continue;
            };
            let path = format!("/admin/api-keys/{}/revoke", governed::text(&key["key_id"]));
            let revoked = self.gateways[at].post(&path, json!({ "reason": "a test" }));
            if matches!(self.call("key", at, revoked).await, Answer::Done(_)) {
                let secret = governed::text(&key["api_key"]);
                let uses = self.use_revoked(&secret).await;
                self.history.lock().revoked.push((name, uses));
            }
        }
    }

    async fn use_revoked(&self, key: &str) -> Vec<Use> {
        assert!(!key.is_empty(), "the key is in the answer");
        let revoked = Instant::now();
        let mut uses = Vec::new();
        while revoked.elapsed() < REVOKED_WITHIN && (uses.len() < REFUSALS || !is_refused(&uses)) {
            for (gateway, stranger) in self.strangers.iter().enumerate() {
                let after = revoked.elapsed();
                let rest = stranger.clone().with_key(key);
                let used = timeout(CALL_LIMIT, rest.get("/auth/me")).await;
                let accepted = match used {
                    Ok(Ok(_)) => true,
                    Ok(Err(RestError::Refused { status, .. })) if status == 401 => false,
                    // Nobody decided.
                    _ => continue,
                };
                uses.push(Use {
                    gateway,
                    after,
                    accepted,
                });
            }
            sleep(PAUSE).await;
        }
        uses
    }

    async fn search(self: Arc<Self>) {
        while self.goes_on() {
            let body = json!({ "n_trials": TRIALS, "steps": "500", "sampler_type": "random" });
            let made = self.gateways[0].post("/api/v1/optimize", body);
            if let Answer::Done(study) = self.call("study", 0, made).await {
                let id = governed::text(&study["optimization_id"]);
                self.history.lock().studies.push(id);
            }
            sleep(20 * PAUSE).await;
        }
    }

    /// Changes the agent, by reloads and by proposals in turn.
    async fn govern(self: Arc<Self>, developer: Rest, study: String) {
        while self.goes_on() {
            self.reload().await;
            self.propose(&developer, &study).await;
            sleep(4 * PAUSE).await;
        }
    }

    async fn reload(&self) {
        let n = self.unique();
        let reason = format!("reload {n}");
        let gamma = 0.9 + (n % 900) as f64 / 10_000.0;
        let body = json!({ "hyperparameters": { "gamma": gamma }, "reason": reason });
        let at = usize::try_from(n).unwrap_or_default() % self.gateways.len();
        let reloaded = self.gateways[at].post(RELOAD, body);
        let known = Known::from(&self.call("reload", at, reloaded).await);
        self.history.lock().reloads.insert(reason, known);
    }

    async fn propose(&self, developer: &Rest, study: &str) {
        let body = json!({ "study_id": study, "verification_seeds": 2 });
        let proposed = developer.post("/api/v1/sync/propose", body);
        let Answer::Done(proposed) = self.call("propose", 0, proposed).await else {
            return;
        };
        let id = governed::text(&proposed["proposal"]["update_id"]);
        let body = json!({ "update_id": id, "without_assessment": true });
        let approved = self.gateways[0].post("/api/v1/sync/approve", body);
        if matches!(self.call("approve", 0, approved).await, Answer::Done(_)) {
            let path = format!("/api/v1/sync/apply/{id}");
            let applied = self.gateways[0].post(&path, json!({}));
            if matches!(self.call("apply", 0, applied).await, Answer::Done(_)) {
                self.history.lock().applied.insert(id.clone());
            }
        }
        // One at a time: the next would be refused while this one holds the agent.
        while self.goes_on() && !self.has_ended(&id).await {
            sleep(4 * PAUSE).await;
        }
    }

    async fn has_ended(&self, id: &str) -> bool {
        let path = format!("/api/v1/sync/proposals/{id}");
        match self.call("proposal", 0, self.gateways[0].get(&path)).await {
            Answer::Done(found) => {
                let state = governed::text(&found["proposal"]["state"]);
                !matches!(
                    state.as_str(),
                    "PROPOSAL_STATE_APPLYING"
                        | "PROPOSAL_STATE_GIVING_UP"
                        | "PROPOSAL_STATE_VERIFYING"
                        | "PROPOSAL_STATE_ROLLING_BACK"
                )
            }
            _ => false,
        }
    }
}

const TRIALS: u64 = 2;
const RELOAD: &str = "/api/v1/orchestration/agents/policy/reload";

/// Every item of a listing.
async fn all(rest: &Rest, path: &str, list: &str) -> Vec<Value> {
    let (mut items, mut token) = (Vec::new(), String::new());
    loop {
        let joint = if path.contains('?') { '&' } else { '?' };
        let page = format!("{path}{joint}page_size=200&page_token={token}");
        let page = rest.get(&page).await.expect("the mesh has recovered");
        items.extend(page[list].as_array().into_iter().flatten().cloned());
        token = governed::text(&page["next_page_token"]);
        if token.is_empty() {
            return items;
        }
    }
}

async fn check_users(rest: &Rest, history: &History) {
    let listed = all(rest, "/admin/users", "users").await;
    let there: BTreeSet<_> = listed
        .iter()
        .filter_map(|user| user["username"].as_str())
        .collect();
    let mut acknowledged = 0;
    for (name, known) in &history.users {
        let is_there = there.contains(name.as_str());
        match known {
            Known::Acknowledged => {
                acknowledged += 1;
                assert!(is_there, "{name} was acknowledged and is lost");
            }
            Known::Refused => assert!(!is_there, "{name} was refused and is there"),
            Known::Unknown => {}
        }
    }
    assert!(acknowledged > 20, "{acknowledged} users");
}

async fn check_studies(rest: &Rest, history: &History) {
    assert!(!history.studies.is_empty(), "no study was created");
    for id in &history.studies {
        let ended = governed::finished(rest, id).await;
        assert_eq!(ended["state"], "STUDY_STATE_COMPLETED", "{id}: {ended}");
        check_trials(rest, id, usize::try_from(TRIALS).unwrap_or_default()).await;
    }
}

/// Checks that each trial of a study was made once.
///
/// # Panics
///
/// If one was not, or the study is not there.
pub async fn check_trials(rest: &Rest, study: &str, expected: usize) {
    let trials = rest.get(&format!("/api/v1/studies/{study}/trials")).await;
    let trials = trials.expect("the mesh has recovered");
    let trials = trials["trials"].as_array().cloned().unwrap_or_default();
    let numbers = trials.iter().map(|trial| trial["number"].to_string());
    let numbers: BTreeSet<_> = numbers.collect();
    assert_eq!(
        (trials.len(), numbers.len()),
        (expected, expected),
        "{study}: {trials:?}"
    );
    for trial in &trials {
        let values = trial["intermediate_values"].as_array();
        let values = values.into_iter().flatten();
        let steps: Vec<_> = values.map(|value| value["step"].to_string()).collect();
        let distinct: BTreeSet<_> = steps.iter().collect();
        assert_eq!(
            steps.len(),
            distinct.len(),
            "{study}: reported twice: {trial}"
        );
    }
}

/// How often each reload was carried out, by its reason.
async fn reloads(rest: &Rest) -> BTreeMap<String, usize> {
    let path = "/admin/audit/logs?event_type=admin.agent.reload";
    let mut counts = BTreeMap::new();
    for event in all(rest, path, "events").await {
        *counts
            .entry(governed::text(&event["details"]["reason"]))
            .or_default() += 1;
    }
    counts
}

/// The audit list has each reload that was carried out; records arrive a moment later.
async fn check_reloads(rest: &Rest, history: &History) {
    let acknowledged = || {
        let all = history.reloads.iter();
        all.filter(|(_, known)| **known == Known::Acknowledged)
    };
    assert!(acknowledged().count() > 0, "no reload was acknowledged");
    crate::eventually("every acknowledged reload is recorded", || async {
        let counts = reloads(rest).await;
        acknowledged().all(|(reason, _)| counts.contains_key(reason))
    })
    .await;
    let counts = reloads(rest).await;
    for (reason, known) in &history.reloads {
        let count = counts.get(reason).copied().unwrap_or_default();
        let most = usize::from(*known != Known::Refused);
        assert!(count <= most, "{reason} ({known:?}) was done {count} times");
    }
}

/// Every replica refuses a revoked key at last.
fn check_revoked(history: &History) {
    assert!(!history.revoked.is_empty(), "no key was revoked");
    for (name, uses) in &history.revoked {
        assert!(is_refused(uses), "{name} still works: {uses:?}");
    }
}

async fn check_sagas(rest: &Rest, history: &History) {
    let refused = |call: &&Call| matches!(call.what, "propose" | "approve" | "apply");
    let refused: BTreeSet<_> = history
        .calls
        .iter()
        .filter(refused)
        .map(|call| &call.message)
        .collect();
    assert!(
        !history.applied.is_empty(),
        "no proposal was applied: {refused:?}"
    );
    for id in &history.applied {
        let ended = governed::final_state(rest, id).await;
        let state = governed::text(&ended["state"]);
        assert!(ENDED.contains(&state.as_str()), "{id}: {ended}");
    }
}

/// Every fault in turn, on a mesh of two replicas under load.
#[derive(Debug)]
pub struct Faults {
    /// The database of the mesh.
    pub postgres: Postgres,
    /// The event bus of the mesh.
    pub redis: Redis,
    /// How long each fault lasts.
    pub lasts: Duration,
}

impl Faults {
    /// Brings about what can happen to Redis. No call needs it.
    pub async fn of_redis(&mut self, load: &Load) -> Vec<Felt> {
        let (redis, lasts) = (&mut self.redis, self.lasts);
        let restarted = Redis::start_again;
        vec![
            load.suffer("Redis is killed", lasts, redis, Redis::kill, restarted)
                .await,
            load.suffer("Redis hangs", lasts, redis, |r| r.freeze(), |r| r.thaw())
                .await,
            load.suffer("Redis is flushed", lasts, redis, |r| r.flush(), |_| {})
                .await,
        ]
    }

    /// Brings about what can happen to the database.
    pub async fn of_postgres(&mut self, load: &Load) -> Vec<Felt> {
        let (postgres, lasts) = (&mut self.postgres, self.lasts);
        let restarted = Postgres::start_again;
        vec![
            load.suffer(
                "PostgreSQL is restarted",
                lasts,
                postgres,
                Postgres::kill,
                restarted,
            )
            .await,
            load.suffer(
                "PostgreSQL hangs",
                lasts,
                postgres,
                |p| p.freeze(),
                |p| p.thaw(),
            )
            .await,
            load.suffer("connections are cut", lasts, postgres, |p| p.cut(), |_| {})
                .await,
        ]
    }

    /// Kills the process of each replica in turn; its supervisor starts it again.
    pub async fn of_replicas(&mut self, load: &Load, mesh: &mut Running) -> Vec<Felt> {
        let mut felt = Vec::new();
        let replicas = mesh.current().map(|ready| ready.replicas);
        for replica in replicas.into_iter().flatten() {
            let fault = format!("replica {} is killed", replica.number);
            let begin = |_: &mut Running| kill(replica.pid);
            felt.push(load.suffer(&fault, self.lasts, mesh, begin, |_| {}).await);
        }
        felt
    }
}
