//! The reasons of refusals: the `reason` of the `ErrorInfo` that each status carries.
//!
//! Programs branch on them, so a reason is never renamed once it has shipped. Services, layers and
//! commands name a reason by its constant here, and by nothing else.

/// Declares constants whose value is their name.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
    };
}

// Any service.
reasons! {
    /// A field of the request violates its rule; the details name it.
    INVALID_FIELD,
    /// The message does not decode.
    MALFORMED_MESSAGE,
    /// The message exceeds its maximum size.
    MESSAGE_TOO_LARGE,
    /// The message is encoded in a way that the method does not accept; `grpc-accept-encoding` names those
    /// that it does.
    UNKNOWN_ENCODING,
    /// There is no such resource; the details name its kind and id.
    NOT_FOUND,
    /// The resource exists already; the details name it.
    ALREADY_EXISTS,
    /// A concurrent change won; read again and repeat.
    CONFLICT,
    /// Another replica works on the resource, or has died while it did; repeat after the delay, by which
    /// its lease has ended unless it is alive.
    OWNED_ELSEWHERE,
    /// The service failed; its log has the details.
    INTERNAL,
    /// The database is busy or unreachable, and nothing was changed.
    STORE,
    /// The connection was lost during a commit, which may have happened or not.
    OUTCOME_UNKNOWN,
    /// A row of the database cannot be read.
    CORRUPT_ROW,
    /// The events that follow the given sequence number are no longer kept, or the number was never given.
    TRIMMED,
}

// The layers around a service, and the mesh.
reasons! {
    /// There is no credential, or it is not valid.
    INVALID_CREDENTIALS,
    /// More than one credential was sent.
    AMBIGUOUS_CREDENTIALS,
    /// The service has not heard from Auth for too long to accept credentials.
    STALE_CREDENTIALS,
    /// The caller lacks the permission that the method requires.
    PERMISSION_DENIED,
    /// The policy does not let this peer call the method.
    PEER_NOT_ALLOWED,
    /// The method belongs to another service of the mesh.
    WRONG_SERVICE,
    /// There is no such method.
    UNKNOWN_METHOD,
    /// The caller exceeds its rate limit.
    RATE_LIMITED,
    /// The caller has used what its quota allows in this month; the details say of what, how much is left, and
    /// when the next month begins.
    QUOTA_EXCEEDED,
    /// What the caller has used is not known at this process yet, which has just started; repeat after the delay.
    USAGE_UNKNOWN,
    /// The caller has as many calls open as its share allows.
    SHARE_FULL,
    /// The service has as many calls in flight as it can.
    OVERLOADED,
    /// A connection sent more refused calls than it may.
    FLOOD,
    /// The audit trail has no room for a record that must be written.
    AUDIT_FULL,
    /// The call did not end before its deadline.
    DEADLINE_EXCEEDED,
    /// The request did not arrive in time.
    REQUEST_TIMEOUT,
    /// The timeout of the call is not valid.
    INVALID_TIMEOUT,
    /// The peer did not read the response.
    STALLED,
    /// The server is stopping.
    STOPPING,
    /// The connection is closing.
    CONNECTION_CLOSING,
    /// The headers exceed their maximum size.
    HEADERS_TOO_LARGE,
    /// A header whose name ends in `-bin` is not base64.
    MALFORMED_HEADER,
    /// A certificate of the calling process is revoked.
    OWN_CERTIFICATE_REVOKED,
    /// The other service cannot be reached.
    UNREACHABLE,
}

// The REST gateway.
reasons! {
    /// There is no such path.
    NO_SUCH_PATH,
    /// The path has no such method.
    METHOD_NOT_ALLOWED,
    /// The content type is not JSON.
    UNSUPPORTED_MEDIA_TYPE,
    /// The body is compressed.
    UNSUPPORTED_ENCODING,
    /// The body exceeds its maximum size.
    BODY_TOO_LARGE,
    /// The path and its query exceed their maximum length.
    PATH_TOO_LONG,
    /// The request did not arrive in time.
    REQUEST_TOO_SLOW,
    /// The request is not valid HTTP/1.1.
    MALFORMED_REQUEST,
    /// Too many answers have not been read by their clients: of the address, or in total.
    UNREAD_ANSWERS,
    /// The body is not valid JSON, or not of the message.
    MALFORMED_JSON,
    /// The address, or the gateway, has as many connections open as it may.
    TOO_MANY_CONNECTIONS,
}

// Auth.
reasons! {
    /// Too many logins to the account have failed.
    LOGIN_THROTTLED,
    /// Too many passwords wait to be checked.
    LOGIN_BUSY,
    /// The caller's network has too many passwords waiting to be checked.
    LOGIN_SHARE,
    /// The name of the user is taken.
    USER_EXISTS,
    /// The caller does not hold what it would grant or take away.
    EXCEEDS_CALLER,
    /// The last enabled administrator would be lost.
    LAST_ADMIN,
    /// The API key is revoked.
    KEY_REVOKED,
    /// A change is stored but not announced yet.
    UNANNOUNCED,
    /// The mesh has no authority of its own.
    NO_AUTHORITY,
    /// The join token is not valid.
    INVALID_JOIN_TOKEN,
    /// The caller has too many join tokens outstanding.
    TOO_MANY_TOKENS,
    /// Another authority issued the certificate.
    NOT_ISSUED_HERE,
    /// The certificate can no longer be renewed.
    LINEAGE_ENDED,
    /// Not every peer is ready for the step of a root rotation.
    PEERS_NOT_READY,
    /// The step of a root rotation would invalidate certificates in use.
    WOULD_CUT_OFF,
    /// The step of a root rotation is not the next one.
    ROOT_ORDER,
}

