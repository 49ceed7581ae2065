//! The page for people at `/`: embedded files with strict policies. It holds nothing of anybody: all it shows comes from
//! `/v1`, with a token.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::web::{self, Asset};

/// Nothing inline, nothing from elsewhere. Pictures of outputs are blobs.
const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' blob: data:; media-src blob:; object-src 'none'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document around an output's frame, which only hands over what it is given. By this policy that frame goes nowhere
/// else, whatever page is around it.
const HOLDER_POLICY: &str = "sandbox allow-scripts allow-downloads allow-pointer-lock; default-src 'none'; script-src 'self'; \
    style-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";

/// What shows an output has an origin of its own, even if somebody opens it as a page, and may ask no network. It may do
/// what it likes with itself: nothing is there. Text that becomes elements passes its own script, which leaves no document
/// in it that has not passed.
const FRAME_POLICY: &str = "sandbox allow-scripts allow-downloads allow-pointer-lock; default-src 'none'; \
    script-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'self' 'unsafe-inline'; img-src data: blob:; \
    font-src data:; media-src data: blob:; worker-src blob:; frame-src 'self'; connect-src 'none'; form-action 'none'; \
    base-uri 'none'; require-trusted-types-for 'script'; trusted-types default";

const NOT_BUILT: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Cellkeep</title>\
    <h1>This cellkeep was built without its page</h1><p>The page is packed by npm before the program is built: \
    run <code>make build</code> instead of <code>cargo build</code>, or <code>make web</code> before it. \
    All else works: <a href=\"/docs\">the interface for programs</a>, and the command line.</p></html>";

/// What is served without a token.
pub fn router() -> Router {
    let frames = Router::new().route("/-/frame", get(holder)).route("/-/frame/inner", get(frame));
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

fn document(found: Option<Asset>, headers: &HeaderMap, policy: &'static str) -> Response {
    let mut response = match found {
        Some(asset) => answer(asset, headers),
        None => (StatusCode::OK, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], NOT_BUILT).into_response(),
    };
    set(&mut response, header::CONTENT_SECURITY_POLICY, policy);
    set(&mut response, header::REFERRER_POLICY, "no-referrer");
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

/// Scripts, styles and plotting libraries. Frames have no origin and pages of others embed the element, so anyone may load
/// them.
async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    // Libraries for plots stand beside the page, documents are not assets.
    let found =
        if name.ends_with(".html") { None } else { web::asset(&format!("page/{name}")).or_else(|| web::asset(&name)) };
    let Some(asset) = found else {
        return (StatusCode::NOT_FOUND, "there is no such asset in this build; `make web` makes them\n").into_response();
    };
    let mut response = answer(asset, &headers);
    set(&mut response, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set(&mut response, HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn set(response: &mut Response, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

fn says(headers: &HeaderMap, name: HeaderName, what: &str) -> bool {
    headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(what))
}

/// The asset, unless the browser has it; compressed, if the browser can read that.
fn answer(asset: Asset, headers: &HeaderMap) -> Response {
    let caching = if asset.is_immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let mut response = if says(headers, header::IF_NONE_MATCH, &asset.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match asset.zipped.filter(|_| says(headers, header::ACCEPT_ENCODING, "gzip")) {
            Some(bytes) => ([(header::CONTENT_ENCODING, "gzip")], bytes).into_response(),
            None => asset.bytes.into_response(),
        }
    };
    set(&mut response, header::CONTENT_TYPE, asset.mime);
    set(&mut response, header::CACHE_CONTROL, caching);
    set(&mut response, header::VARY, "accept-encoding");
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
            zipped: Some(b"zipped".as_slice().into()),
            etag: "\"abc\"".to_owned(),
            mime: "text/javascript; charset=utf-8",
            is_immutable: true,
        }
    }

    fn asked(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn browsers_get_what_they_can_read_and_do_not_have() {
        let zipped = answer(asset(), &asked(header::ACCEPT_ENCODING, "br, gzip"));
        assert_eq!(zipped.headers()[header::CONTENT_ENCODING], "gzip");
        let plain = answer(asset(), &HeaderMap::new());
        assert_eq!((plain.status(), plain.headers().get(header::CONTENT_ENCODING)), (StatusCode::OK, None));
        assert_eq!(plain.headers()[header::CACHE_CONTROL], "public, max-age=31536000, immutable");
        assert_eq!(answer(asset(), &asked(header::IF_NONE_MATCH, "\"abc\"")).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn no_policy_gives_an_output_the_pages_origin() {
        for policy in [HOLDER_POLICY, FRAME_POLICY] {
            assert!(policy.contains("sandbox allow-scripts") && !policy.contains("allow-same-origin"));
            assert!(policy.contains("default-src 'none'") && policy.contains("require-trusted-types-for 'script'"));
        }
        assert!(FRAME_POLICY.contains("connect-src 'none'") && !HOLDER_POLICY.contains("unsafe"));
        assert!(!PAGE_POLICY.contains("unsafe") && PAGE_POLICY.contains("default-src 'self'"));
        let bare = document(None, &HeaderMap::new(), PAGE_POLICY);
        assert_eq!(bare.headers()[header::CONTENT_SECURITY_POLICY], PAGE_POLICY);
    }
}
