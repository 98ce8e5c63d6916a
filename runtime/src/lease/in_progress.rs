//! What this process is doing already, by name.

use parking_lot::Mutex;
use std::{collections::HashSet, sync::Arc};

/// The names of owned work that this process does or is about to do, so that it is not begun twice: a
/// piece of work may wait for its turn before it takes its lease. Clones share the names.
#[derive(Debug, Clone, Default)]
pub struct InProgress(Arc<Mutex<HashSet<String>>>);

impl InProgress {
    /// Enters a name, until what is returned is dropped. `None` when it is there already.
    pub fn enter(&self, name: &str) -> Option<Entry> {
        let is_new = self.0.lock().insert(name.to_owned());
        is_new.then(|| Entry {
            names: self.clone(),
            name: name.to_owned(),
        })
    }

    /// Whether a name is entered.
    pub fn contains(&self, name: &str) -> bool {
        self.0.lock().contains(name)
    }
}

/// An entered name, which is removed when this is dropped.
#[derive(Debug)]
#[must_use = "the name is removed when this is dropped"]
pub struct Entry {
    names: InProgress,
    name: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.names.0.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_entered_once_at_a_time() {
        let work = InProgress::default();
        let entry = work.enter("a").unwrap();
        assert!(work.enter("a").is_none() && work.contains("a"));
        let _other = work.enter("b").unwrap();
        drop(entry);
        assert!(!work.contains("a"));
        let _again = work.enter("a").unwrap();
    }
}
