//! Applies the items of Auth's watch stream in order, and detects missing ones.
//!
//! Changes are numbered consecutively. A follower that finds a gap has missed a change, and must
//! request a snapshot instead of continuing. Receiving an item twice is harmless.

use crate::{View, trust};
use tars_certs::TrustFeed;
use tars_proto::auth::v1::WatchCredentialsResponse;

/// One or more items are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("change {got} came after change {after:?}")]
pub struct Gap {
    /// The last item that was applied; `None` before the first snapshot.
    pub after: Option<u64>,
    /// The number of the item that does not follow it.
    pub got: u64,
}

/// Maintains the view and the trust feed of a process from one stream.
#[derive(Debug)]
pub struct Follower {
    view: View,
    feed: TrustFeed,
    at: Option<u64>,
}

impl Follower {
    /// Follows a new stream, whose first item must be a snapshot.
    pub fn new(view: View, feed: TrustFeed) -> Self {
        Self {
            view,
            feed,
            at: None,
        }
    }

    /// Applies the next item.
    ///
    /// # Errors
    ///
    /// [`Gap`] when the item does not follow the last one. Nothing of it is applied then.
    pub fn apply(&mut self, item: &WatchCredentialsResponse, now_s: u64) -> Result<(), Gap> {
        let got = item.sequence;
        match self.at {
            _ if item.reset => self.accept(item, now_s),
            Some(at) if got == at + 1 => self.accept(item, now_s),
            // A heartbeat, or a duplicate: it only proves that the stream is alive.
            Some(at) if got <= at => self.view.refresh(),
            after => return Err(Gap { after, got }),
        }
        Ok(())
    }

    /// The number of the last item that was applied.
    pub fn position(&self) -> Option<u64> {
        self.at
    }

    fn accept(&mut self, item: &WatchCredentialsResponse, now_s: u64) {
        self.feed.apply(trust::update(item));
        self.view.apply(item, now_s);
        self.at = Some(item.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_proto::auth::v1::RoleView;

    fn item(sequence: u64, role: &str) -> WatchCredentialsResponse {
        WatchCredentialsResponse {
            sequence,
            roles: vec![RoleView {
                name: role.into(),
                permissions: vec![],
            }],
            ..Default::default()
        }
    }

    fn whole(sequence: u64) -> WatchCredentialsResponse {
        WatchCredentialsResponse {
            reset: true,
            ..item(sequence, "whole")
        }
    }

    fn roles(view: &View) -> Vec<String> {
        view.roles().into_iter().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn items_are_applied_once_in_order_and_a_gap_is_reported() {
        let view = View::default();
        let mut follower = Follower::new(view.clone(), TrustFeed::default());
        let early = follower.apply(&item(1, "early"), 0).unwrap_err();
        assert_eq!(
            early,
            Gap {
                after: None,
                got: 1
            },
            "nothing is applied before a snapshot"
        );
        follower.apply(&whole(5), 0).unwrap();
        follower.apply(&item(4, "old"), 0).unwrap();
        follower.apply(&item(5, "same"), 0).unwrap();
        assert_eq!(roles(&view), ["whole"], "duplicates are not applied");
        follower.apply(&item(6, "six"), 0).unwrap();
        let gap = follower.apply(&item(8, "eight"), 0).unwrap_err();
        assert_eq!(
            gap,
            Gap {
                after: Some(6),
                got: 8
            }
        );
        assert_eq!(
            roles(&view),
            ["six", "whole"],
            "nothing after the gap is applied"
        );
        follower.apply(&whole(3), 0).unwrap();
        assert_eq!(
            roles(&view),
            ["whole"],
            "a snapshot replaces the view, whatever its number"
        );
        assert_eq!(follower.position(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_refreshes_the_view_unless_it_reveals_a_gap() {
        let view = View::default();
        let mut follower = Follower::new(view.clone(), TrustFeed::default());
        follower.apply(&whole(5), 0).unwrap();
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        let beat = |sequence| WatchCredentialsResponse {
            sequence,
            ..Default::default()
        };
        assert!(
            follower.apply(&beat(7), 0).is_err(),
            "two changes were missed"
        );
        assert!(view.age().unwrap() >= std::time::Duration::from_secs(3));
        follower.apply(&beat(5), 0).unwrap();
        assert_eq!(view.age().unwrap(), std::time::Duration::ZERO);
    }
}
