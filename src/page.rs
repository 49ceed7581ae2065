//! The page at `/`: embedded files with strict content security policies. The files contain no data of users. The page loads
//! all data from `/v1` with a token.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::web::{self, Asset};

/// No inline scripts, and nothing from other origins. Images of outputs are blobs.
const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src blob:; object-src 'none'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document around the frame of an output. It only passes messages. The policy keeps the frame on this origin, whatever
/// page embeds it.
const HOLDER_POLICY: &str = "sandbox allow-scripts allow-downloads allow-pointer-lock; default-src 'none'; script-src 'self'; \
    style-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";

/// The document that renders an output. It has an opaque origin, even if it is opened as a page, and no network access. Its
/// scripts may do anything within it, because it holds nothing else. Trusted Types pass all text that becomes elements to its
/// own script, which removes documents without this policy.
const FRAME_POLICY: &str = "sandbox allow-scripts allow-downloads allow-pointer-lock; default-src 'none'; \
    script-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'self' 'unsafe-inline'; img-src data: blob:; \
    font-src data:; media-src data: blob:; worker-src blob:; frame-src 'self'; connect-src 'none'; form-action 'none'; \
    base-uri 'none'; require-trusted-types-for 'script'; trusted-types default";

/// The document of the terminal. It draws what a sandbox writes, has an opaque origin and no network access, and runs no script
/// but its own. The library makes style elements.
const TERMINAL_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    frame-ancestors 'self'; form-action 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const NOT_BUILT: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Cellkeep</title>\
    <h1>This cellkeep was built without its page</h1><p>The page is packed by npm before the program is built: \
    run <code>make build</code> instead of <code>cargo build</code>, or <code>make web</code> before it. \
    All else works: <a href=\"/docs\">the interface for programs</a>, and the command line.</p></html>";

/// The routes that need no token.
pub fn router() -> Router {
    let frames =
        Router::new().route("/-/frame", get(holder)).route("/-/frame/inner", get(frame)).route("/-/terminal", get(terminal));
    frames.route("/", get(page)).route("/-/assets/{name}", get(asset))
}

async fn page(headers: HeaderMap) -> Response {
    document(web::asset("page/index.html"), &headers, PAGE_POLICY)
}

async fn holder(headers: HeaderMap) -> Response {
    document(web::asset("page/holder.html"), &headers, HOLDER_POLICY)
}

async fn frame(headers: HeaderMap) -> Response {
    document(web::asset("page/frame.html"), &headers, FRAME_POLICY)
}

async fn terminal(headers: HeaderMap) -> Response {
    document(web::asset("page/terminal.html"), &headers, TERMINAL_POLICY)
}

fn document(asset: Option<Asset>, headers: &HeaderMap, policy: &'static str) -> Response {
    let mut response = match asset {
        Some(asset) => serve_asset(asset, headers),
        None => (StatusCode::OK, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], NOT_BUILT).into_response(),
    };
    set_header(&mut response, header::CONTENT_SECURITY_POLICY, policy);
    set_header(&mut response, header::REFERRER_POLICY, "no-referrer");
    set_header(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

/// Scripts, styles and plotting libraries. Any origin may load them, because frames have an opaque origin and other sites
/// embed the element.
async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    // Plotting libraries are in the parent folder. HTML documents are not assets.
    let asset =
        if name.ends_with(".html") { None } else { web::asset(&format!("page/{name}")).or_else(|| web::asset(&name)) };
    let Some(asset) = asset else {
        return (StatusCode::NOT_FOUND, "this build does not contain the asset; `make web` builds the assets\n")
            .into_response();
    };
    let mut response = serve_asset(asset, &headers);
    set_header(&mut response, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set_header(&mut response, HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    set_header(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn set_header(response: &mut Response, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

fn header_contains(headers: &HeaderMap, name: HeaderName, text: &str) -> bool {
    headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(text))
}

/// An asset: 304 if the browser has it, and compressed if the browser accepts that.
fn serve_asset(asset: Asset, headers: &HeaderMap) -> Response {
    let caching = if asset.is_immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let mut response = if header_contains(headers, header::IF_NONE_MATCH, &asset.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match asset.gzip.filter(|_| header_contains(headers, header::ACCEPT_ENCODING, "gzip")) {
            Some(bytes) => ([(header::CONTENT_ENCODING, "gzip")], bytes).into_response(),
            None => asset.bytes.into_response(),
        }
    };
    set_header(&mut response, header::CONTENT_TYPE, asset.mime);
    set_header(&mut response, header::CACHE_CONTROL, caching);
    set_header(&mut response, header::VARY, "accept-encoding");
    if let Ok(etag) = HeaderValue::from_str(&asset.etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset() -> Asset {
        Asset {
            bytes: b"plain".as_slice().into(),
            gzip: Some(b"zipped".as_slice().into()),
            etag: "\"abc\"".to_owned(),
            mime: "text/javascript; charset=utf-8",
            is_immutable: true,
        }
    }

    fn request_headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn assets_are_compressed_and_cached() {
        let zipped = serve_asset(asset(), &request_headers(header::ACCEPT_ENCODING, "br, gzip"));
        assert_eq!(zipped.headers()[header::CONTENT_ENCODING], "gzip");
        let plain = serve_asset(asset(), &HeaderMap::new());
        assert_eq!((plain.status(), plain.headers().get(header::CONTENT_ENCODING)), (StatusCode::OK, None));
        assert_eq!(plain.headers()[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
        assert_eq!(
            serve_asset(asset(), &request_headers(header::IF_NONE_MATCH, "\"abc\"")).status(),
            StatusCode::NOT_MODIFIED
        );
    }

    #[test]
    fn output_policies_use_opaque_origins() {
        for policy in [HOLDER_POLICY, FRAME_POLICY, TERMINAL_POLICY] {
            assert!(policy.contains("sandbox allow-scripts") && !policy.contains("allow-same-origin"));
            assert!(policy.contains("default-src 'none'") && policy.contains("require-trusted-types-for 'script'"));
        }
        assert!(FRAME_POLICY.contains("connect-src 'none'") && !HOLDER_POLICY.contains("unsafe"));
        assert!(TERMINAL_POLICY.contains("script-src 'self';") && TERMINAL_POLICY.contains("frame-ancestors 'self'"));
        assert!(!PAGE_POLICY.contains("unsafe") && PAGE_POLICY.contains("default-src 'self'"));
        let bare = document(None, &HeaderMap::new(), PAGE_POLICY);
        assert_eq!(bare.headers()[header::CONTENT_SECURITY_POLICY], PAGE_POLICY);
    }
}
