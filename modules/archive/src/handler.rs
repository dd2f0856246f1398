//! Answers queries, requests for the form, for the metadata and about preferences.
//!
//! What must hold: an archive is shown and changed only by its own account's sessions, and what
//! one asks for never comes out of another account's archive (SECURITY M1); all results of a
//! query are handed to the session before its iq is answered (XEP-0313 4).

use std::sync::Arc;

use waystation_core::account::{IqHandler, IqRequest, Relation};
use waystation_core::archive::position;
use waystation_core::datetime::Timestamp;
use waystation_core::module::ServerHandle;
use waystation_core::rsm::PageReply;
use waystation_core::storage::{BoxFuture, ScanRange};
use waystation_core::{Condition, Element, ErrorType, Jid, StanzaError};

use crate::chunk::{Head, ROWS};
use crate::driver::Job;
use crate::page::{self, Matching, Page, Plan, Source};
use crate::prefs::Prefs;
use crate::query::{self, Query};
use crate::row::{self, Row};
use crate::store::{Archives, Known};
use crate::{Server, result, seek, walk};

type Reply = BoxFuture<'static, Result<Option<Element>, StanzaError>>;

/// Answers all of the protocol's payloads.
pub(crate) struct Handler {
    pub(crate) archives: Arc<Archives>,
    pub(crate) server: Server,
}

impl IqHandler for Handler {
    fn handle(&self, request: IqRequest) -> Reply {
        let (archives, server) = (self.archives.clone(), self.server.clone());
        Box::pin(async move {
            if request.relation != Relation::Own
                || request.session.is_none()
                || !request.from.bare_eq(&request.target)
            {
                return Err(Condition::Forbidden.into());
            }
            let account = request.from.to_bare();
            let payload = &request.payload;
            match (payload.name(), request.set) {
                ("query", false) => Ok(Some(query::form())),
                ("query", true) => {
                    let query = Query::parse(payload)?;
                    let server = server.get().ok_or_else(not_ready)?;
                    archives.query(&account, &request.from, &**server, &query).await.map(Some)
                }
                ("metadata", false) => archives.metadata(&account).await.map(Some),
                ("prefs", false) => Ok(Some(archives.settled_soon(&account).await?.prefs.to_element())),
                ("prefs", true) => {
                    let prefs = Prefs::parse(payload, archives.config.max_prefs)?;
                    let shown = prefs.to_element();
                    archives.ask(&account, |reply| Job::SetPrefs { prefs, reply }).await?;
                    Ok(Some(shown))
                }
                _ => Err(Condition::BadRequest.into()),
            }
        })
    }
}

/// A temporary failure of ours.
fn not_ready() -> StanzaError {
    StanzaError::new(Condition::InternalServerError).with_type(ErrorType::Wait)
}

/// What a query's ids stand for.
#[derive(Default)]
struct Places {
    /// First and last positions that are not cut off.
    within: (u64, u64),
    ids: Vec<u64>,
}

impl Archives {
    /// What is known of an account once everything that was handed over before is in the store; but
    /// nobody is kept waiting for longer than the configuration says.
    async fn settled_soon(self: &Arc<Self>, account: &Jid) -> Result<Known, StanzaError> {
        match tokio::time::timeout(self.config.commit_wait, self.whole(account)).await {
            Ok(known) => Ok(known?),
            Err(_elapsed) => Err(not_ready()),
        }
    }

    /// Sends the results of a query to `to`; the payload of the iq's result.
    async fn query(
        self: &Arc<Self>,
        account: &Jid,
        to: &Jid,
        server: &dyn ServerHandle,
        query: &Query,
    ) -> Result<Element, StanzaError> {
        let known = self.settled_soon(account).await?;
        let plan = self.plan(account, &known, query).await?;
        let page = page::read(&*self.storage, account, &plan).await?;
        if plan.skip > 0 && page.stopped_at.is_some() && page.met <= plan.skip {
            // Too far to count up to (XEP-0059 2.6).
            return Err(Condition::FeatureNotImplemented.into());
        }
        let reply = self.reply(account, &known, query, &plan, &page).await?;
        let send = |(position, row): &(u64, Row)| {
            server.to_session(result::message(account, to, query.id.as_deref(), *position, row));
        };
        if query.flip {
            page.rows.iter().rev().for_each(send);
        } else {
            page.rows.iter().for_each(send);
        }
        Ok(result::fin(page.complete, &reply))
    }

