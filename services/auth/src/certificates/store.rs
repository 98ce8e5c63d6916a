//! The SQL of certificates.

mod issued;
mod reports;
mod revocations;

pub(crate) use issued::{
    ELSEWHERE, IssuedRow, LineageRow, drop_issued, end_lineage, end_lineages, find_issued,
    find_lineage, insert_issued, managed_lineage, save_lineage, unexpired, use_token,
};
pub(crate) use reports::{
    ReportRow, adopt_reports, drop_report, record_step, recorded_step, save_report,
};
pub(crate) use revocations::{
    RevocationRow, drop_expired, in_force, insert_revocation, next_list_number, revoked_before,
};
