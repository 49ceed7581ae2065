//! Event streams over SSE, and the reader that SSE and WebSocket share: first the backlog, then live events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use utoipa::{IntoParams, ToSchema};

use super::cell_response::no_cell;
use super::error::Problem;
use super::view::{self, EventView};
use super::{Api, Caller, Query, SessionInPath, guard};
use crate::artifacts::Blobs;
use crate::ids::{Seq, SessionId, SessionPhase};
use crate::manager::{EventKind, EventRow, EventSubscription, Store, StoreError, parse_body};
use crate::session::{Cell, CellPhase, SessionState};

/// The interval of keep-alive comments on a quiet stream. Proxies close idle connections after about a minute.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The form of large binary data in outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case", default = "inline")]
pub(super) enum OutputForm {
    /// As base64.
    Inline,
    /// As a reference with the hash of the artifact.
    Refs,
    /// No outputs at all.
    None,
}

impl OutputForm {
    pub fn parse(name: Option<&str>) -> Result<Self, Problem> {
        match name {
            None | Some("inline") => Ok(Self::Inline),
            Some("refs") => Ok(Self::Refs),
            Some("none") => Ok(Self::None),
            Some(other) => {
                let detail = format!("{other:?} is not a form of outputs; use inline, refs or none");
                Err(Problem::bad_request("bad_outputs", detail).field("outputs"))
            }
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events with larger numbers. A `Last-Event-ID` header wins over it.
    after: Option<u64>,
    /// The form of outputs: `inline` embeds binary data as base64, `refs` replaces large binary data by the hash of its
    /// artifact. `none` means `refs` here.
    #[param(inline, value_type = Option<OutputForm>)]
    outputs: Option<String>,
    /// The token, for clients that cannot set the `Authorization` header.
    // Read by the guard.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    _token: Option<IgnoredAny>,
}

/// The query of the events of a session, or of one cell.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionEventsQuery {
    /// Only events with larger numbers. A `Last-Event-ID` header wins over it.
    after: Option<u64>,
    /// The form of outputs: `inline` embeds binary data as base64, `refs` replaces large binary data by the hash of its
    /// artifact. `none` means `refs` here.
    #[param(inline, value_type = Option<OutputForm>)]
    outputs: Option<String>,
    /// Only events of this cell. The stream ends with the end of the cell's execution, or for a finished cell after its last
    /// event (204 if there is none left). Without `after`, it begins with the latest execution.
    cell: Option<String>,
    /// The token, for clients that cannot set the `Authorization` header.
    // Read by the guard.
    #[serde(rename = "token")]
    #[param(value_type = Option<String>)]
    token: Option<IgnoredAny>,
}

impl EventsQuery {
    pub fn seq(&self) -> Seq {
        Seq(self.after.unwrap_or(0))
    }

    pub fn form(&self) -> Result<OutputForm, Problem> {
        OutputForm::parse(self.outputs.as_deref())
    }
}

/// Stream the events of a session
///
/// First the stored events after a number, then live ones, as server-sent events until the session is deleted or the token
/// becomes invalid. The SSE id of an event is its number, and its data is the event as JSON. A client that reconnects
/// continues after the last number that it has seen.
#[utoipa::path(
    get, path = "/events", operation_id = "stream_events", tag = "events",
    params(SessionInPath, SessionEventsQuery, LastEventId),
    responses(
        (status = 200, description = "Events", body = EventView, content_type = "text/event-stream"),
        (status = 204, description = "The cell is finished, and has no event after this number")),
)]
pub(super) async fn stream(
    State(api): State<Api>,
    caller: Caller,
    SessionInPath(id): SessionInPath,
    Query(query): Query<SessionEventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let SessionEventsQuery { after, outputs, cell, token } = query;
    let query = EventsQuery { after, outputs, _token: token };
    let Some(cell) = cell else { return stream_session(&api, id, &caller, &query, &headers, false) };
    let cell = api.reader.cell(&id, &caller.access(), &cell).await?.ok_or_else(|| no_cell(&cell))?;
    let after = last_event_id(&headers)?.or(query.after.map(Seq)).unwrap_or(cursor_before(&cell));
    stream_cell(&api, &id, &caller, &cell, after, query.form()?)
}