// Orchestration.
reasons! {
    /// The agent does not exist in this mesh, whose environment its algorithm cannot act in.
    AGENT_NOT_BUILT,
    /// The agent has no weights yet.
    UNTRAINED,
    /// Another version of the agent is live than the caller expects.
    VERSION_CHANGED,
    /// No earlier version of the agent's weights is retained that it could be rolled back to.
    NO_EARLIER_VERSION,
    /// The weights of the version are damaged, or do not fit the agent.
    UNUSABLE_VERSION,
    /// The agent is not bound to the live mesh, so that its versions take no stage but ACTIVE.
    NOT_BOUND,
    /// The agent has no rules, so that there is nothing to compare its versions with.
    NO_RULES,
    /// The version climbs one stage at a time, or what is promoted takes no such stage.
    STAGE_ORDER,
    /// The step up takes a proposal that another person approves.
    GOVERNED,
    /// The model of the mesh is not calibrated, or was not for too long.
    UNCALIBRATED,
    /// The version was not compared with what it would replace, or on too few seeds.
    NOT_COMPARED,
    /// The version is not shown to be as good as what it would replace, or is worse than a rule.
    NOT_BETTER,
    /// The version has answered too few steps in CANARY, or the shield blocked too many of them.
    CANARY_UNPROVEN,
    /// The work that the call is a part of has been taken over by another process of its service.
    SUPERSEDED,
    /// The replica does not know whether what it would serve is live; another one may.
    REPLICA_BEHIND,
    /// The change is made, and not every replica serves it yet; the same call goes on waiting.
    ROLLOUT_PENDING,
    /// Another change of the agent is in progress; the details name it.
    CHANGE_IN_PROGRESS,
    /// A change of the agent waits for a person; the details name it.
    NEEDS_ATTENTION,
    /// The change does not hold the agent.
    NOT_HELD,
    /// The agent is being trained.
    TRAINING_RUNS,
    /// The agents cannot be trained together: they live in different environments, or have the same place
    /// in one.
    NOT_TOGETHER,
    /// As many runs are paused as may be.
    TOO_MANY_PAUSED,
    /// Too many runs wait for a learner.
    LEARNERS_BUSY,
    /// Too many games are being solved.
    SOLVERS_BUSY,
    /// The constraints forbid every joint action.
    NOTHING_ALLOWED,
    /// The session is closed.
    SESSION_CLOSED,
    /// The caller has as many sessions open as it may.
    SESSIONS_FULL,
    /// The session was stored by a version of the service with another world.
    SESSION_UNUSABLE,
    /// The training diverged.
    DIVERGED,
    /// The computation did not end within its time limit.
    TIME_LIMIT,
    /// A host of an environment speaks another version of the protocol, or said what was not asked for.
    HOST_PROTOCOL,
    /// The answer of a host is impossible; the details name its field.
    HOST_ANSWER,
    /// A host took too long for an answer, or for a whole run.
    HOST_LATE,
    /// There are too many sessions of hosts, of the caller or in total, or a host has no copies left.
    HOSTS_BUSY,
    /// The host of an environment went away during a run, and did not come back in time.
    HOST_GONE,
    /// The run trains in an environment that is lent, which cannot be saved.
    NOT_SAVED,
}

// AutoML.
reasons! {
    /// The study has ended.
    STUDY_ENDED,
    /// The study has all its trials.
    STUDY_FULL,
    /// The server runs the trials of the study.
    SERVER_RUN,
    /// The trial has ended.
    TRIAL_ENDED,
    /// Too many studies are running.
    STUDIES_BUSY,
    /// The caller has as many studies as there may be, in all or of those that have not ended.
    STUDIES_FULL,
}

// HyperSync.
reasons! {
    /// The study has no finished trial to propose.
    NO_FINISHED_TRIAL,
    /// The study belongs to no agent.
    NO_AGENT,
    /// The proposed values are live already.
    NO_CHANGE,
    /// The proposal was made against another version of the agent than the live one.
    STALE,
    /// The proposal is not lost, and ends on its own or by a decision.
    NOT_LOST,
    /// The assessment of the proposal is not finished.
    ASSESSMENT_PENDING,
    /// The assessment of the proposal failed.
    ASSESSMENT_FAILED,
    /// Only the proposer, or a caller who may approve, withdraws a proposal.
    NOT_YOURS,
    /// The proposer must not decide.
    FOUR_EYES,
    /// The state of the proposal, or of the training run, does not allow the call.
    WRONG_STATE,
}
