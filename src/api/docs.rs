//! The OpenAPI description and the documentation page. They load nothing from other servers.

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;

const OPENAPI: &str = include_str!("docs/openapi.json");
const PAGE: &str = include_str!("docs/docs.html");
const SCRIPT: &str = include_str!("docs/docs.js");
const STYLE: &str = include_str!("docs/docs.css");

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'; frame-ancestors 'none'")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, text)
}

pub(super) async fn openapi() -> impl IntoResponse {
    asset("application/json", OPENAPI)
}

pub(super) async fn page() -> impl IntoResponse {
    asset("text/html; charset=utf-8", PAGE)
}

pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", STYLE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Paths and methods in the source code of the router.
    fn routes() -> BTreeSet<(String, String)> {
        let source: String = include_str!("mod.rs").split_whitespace().collect();
        let mut routes = BTreeSet::new();
        // Four routers in the order of the source: two for one session (without and with queries), /v1, and the rest.
        let prefixes = ["/v1/sessions/{session}", "/v1/sessions/{session}", "/v1", "/"];
        let pieces: Vec<_> = source.split("Router::new()").skip(1).collect();
        assert_eq!(pieces.len(), prefixes.len());
        for (piece, prefix) in pieces.into_iter().zip(prefixes) {
            for route in piece.split(".route(\"").skip(1) {
                let (path, methods) = route.split_once('"').unwrap();
                let methods = methods.split(".route(").next().unwrap();
                let path = format!("{}{path}", prefix.trim_end_matches('/')).replace("{*path}", "{path}");
                let path = if path == "/v1/sessions/{session}/" { "/v1/sessions/{session}".to_owned() } else { path };
                for method in ["get", "put", "post", "patch", "delete"] {
                    let is_called = [",", "."].iter().any(|before| methods.contains(&format!("{before}{method}(")));
                    if is_called && !(path.starts_with("/docs") || path == "/openapi.json") {
                        routes.insert((path.clone(), method.to_owned()));
                    }
                }
            }
        }
        routes
    }

    #[test]
    fn openapi_describes_exactly_the_routes() {
        let description: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in description["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                described.insert((path.clone(), method.clone()));
            }
        }
        let routes = routes();
        assert!(routes.len() > 25, "{routes:?}");
        assert_eq!(described, routes);
    }

    #[test]
    fn every_openapi_reference_resolves() {
        let description: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        for reference in OPENAPI.split("\"$ref\": \"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(description.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