/// Streams the events of a session: until it is deleted, or with `until_gone` until it ends.
pub(super) fn stream_session(
    api: &Api,
    id: SessionId,
    caller: &Caller,
    query: &EventsQuery,
    headers: &HeaderMap,
    until_gone: bool,
) -> Result<Response, Problem> {
    // A browser that reconnects repeats the first URL and adds `Last-Event-ID`, which is newer.
    let after = last_event_id(headers)?.unwrap_or(query.seq());
    let subscription = api.reader.subscribe(&id, &caller.access(), after)?;
    if until_gone
        && subscription.is_caught_up()
        && matches!(api.sessions.peek(&id, &caller.access())?.state(), SessionState::Gone { .. })
    {
        // This status stops an `EventSource` from reconnecting.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let reader = EventReader { until_gone, ..EventReader::new(api, caller, id, subscription, query.form()?) };
    sse(as_stream(reader), api, caller)
}

/// The header with which an `EventSource` continues a stream.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the description of a header, which `last_event_id` reads")]
pub(super) struct LastEventId {
    /// The number of the last event that the client has seen.
    #[param(rename = "Last-Event-ID")]
    id: Option<u64>,
}

pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<Seq>, Problem> {
    const NAME: &str = "Last-Event-ID";
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let text = value.to_str().unwrap_or("not a number").trim();
    if text.is_empty() {
        // The standard treats an empty id as none.
        return Ok(None);
    }
    let seq = text.parse().map_err(|_| {
        Problem::bad_request("bad_query", format!("{NAME} must be the number of an event, from 0 on")).field(NAME)
    })?;
    Ok(Some(Seq(seq)))
}

/// Streams the events of a cell after a number until its execution ends. A finished cell has events up to its last one.
pub(super) fn stream_cell(
    api: &Api,
    id: &SessionId,
    caller: &Caller,
    cell: &Cell,
    after: Seq,
    form: OutputForm,
) -> Result<Response, Problem> {
    let last = (cell.execution.phase == CellPhase::Finished).then_some(cell.execution.last_seq);
    if last.is_some_and(|last| last <= after) {
        // This status stops an `EventSource` from reconnecting.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let subscription = api.reader.subscribe(id, &caller.access(), after)?;
    let cell = Some(OneCell { id: cell.id.clone(), last });
    let reader = EventReader { cell, ..EventReader::new(api, caller, id.clone(), subscription, form) };
    sse(as_stream(reader), api, caller)
}

/// The cell whose events are read.
struct OneCell {
    id: String,
    /// Its last event, if it was finished. Otherwise the end of its execution is the last one.
    last: Option<Seq>,
}

impl OneCell {
    fn ends_with(&self, event: &EventRow) -> bool {
        match self.last {
            Some(last) => event.seq >= last,
            None => event.kind == EventKind::CellFinished,
        }
    }
}

/// The cursor before the first event of a cell's latest execution.
pub(super) fn cursor_before(cell: &Cell) -> Seq {
    Seq(cell.execution.first_seq.0.saturating_sub(1))
}

fn ends_session(event: &EventRow) -> bool {
    event.kind == EventKind::SessionState
        && parse_body(event).get("state").is_some_and(|state| state == SessionPhase::Gone.as_str())
}

/// Reads the events of a session as JSON.
pub(super) struct EventReader {
    id: SessionId,
    blobs: Blobs,
    subscription: EventSubscription,
    form: OutputForm,
    /// Only events of this cell.
    cell: Option<OneCell>,
    page: VecDeque<Arc<EventRow>>,
    /// A page that was read and is not filtered yet, so that cancelling the filter loses nothing.
    unfiltered: Option<Vec<Arc<EventRow>>>,
    share_filter: Option<ShareFilter>,
    /// Until the session ends, instead of until it is deleted.
    until_gone: bool,
    /// Whether the page is the last one.
    ends_with_page: bool,
    is_finished: bool,
}

impl EventReader {
    pub fn new(api: &Api, caller: &Caller, id: SessionId, subscription: EventSubscription, form: OutputForm) -> Self {
        Self {
            blobs: api.reader.blobs().clone(),
            share_filter: ShareFilter::for_caller(caller, api, &id),
            id,
            subscription,
            form,
            cell: None,
            page: VecDeque::new(),
            unfiltered: None,
            until_gone: false,
            ends_with_page: false,
            is_finished: false,
        }
    }

    async fn next_page(&mut self) -> Result<Option<VecDeque<Arc<EventRow>>>, StoreError> {
        if self.unfiltered.is_none() {
            self.unfiltered = self.subscription.next().await?;
        }
        let Some(mut page) = self.unfiltered.clone() else { return Ok(None) };
        let end = page.last().map(|event| event.seq);
        let last_of_cell = self.cell.as_ref().and_then(|cell| cell.last);
        // The last event of the cell itself may be one that this client does not get.
        self.ends_with_page = last_of_cell.zip(end).is_some_and(|(last, end)| last <= end);
        if let Some(filter) = &self.share_filter {
            // Comm messages can contain data that no page shows, and a share does not show the workspace.
            page.retain(|event| !matches!(event.kind, EventKind::Comm | EventKind::FilesChanged));
            filter.retain(&mut page, cell_and_seq).await?;
        }
        self.unfiltered = None;
        Ok(Some(page.into()))
    }

    /// Whether the next event is available without waiting.
    pub fn has_more(&self) -> bool {
        !self.page.is_empty()
    }

    /// The number and the JSON text of the next event. `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<(Seq, String)> {
        loop {
            while let Some(row) = self.page.front() {
                if self.cell.as_ref().is_some_and(|cell| row.cell.as_ref() != Some(&cell.id)) {
                    self.page.pop_front();
                    continue;
                }
                // The event stays in the page until its JSON is complete, so that cancelling this future loses nothing.
                let json = view::event(row, &self.id, &self.blobs, self.form != OutputForm::Inline).await.ok()?;
                let row = self.page.pop_front()?;
                self.is_finished = match &self.cell {
                    Some(cell) => cell.ends_with(&row),
                    None => self.until_gone && ends_session(&row),
                };
                return Some((row.seq, json));
            }
            if self.is_finished || self.ends_with_page {
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

/// Limits a share to the current notebook: events without a cell, and the latest executions of existing cells. Events of
/// deleted cells and of earlier executions are left out. Outputs that an execution has cleared or replaced are part of its
/// events, and stay.
pub(super) struct ShareFilter {
    store: Store,
    session: SessionId,
}

impl ShareFilter {
    /// `None` if the caller does not use a share, and sees everything.
    pub fn for_caller(caller: &Caller, api: &Api, session: &SessionId) -> Option<Self> {
        caller.identity.only.as_ref().map(|_| Self { store: api.reader.store().clone(), session: session.clone() })
    }

    /// Removes items that the share must not see. `cell_and_seq` returns the cell and the event number of an item. Items
    /// without a cell stay.
    pub async fn retain<T>(
        &self,
        items: &mut Vec<T>,
        cell_and_seq: impl Fn(&T) -> (Option<&str>, Seq),
    ) -> Result<(), StoreError> {
        // This is read after the items were read, so it is never older than they are.
        let executions = self.store.latest_executions(&self.session).await?;
        items.retain(|item| {
            let (cell, seq) = cell_and_seq(item);
            cell.is_none_or(|cell| executions.get(cell).is_some_and(|first| *first <= seq))
        });
        Ok(())
    }
}

/// The cell and the number of an event for [`ShareFilter`]. Changes of the notebook say nothing about outputs, so they count
/// as events without a cell.
fn cell_and_seq(event: &Arc<EventRow>) -> (Option<&str>, Seq) {
    (event.cell.as_deref().filter(|_| event.kind != EventKind::NotebookChanged), event.seq)
}

/// An SSE response. It ends when the token of the request becomes invalid.
pub(super) fn sse(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    api: &Api,
    caller: &Caller,
) -> Result<Response, Problem> {
    let open = guard::open_stream(api, &caller.identity)?;
    let (tokens, token) = (api.tokens.clone(), caller.token);
    let invalid = Box::pin(async move {
        let _open = open;
        tokens.until_invalid(token).await;
    });
    let stream = events.take_until(invalid);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL).text("still here");
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // Without this header, nginx buffers the events.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

fn as_stream(reader: EventReader) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(reader, async |mut reader| {
        let (seq, json) = reader.next().await?;
        Some((Ok(Event::default().id(seq.0.to_string()).data(json)), reader))
    })
}
