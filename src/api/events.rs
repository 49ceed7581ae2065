//! Events as they are numbered: the backlog, then live.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::Problem;
use super::{Api, Caller, InPath, Query, guard, view};
use crate::artifacts::Blobs;
use crate::ids::{Seq, SessionId};
use crate::manager::{EventRow, Follower, Store, StoreError, read_body};
use crate::session::{Cell, SessionState};
use std::sync::Arc;

/// Between two signs of life on a quiet stream: proxies close one after a minute or so.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How large binary data is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In place, as base64.
    Inline,
    /// By its hash.
    Refs,
    /// No outputs at all.
    None,
}

impl Form {
    pub fn parse(name: Option<&str>) -> Result<Self, Problem> {
        match name {
            None | Some("inline") => Ok(Self::Inline),
            Some("refs") => Ok(Self::Refs),
            Some("none") => Ok(Self::None),
            Some(other) => {
                let detail = format!("{other:?} is no form of outputs; inline, refs and none are");
                Err(Problem::bad_request("bad_outputs", detail).field("outputs"))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    after: Option<u64>,
    outputs: Option<String>,
    /// The guard has read it.
    #[serde(rename = "token")]
    _token: Option<IgnoredAny>,
}

impl After {
    pub fn seq(&self) -> Seq {
        Seq(self.after.unwrap_or(0))
    }

    pub fn form(&self) -> Result<Form, Problem> {
        Form::parse(self.outputs.as_deref())
    }
}

pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    InPath(id): InPath,
    Query(query): Query<After>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    of_session(&api, id, &caller, &query, &headers, false)
}

/// A session's events, for ever or to its end.
pub(super) fn of_session(
    api: &Api,
    id: SessionId,
    caller: &Caller,
    query: &After,
    headers: &HeaderMap,
    to_its_end: bool,
) -> Result<Response, Problem> {
    // What a browser sends when it reconnects by itself wins over the address that it first used.
    let after = last_event_id(headers)?.unwrap_or(query.seq());
    let follower = api.keeper.follow(&id, caller.sees(), after)?;
    if to_its_end && follower.has_all() && matches!(api.keeper.look(&id, caller.sees())?.state(), SessionState::Gone { .. })
    {
        // By this a browser knows that it need not ask again.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let reader = Reader { to_its_end, ..Reader::new(api, caller, id, follower, query.form()?) };
    sse(reader, api, caller)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Seq>, Problem> {
    const NAME: &str = "Last-Event-ID";
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let text = value.to_str().unwrap_or("not a number").trim();
    if text.is_empty() {
        // As the standard has it, that is none.
        return Ok(None);
    }
    let seq = text.parse().map_err(|_| {
        Problem::bad_request("bad_query", format!("{NAME} is the number of an event, from 0 on")).field(NAME)
    })?;
    Ok(Some(Seq(seq)))
}

/// The events of one run of a cell, to its end.
pub(super) fn of_cell(api: &Api, id: &SessionId, caller: &Caller, cell: &Cell, form: Form) -> Result<Response, Problem> {
    let follower = api.keeper.follow(id, caller.sees(), before(cell))?;
    let reader = Reader { cell: Some(cell.id.clone()), ..Reader::new(api, caller, id.clone(), follower, form) };
    sse(reader, api, caller)
}

/// The number before the run's first event.
pub(super) fn before(cell: &Cell) -> Seq {
    Seq(cell.run.first_seq.0.saturating_sub(1))
}

fn ends(event: &EventRow, cell: &str) -> bool {
    event.cell.as_deref() == Some(cell) && event.kind == "cell.finished"
}

fn ends_session(event: &EventRow) -> bool {
    event.kind == "session.state" && read_body(event).get("state").is_some_and(|state| state == "gone")
}

/// Reads events as JSON, one after the other.
pub(super) struct Reader {
    id: SessionId,
    blobs: Blobs,
    follower: Follower,
    form: Form,
    /// Only this cell's, to the end of its run.
    cell: Option<String>,
    page: VecDeque<Arc<EventRow>>,
    /// For whom only the last runs of the cells that are there.
    shown: Option<Shown>,
    /// Only to the session's end, and not until it is deleted.
    to_its_end: bool,
    ended: bool,
}

impl Reader {
    pub fn new(api: &Api, caller: &Caller, id: SessionId, follower: Follower, form: Form) -> Self {
        let (blobs, shown) = (api.keeper.blobs().clone(), Shown::to(caller, api, &id));
        Self { id, blobs, follower, form, cell: None, page: VecDeque::new(), shown, to_its_end: false, ended: false }
    }

    async fn next_page(&mut self) -> Result<Option<VecDeque<Arc<EventRow>>>, StoreError> {
        let Some(mut page) = self.follower.next().await? else { return Ok(None) };
        if let Some(shown) = &self.shown {
            // What widgets tell each other, no page shows.
            page.retain(|event| event.kind != "comm");
            shown.retain(&mut page, told_of).await?;
        }
        Ok(Some(page.into()))
    }

    /// Whether the next one is here already.
    pub fn has_more(&self) -> bool {
        !self.page.is_empty()
    }

    /// The next event's number and its JSON. `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<(Seq, String)> {
        loop {
            while let Some(row) = self.page.front() {
                if self.cell.is_some() && self.cell != row.cell {
                    self.page.pop_front();
                    continue;
                }
                // It stays in the page until it can be given: whoever waits may turn to something else meanwhile.
                let json = view::event(row, &self.id, &self.blobs, self.form != Form::Inline).await.ok()?;
                let row = self.page.pop_front()?;
                self.ended = match self.cell.as_deref() {
                    Some(cell) => ends(&row, cell),
                    None => self.to_its_end && ends_session(&row),
                };
                return Some((row.seq, json));
            }
            if self.ended {
                return None;
            }
            match self.next_page().await {
                Ok(Some(page)) => self.page = page,
                Ok(None) => return None,
                Err(error) => {
                    tracing::error!(session = %self.id, %error, "cannot read events");
                    return None;
                }
            }
        }
    }
}

/// What a link shows of a session's journal: what is of no cell, and the last runs of the cells that are there. Of deleted cells and
/// earlier runs it shows nothing; what a run has cleared or replaced stands in the journal as told, and is shown as that.
pub(super) struct Shown {
    store: Store,
    session: SessionId,
}

impl Shown {
    /// Nothing is left out for those who have more than a link.
    pub fn to(caller: &Caller, api: &Api, session: &SessionId) -> Option<Self> {
        caller.0.only.as_ref().map(|_| Self { store: api.keeper.store().clone(), session: session.clone() })
    }

    /// Leaves out what is not shown, of things that `of` says the cell and the number of. What is of no cell stays.
    pub async fn retain<T>(&self, all: &mut Vec<T>, of: impl Fn(&T) -> (Option<&str>, Seq)) -> Result<(), StoreError> {
        // Asked for after they were read: never older than they are.
        let runs = self.store.latest_runs(&self.session).await?;
        all.retain(|one| {
            let (cell, seq) = of(one);
            cell.is_none_or(|cell| runs.get(cell).is_some_and(|first| *first <= seq))
        });
        Ok(())
    }
}

/// What an event tells of, for those who see only what is shown. That cells come, change and go tells nothing of what they show.
fn told_of(event: &Arc<EventRow>) -> (Option<&str>, Seq) {
    (event.cell.as_deref().filter(|_| event.kind != "notebook.changed"), event.seq)
}

/// Streams for as long as the token is valid that it was asked for with.
fn sse(reader: Reader, api: &Api, Caller(identity, shown): &Caller) -> Result<Response, Problem> {
    let open = guard::open_stream(api, identity)?;
    let (tokens, shown) = (api.tokens.clone(), *shown);
    let invalid = Box::pin(async move {
        let _open = open;
        tokens.until_invalid(shown).await;
    });
    let stream = as_stream(reader).take_until(invalid);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // Else nginx holds events back.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

fn as_stream(reader: Reader) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(reader, async |mut reader| {
        let (seq, json) = reader.next().await?;
        Some((Ok(Event::default().id(seq.0.to_string()).data(json)), reader))
    })
}
