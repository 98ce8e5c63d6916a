//! Certificates and keys as an authority's contents hold them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// A root and its intermediates, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RootContents {
    pub(super) cert: String,
    /// `None` while the key is offline.
    pub(super) key: Option<Zeroizing<String>>,
    /// By the name of their files, without an extension.
    pub(super) intermediates: BTreeMap<String, Pair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    pub(super) cert: String,
    /// `None` when its file is gone, which only an expired intermediate may be without.
    pub(super) key: Option<Zeroizing<String>>,
}
