//! Takes the items of Auth's stream in their order, and notices when one is missing.
//!
//! A change has the number after the one before; whoever finds a gap has missed something, and must
//! ask for a whole view rather than go on. What was heard before is heard again without harm.

use crate::{View, trust};
use tars_certs::TrustFeed;
use tars_proto::auth::v1::WatchCredentialsResponse;

/// One item was missed, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("change {got} came after change {after:?}")]
pub struct Gap {
    /// The last one taken; `None` before the first whole view.
    pub after: Option<u64>,
    pub got: u64,
}

/// Fills a process's view and its trust from one stream.
#[derive(Debug)]
pub struct Follower {
    view: View,
    feed: TrustFeed,
    at: Option<u64>,
}

impl Follower {
    /// Follows a stream that begins now, with a whole view.
    pub fn new(view: View, feed: TrustFeed) -> Self {
        Self {
            view,
            feed,
            at: None,
        }
    }

    /// Takes the next item.
    ///
    /// # Errors
    ///
    /// [`Gap`] when it is not the next; nothing of it was taken then.
    pub fn apply(&mut self, item: &WatchCredentialsResponse, now_s: u64) -> Result<(), Gap> {
        let got = item.sequence;
        match self.at {
            _ if item.reset => self.accept(item, now_s),
            Some(at) if got == at + 1 => self.accept(item, now_s),
            // A heartbeat, or something that is known: only that it was heard counts.
            Some(at) if got <= at => self.view.heard(),
            after => return Err(Gap { after, got }),
        }
        Ok(())
    }

    /// The last change that was taken.
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
    async fn items_are_taken_once_in_order_and_a_gap_is_told() {
        let view = View::default();
        let mut follower = Follower::new(view.clone(), TrustFeed::default());
        let early = follower.apply(&item(1, "early"), 0).unwrap_err();
        assert_eq!(
            early,
            Gap {
                after: None,
                got: 1
            },
            "nothing before a whole view"
        );
        follower.apply(&whole(5), 0).unwrap();
        follower.apply(&item(4, "old"), 0).unwrap();
        follower.apply(&item(5, "same"), 0).unwrap();
        assert_eq!(roles(&view), ["whole"], "what was known is not taken again");
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
            "nothing of what came after the gap"
        );
        follower.apply(&whole(3), 0).unwrap();
        assert_eq!(
            roles(&view),
            ["whole"],
            "a whole view replaces, wherever it stands"
        );
        assert_eq!(follower.position(), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_keeps_the_view_fresh_and_one_past_the_end_does_not() {
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
