//! Refuses methods of the contract that this listener does not serve. The caller is told which
//! workload serves them, but no address.

use crate::{Call, check::Check, contract};
use std::sync::Arc;
use tars_proto::{fault, reason, table::Method};
use tonic::{Code, Status};

/// The check for methods that are served elsewhere. Clones share the table.
#[derive(Debug, Clone)]
pub struct Served {
    /// By method index.
    here: Arc<[bool]>,
}

impl Served {
    /// Creates the check; `is_here` decides for each method of the contract.
    pub fn new(is_here: impl Fn(&Method) -> bool) -> Self {
        let here = contract().map(|table| table.iter().map(is_here).collect());
        Self {
            here: here.unwrap_or_default(),
        }
    }
}

fn elsewhere(method: &Method) -> Status {
    let (service, name) = (&method.service, &method.name);
    let workload = method.workload().unwrap_or_default();
    let message = format!("{service}/{name} is not served on this port; {workload} serves it");
    let names = [("workload", workload)];
    fault::status_with(Code::Unimplemented, reason::WRONG_SERVICE, &message, &names)
}

impl Check for Served {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        let here = self.here.get(call.method.index).copied().unwrap_or(false);
        if here {
            Ok(())
        } else {
            Err(elsewhere(call.method))
        }
    }
}
