//! What a replica has for itself, and does not share.
//!
//! Everything else is the database's: users, sessions, keys, lineages, reports, the deny-list, the numbers
//! of changes and lists, and who does the periodic work.

use crate::{
    AuthError,
    certificates::{LastSeen, OwnReport, SignedLists},
    password::Passwords,
    repeats::Repeats,
    sessions::Sweep,
    throttle::Throttle,
};
use tars_certs::ca::rotation::StepRecord;
use tars_runtime::{clock::Monotonic, health::Condition};
use tokio::sync::Mutex;

/// The state of one process. A restart loses it, and nothing that counts with it.
#[derive(Debug)]
pub(crate) struct Own {
    /// The threads that hash passwords: the cost is this machine's.
    pub(crate) passwords: Passwords,
    /// Failed logins at this replica.
    pub(crate) throttle: Throttle,
    /// Refresh tokens that were used here, by the monotonic clock; the row of a use is everybody's.
    pub(crate) repeats: Repeats,
    /// When this replica, holding the lease, last looked for ended sessions.
    pub(crate) sweep: Sweep,
    /// Revocation lists that were signed here, under numbers from the database.
    pub(crate) signed_lists: SignedLists,
    /// When each process was last heard from, by the monotonic clock, at whichever replica.
    pub(crate) last_seen: LastSeen,
    /// What this replica reports of itself to the others.
    pub(crate) report: OwnReport,
    /// Serializes the steps of a root rotation that are requested of this process. Those of other
    /// replicas are held off by the version of the roots.
    pub(crate) rotating: Mutex<()>,
    /// The last rotation step that is known to have its audit record. Its number alone does not tell: that is
    /// taken again after the database fell back.
    pub(crate) recorded_step: parking_lot::Mutex<Option<StepRecord>>,
    /// Whether audit records move into the log, as far as this replica is the one that moves them.
    pub(crate) sequencing: Condition,
}

impl Own {
    pub(crate) fn new(now: Monotonic, sequencing: Condition) -> Result<Self, AuthError> {
        Ok(Self {
            passwords: Passwords::new()?,
            throttle: Throttle::default(),
            repeats: Repeats::default(),
            sweep: Sweep::default(),
            signed_lists: SignedLists::default(),
            last_seen: LastSeen::new(now),
            report: OwnReport::default(),
            rotating: Mutex::default(),
            recorded_step: parking_lot::Mutex::default(),
            sequencing,
        })
    }
}
