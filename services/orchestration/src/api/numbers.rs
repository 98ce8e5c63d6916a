//! Numbers of the wire, which are unsigned, and of the database, which are not.

use crate::OrchestrationError;

/// A number of the database, which is not below zero.
pub(super) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

/// A number of a request.
///
/// # Errors
///
/// When it is larger than any that the service gives.
pub(super) fn signed(field: &'static str, n: u64) -> Result<i64, OrchestrationError> {
    i64::try_from(n).map_err(|_| OrchestrationError::TooLarge(field))
}

/// A number of a request, if it was given.
///
/// # Errors
///
/// As [`signed`].
pub(super) fn given(
    field: &'static str,
    n: Option<u64>,
) -> Result<Option<i64>, OrchestrationError> {
    n.map(|n| signed(field, n)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_the_service_cannot_have_given_is_refused_by_name() {
        let largest = i64::MAX as u64;
        assert_eq!(signed("version", 0).unwrap(), 0);
        assert_eq!(signed("version", largest).unwrap(), i64::MAX);
        assert_eq!(given("version", None).unwrap(), None);
        assert_eq!(given("version", Some(7)).unwrap(), Some(7));
        for wrong in [largest + 1, u64::MAX] {
            let refused = given("version", Some(wrong)).unwrap_err();
            let status = tonic::Status::from(refused);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains("version"), "{status}");
        }
    }
}
