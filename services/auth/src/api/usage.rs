//! The handlers of usage.

use crate::{
    Auth,
    usage::{Asked, Used},
};
use std::sync::Arc;
use tars_interceptors::{
    Call,
    usage::{Allowance, Usage as Counting},
};
use tars_proto::{auth::v1::*, fault, time::timestamp};
use tars_runtime::usage::{Answer, BadMonth, Dimension, Item, Month, Report};
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// The most months that one call returns.
const MONTHS: u32 = 36;

/// Implements the service of usage.
#[derive(Debug, Clone)]
pub(super) struct UsageApi {
    pub(super) auth: Arc<Auth>,
    pub(super) counting: Counting,
}

impl UsageApi {
    /// The months of a request, the present one where it names none.
    fn months(&self, first: &str, last: &str) -> Result<(Month, Month), Status> {
        let first = month("month", first)?.unwrap_or_else(|| self.auth.month());
        let last = month("last_month", last)?.unwrap_or(first);
        if last < first {
            return Err(fault::invalid_field(
                "last_month",
                "must not be before the first",
            ));
        }
        Ok((first, last))
    }
}

fn month(field: &str, text: &str) -> Result<Option<Month>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse();
    parsed
        .map(Some)
        .map_err(|e: BadMonth| fault::invalid_field(field, &e.to_string()))
}

fn usage(used: Used) -> Usage {
    let Used { row, closed } = used;
    Usage {
        month: row.month.to_string(),
        user_id: row.user_id.to_string(),
        username: row.username,
        calls: row.amounts.of(Dimension::Calls),
        training_steps: row.amounts.of(Dimension::TrainingSteps),
        solver_microseconds: row.amounts.of(Dimension::SolverSeconds),
        closed,
    }
}

fn quota(allowance: &Allowance, month: Month) -> Quota {
    let limit = |of: Dimension| allowance.of(of).map(|limit| limit / of.unit());
    Quota {
        calls: limit(Dimension::Calls),
        training_steps: limit(Dimension::TrainingSteps),
        solver_seconds: limit(Dimension::SolverSeconds),
        resets_at: Some(timestamp(
            i64::try_from(month.end().as_micros()).unwrap_or(i64::MAX),
        )),
    }
}

fn item(sent: UsageItem) -> Result<Item, Status> {
    let bad = |field: &str| fault::invalid_field(field, "is not valid in a report");
    let dimension = match UsageDimension::try_from(sent.dimension).unwrap_or_default() {
        UsageDimension::Unspecified => return Err(bad("items.dimension")),
        UsageDimension::Calls => Dimension::Calls,
        UsageDimension::TrainingSteps => Dimension::TrainingSteps,
        UsageDimension::SolverMicroseconds => Dimension::SolverSeconds,
    };
    Ok(Item {
        source: sent.source,
        number: i64::try_from(sent.number).map_err(|_| bad("items.number"))?,
        month: sent.month.parse().map_err(|_| bad("items.month"))?,
        user_id: sent.user_id,
        dimension,
        amount: sent.amount,
    })
}

fn response(answer: Answer) -> ReportUsageResponse {
    let totals = answer.totals.into_iter().map(|total| UsageTotal {
        month: total.month.to_string(),
        user_id: total.user_id,
        calls: total.amounts.of(Dimension::Calls),
        training_steps: total.amounts.of(Dimension::TrainingSteps),
        solver_microseconds: total.amounts.of(Dimension::SolverSeconds),
    });
    ReportUsageResponse {
        counted: u64::try_from(answer.counted).unwrap_or_default(),
        totals: totals.collect(),
        version: u64::try_from(answer.version).unwrap_or_default(),
        more: answer.more,
    }
}

/// The months of one user, each of which is there: nothing was used in one without a row.
fn filled(rows: Vec<Used>, (first, last): (Month, Month), user_id: &str, name: &str) -> Vec<Usage> {
    let mut rows = rows.into_iter().map(usage).peekable();
    let months = std::iter::successors(Some(first), |month| Some(month.next()));
    let months = months.take_while(|month| *month <= last);
    let filled = months.map(|month| {
        let month = month.to_string();
        let row = rows.next_if(|row| row.month == month);
        row.unwrap_or_else(|| Usage {
            month,
            user_id: user_id.to_owned(),
            username: name.to_owned(),
            ..Usage::default()
        })
    });
    filled.collect()
}

#[tonic::async_trait]
impl usage_service_server::UsageService for UsageApi {
    async fn get_usage(
        &self,
        request: Request<GetUsageRequest>,
    ) -> Result<Response<GetUsageResponse>, Status> {
        let call = Call::of(&request)?;
        let caller = call.require_caller()?;
        let GetUsageRequest { month, last_month } = request.into_inner();
        let (first, last) = self.months(&month, &last_month)?;
        if first.through(last) > MONTHS {
            let text = format!("must be less than {MONTHS} months after the first");
            return Err(fault::invalid_field("last_month", &text));
        }
        let user = Uuid::try_parse(&caller.owner_id).map_err(|_| fault::internal())?;
        let asked = Asked {
            first,
            last,
            user: Some(user),
        };
        let (rows, _) = self.auth.list_usage(&asked, "", MONTHS).await?;
        let allowance = self.counting.allowance(caller);
        Ok(Response::new(GetUsageResponse {
            months: filled(rows, (first, last), &caller.owner_id, &caller.username),
            quota: Some(quota(&allowance, self.auth.month())),
        }))
    }

    async fn list_usage(
        &self,
        request: Request<ListUsageRequest>,
    ) -> Result<Response<ListUsageResponse>, Status> {
        let asked = request.into_inner();
        let (first, last) = self.months(&asked.month, &asked.last_month)?;
        let user = match asked.user.as_str() {
            "" => None,
            named => Some(self.auth.user_named(named).await?),
        };
        let which = Asked { first, last, user };
        let listed = self
            .auth
            .list_usage(&which, &asked.page_token, asked.page_size);
        let (rows, next_page_token) = listed.await?;
        Ok(Response::new(ListUsageResponse {
            usage: rows.into_iter().map(usage).collect(),
            next_page_token,
        }))
    }

    async fn report_usage(
        &self,
        request: Request<ReportUsageRequest>,
    ) -> Result<Response<ReportUsageResponse>, Status> {
        let class = Call::of(&request)?.peer.class;
        let service = class
            .ok_or_else(|| Status::internal("the peer policy lets only known classes in"))?
            .as_str();
        let sent = request.into_inner();
        let items = sent.items.into_iter().map(item);
        let report = Report {
            source: sent.source,
            items: items.collect::<Result<_, _>>()?,
            after: i64::try_from(sent.after_version).unwrap_or(i64::MAX),
        };
        let answer = self.auth.count_usage(service, &report).await?;
        Ok(Response::new(response(answer)))
    }
}
