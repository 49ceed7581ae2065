//! `/openapi.json` and `/docs`: the description of the API for programs and for people. The page has no scripts, and loads
//! nothing but its style.

mod curl;
mod page;

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;

use super::openapi::document;

const STYLE: &str = include_str!("docs/docs.css");
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, text)
}

/// Get this description
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "get_openapi", tag = "server", security(()),
    responses((status = 200, description = "The OpenAPI description", body = inline(serde_json::Map<String, serde_json::Value>))),
)]
pub(super) async fn openapi() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());
    asset("application/json", &TEXT)
}

/// Read this description as a page
#[utoipa::path(
    get, path = "/docs", operation_id = "get_docs", tag = "server", security(()),
    responses((status = 200, description = "A page without scripts", body = String, content_type = "text/html")),
)]
pub(super) async fn page() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| page::html(document()));
    asset("text/html; charset=utf-8", &TEXT)
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", STYLE)
}
