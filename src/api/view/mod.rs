//! The JSON of answers: types with their schemas, and their conversion from the domain.

mod cell;
mod event;
mod file_change;
mod foreign;
mod long_text;
mod model_view;
mod session;

use serde::Serialize;
use utoipa::ToSchema;

use crate::manager::{ArtifactRow, from_ms};
use crate::wire::content::iso8601;

pub(super) use cell::{
    CellList, CellState, CellStatus, CellTypeName, CellView, ExecutionError, ExecutionMetrics, error, outputs,
};

pub(super) use event::{EventView, event};
pub(super) use foreign::{Binary, CompleteReply, InspectReply, NotebookFile};
pub(super) use model_view::ModelView;
pub(super) use session::{
    IsolationView, LimitsView, NetworkLevelName, NetworkView, SessionList, SessionState, SessionView, UsageView,
};

/// A time in milliseconds since 1970 as ISO 8601.
pub(super) fn time(ms: i64) -> String {
    iso8601(from_ms(ms))
}

/// Declares an enum of the API for an enum of the domain. A value that the domain adds does not compile until it is here.
macro_rules! api_enum {
    ($(#[$attribute:meta])* $name:ident for $domain:ident { $($value:ident),* $(,)? }) => {
        #[derive(Clone, Copy, Debug, serde::Serialize, utoipa::ToSchema)]
        $(#[$attribute])*
        #[serde(rename_all = "snake_case")]
        pub(in crate::api) enum $name { $($value),* }

        impl From<$domain> for $name {
            fn from(value: $domain) -> Self {
                match value { $($domain::$value => Self::$value),* }
            }
        }
    };
}
pub(super) use api_enum;

/// A plot or file that a cell has displayed.
#[derive(Serialize, ToSchema)]
#[schema(as = Artifact, examples(json!({
    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", "mime": "image/png", "bytes": 18233,
    "cell": "ae18a2f3", "name": "cell-1-output-0.png", "width": 640, "height": 480
})))]
pub(super) struct ArtifactView {
    /// The hash of the bytes, which `/v1/artifacts/{sha256}` returns.
    sha256: String,
    /// The media type, as the kernel named it.
    mime: String,
    /// The size in bytes.
    bytes: i64,
    /// The id of the cell that displayed it.
    cell: String,
    /// A file name.
    name: String,
    /// The width in pixels of an image (PNG, JPEG, GIF, WebP), or in CSS pixels of an SVG.
    #[schema(required)]
    width: Option<i64>,
    /// The height, in the unit of the width.
    #[schema(required)]
    height: Option<i64>,
}

impl From<ArtifactRow> for ArtifactView {
    fn from(row: ArtifactRow) -> Self {
        let ArtifactRow { sha256, cell, name, mime, bytes, width, height, .. } = row;
        Self { sha256, mime, bytes, cell, name, width, height }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct ArtifactList {
    /// In the order of their creation.
    pub artifacts: Vec<ArtifactView>,
}