    /// Where to look for what a query asks for.
    async fn plan(&self, account: &Jid, known: &Known, query: &Query) -> Result<Plan, StanzaError> {
        let filter = &query.filter;
        let places = self.places(account, query).await?;
        let (start, end) =
            (filter.start.map(|time| time.unix_millis()), filter.end.map(|time| time.unix_millis()));
        let mut matching = Matching { start, end, groupchat: filter.groupchat, ..Matching::default() };
        let mut source = Source::All;
        if let Some(with) = &filter.with {
            if with.is_bare() {
                // The account's own address means what it wrote to itself (XEP-0313 4.1.1), which
                // is just where it is the counterpart.
                matching.with = Some(with.clone());
            } else {
                matching.address = Some(with.clone());
            }
            // One of the account's own resources is party to messages with anybody.
            if with.is_bare() || !with.bare_eq(account) {
                source = Source::With(with.bare_str().to_owned());
            }
        }
        let mut ranges = vec![(1, known.state.newest)];
        if !places.ids.is_empty() {
            source = Source::Positions(places.ids);
        } else if start.is_some() || end.is_some() {
            ranges = seek::ranges(&*self.storage, account, &known.state, start, end).await?;
        }
        let (first, last) = places.within;
        let ranges = ranges.into_iter().map(|range| (range.0.max(first), range.1.min(last)));
        Ok(Plan {
            source,
            matching,
            ranges: ranges.filter(|(first, last)| first <= last).collect(),
            backward: query.page.backward,
            skip: query.page.index.map_or(0, |index| usize::try_from(index).unwrap_or(usize::MAX)),
            max: query.page.limit(self.config.page_limit),
            max_bytes: self.config.page_bytes,
            max_rows: self.config.rows_per_query.max(1),
        })
    }

    /// Finds what the ids of a query name.
    ///
    /// # Errors
    /// `item-not-found` for an id that this archive does not have (XEP-0313 4.1.3, 4.3.2),
    /// whatever it may be elsewhere.
    async fn places(&self, account: &Jid, query: &Query) -> Result<Places, StanzaError> {
        let filter = &query.filter;
        let mut places = Places { within: (1, u64::MAX), ids: Vec::new() };
        for id in [&filter.after_id, &query.page.after].into_iter().flatten() {
            let found = self.find(account, id).await?;
            places.within.0 = places.within.0.max(found.saturating_add(1));
        }
        for id in [&filter.before_id, &query.page.before].into_iter().flatten() {
            let found = self.find(account, id).await?;
            places.within.1 = places.within.1.min(found.saturating_sub(1));
        }
        for id in &filter.ids {
            places.ids.push(self.find(account, id).await?);
        }
        places.ids.sort_unstable();
        places.ids.dedup();
        Ok(places)
    }

    async fn find(&self, account: &Jid, id: &str) -> Result<u64, StanzaError> {
        if let Some(position) = position(id) {
            let chunk = walk::at_or_before(&*self.storage, &row::prefix(account), position.0).await?;
            if let Some(chunk) = chunk.filter(|chunk| position.0 <= chunk.head.last) {
                for entry in chunk.entries() {
                    if entry?.position == position.0 {
                        return Ok(position.0);
                    }
                }
            }
        }
        Err(Condition::ItemNotFound.into())
    }

    /// What is said of a page. Without filters the count is exact, for it is kept with the
    /// archive; with filters it is told where it costs no more than a page: when the page is the
    /// whole result, or when the requester wants nothing else and the bound on rows allows it.
    async fn reply(
        &self,
        account: &Jid,
        known: &Known,
        query: &Query,
        plan: &Plan,
        page: &Page,
    ) -> Result<PageReply, StanzaError> {
        let request = &query.page;
        let whole = query.filter.is_empty();
        let open_before = request.after.is_none();
        let open_behind = request.before.is_none();
        let all = usize::try_from(known.state.messages).unwrap_or(usize::MAX);
        let count = if whole {
            Some(all)
        } else if page.complete && open_before && open_behind {
            // What was left out before the page was met as well.
            Some(page.met)
        } else if request.max == Some(0) && open_before && open_behind {
            page::count(&*self.storage, account, plan).await?
        } else {
            None
        };
        let index = match (request.backward, open_before) {
            (false, true) => Some(plan.skip),
            (true, true) if page.complete => Some(0),
            (true, true) if whole && open_behind => Some(all.saturating_sub(page.rows.len())),
            _ => None,
        };
        let first = page.rows.first().map(|(position, _)| (row::id(*position), index));
        let last = page.rows.last().map(|(position, _)| row::id(*position));
        let bounds = first.zip(last).or_else(|| {
            // No match so far, but there may be more: where to go on.
            let stopped = page.stopped_at.map(row::id)?;
            Some(((stopped.clone(), None), stopped))
        });
        Ok(PageReply { bounds, count })
    }

    async fn metadata(self: &Arc<Self>, account: &Jid) -> Result<Element, StanzaError> {
        self.settled_soon(account).await?;
        let prefix = row::prefix(account);
        let rows = self.storage.scan(ROWS, ScanRange::prefix(prefix.clone(), 1)).await?;
        let Some((key, value)) = rows.first() else { return Ok(result::metadata(None)) };
        let first = Head::decode(row::position_of(key, &prefix)?, value).map_err(StanzaError::from)?;
        let last = walk::at_or_before(&*self.storage, &prefix, u64::MAX).await?;
        let last = last.map(|chunk| chunk.entries().last()).unwrap_or_default().transpose()?;
        let bounds = last.zip(Timestamp::from_unix_millis(first.time));
        Ok(result::metadata(bounds.map(|(last, time)| [(first.first, time), (last.position, last.at)])))
    }
}
