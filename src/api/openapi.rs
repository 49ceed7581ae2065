//! The OpenAPI description of the API. It is collected from the handlers and types that are served, so that it cannot name
//! other paths or fields than they have. `docs/openapi.json` is a copy, which a test keeps up to date.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::error::ProblemView;
use super::sandboxes::SandboxInPath;
use super::{processes, public_routes, session_socket, socket, v1_routes};

/// What is true for all operations.
#[derive(OpenApi)]
#[openapi(
    info(title = "Cellkeep", description = include_str!("openapi/description.md"),
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")),
    tags(
        (name = "execute", description = "Code that runs once, in a session of its own, with its results in one response."),
        (name = "sessions", description = "A session is a kernel with its cells and files. It ends, but stays readable, until it is deleted."),
        (name = "environments", description = "Packages that are installed once, in a sandbox of their own, and that sessions see beside those of their kernel."),
        (name = "sandboxes", description = "A sandbox holds sessions and processes, which share files, limits and network. A session has one of its own unless it names one."),
        (name = "processes", description = "Commands in a sandbox, beside its kernels."),
        (name = "cells", description = "The cells of a session, and their outputs."),
        (name = "events", description = "Everything that happens in a session, as numbered events."),
        (name = "kernel", description = "The kernel of a session: interrupt, restart, input, completion, variables."),
        (name = "files", description = "The workspace of a session."),
        (name = "artifacts", description = "Plots and files that cells have displayed."),
        (name = "notebooks", description = "The cells of a session as a notebook file or document."),
        (name = "runs", description = "Notebook jobs. A job is a session that ends when its cells have ended."),
        (name = "chat", description = "A conversation with a model in the cells of a session."),
        (name = "shares", description = "Tokens that can read one session."),
        (name = "server", description = "The server, its kernels and its documentation."),
    ),
    components(schemas(ProblemView, session_socket::Command, processes::Command, socket::Reply)),
    security(("token" = [])),
)]
struct Common;

/// Responses that many operations have: name, status, description, and whether they have a `Retry-After` header.
const SHARED_RESPONSES: &[(&str, &str, &str, bool)] = &[
    ("BadRequest", "400", "The request is malformed: `bad_json`, `bad_query`, `bad_body` and others.", false),
    ("Unauthorized", "401", "The token is missing or invalid: `no_token`, `bad_token`.", false),
    ("Forbidden", "403", "The token, the host or the origin does not permit this: `scope_too_narrow` and others.", false),
    ("NotFound", "404", "There is no such thing, or the token cannot access it: `no_session`, `no_cell` and others.", false),
    (
        "Conflict",
        "409",
        "The state of the session does not permit this: `session_gone`, `cell_in_progress` and others.",
        false,
    ),
    (
        "PayloadTooLarge",
        "413",
        "The body is larger than 32 MB, or a part of it is too large: `body_too_large` and others.",
        false,
    ),
    ("InvalidField", "422", "A field is invalid: `bad_field`, `missing_field` and others. `field` names it.", false),
    ("TooManyRequests", "429", "A limit is exceeded: `too_many_requests` and others.", true),
    ("Problem", "default", "Any other problem.", true),
];

/// The description as JSON.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let router = OpenApiRouter::with_openapi(Common::openapi()).nest("/v1", v1_routes()).merge(public_routes());
        let mut openapi = router.into_openapi();
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
            "Paths that end in `/events` or `/socket` also accept the token in the query (`?token=`), because browsers cannot \
             set headers for event streams and WebSockets.",
        ));
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        let mut document = serde_json::to_value(openapi).unwrap_or_default();
        join_lines(&mut document);
        mark_free_objects(&mut document);
        rename_wildcards(&mut document);
        name_sandbox_files(&mut document);
        add_shared_responses(&mut document);
        document
    });
    &DOCUMENT
}

/// Joins the lines of each paragraph of a description, which are those of the source code.
fn join_lines(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" || name == "summary" => *text = joined(text),
                    value => join_lines(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(join_lines),
        _ => {}
    }
}

fn joined(text: &str) -> String {
    let is_list = |paragraph: &str| paragraph.starts_with("- ");
    let paragraphs = text.trim().split("\n\n").map(|paragraph| match is_list(paragraph) {
        true => paragraph.replace("\n  ", " "),
        false => paragraph.replace('\n', " "),
    });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// Says of objects without listed fields that they may have any: client generators read the absence of both as no fields.
fn mark_free_objects(value: &mut Value) {
    match value {
        Value::Object(schema) => {
            let is_object = schema.get("type").is_some_and(|kind| {
                kind == "object" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "object"))
            });
            if is_object && !schema.contains_key("properties") && !schema.contains_key("additionalProperties") {
                schema.insert("additionalProperties".to_owned(), true.into());
            }
            schema.values_mut().for_each(mark_free_objects);
        }
        Value::Array(values) => values.iter_mut().for_each(mark_free_objects),
        _ => {}
    }
}

/// Writes `{*path}` of the router as `{path}`.
fn rename_wildcards(document: &mut Value) {
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        *paths = std::mem::take(paths).into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    }
}

/// Requests about files are the same for sessions and sandboxes. Those of sandboxes get names and parameters of their own.
fn name_sandbox_files(document: &mut Value) {
    let sandbox = serde_json::to_value(SandboxInPath::into_params(|| None)).unwrap_or_default();
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let of_sandboxes = paths.filter(|(path, _)| path.starts_with("/v1/sandboxes/{sandbox}/files"));
    for (_, operation) in of_sandboxes.filter_map(|(_, item)| item.as_object_mut()).flatten() {
        if let Some(name) = operation["operationId"].as_str() {
            operation["operationId"] = format!("{name}_of_sandbox").into();
        }
        for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
            if parameter["name"] == "session" {
                *parameter = sandbox[0].clone();
            }
        }
    }
}

/// Adds the problems that an operation can have because of its form: whether it needs a token, and has a body.
fn add_shared_responses(document: &mut Value) {
    let header = json!({
        "description": "Seconds after which a retry makes sense, if one does.", "schema": {"type": "integer", "minimum": 0}
    });
    let response = |description: &str, can_retry: bool| {
        let mut response = json!({
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        });
        if can_retry {
            response["headers"] = json!({"Retry-After": header});
        }
        response
    };
    let responses = SHARED_RESPONSES.iter().map(|(name, _, text, can_retry)| (*name, response(text, *can_retry)));
    document["components"]["responses"] = responses.map(|(name, response)| (name.to_owned(), response)).collect();
    let items = document["paths"].as_object_mut().into_iter().flat_map(Map::values_mut);
    for (method, operation) in items.filter_map(Value::as_object_mut).flatten() {
        let (is_public, has_body) = (operation.get("security").is_some(), operation.get("requestBody").is_some());
        let has_query = operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] != "path"));
        let has_path = operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == "path"));
        for (name, status, ..) in SHARED_RESPONSES {
            let applies = match *status {
                "400" => has_body || has_query,
                "401" | "403" | "429" => !is_public,
                "404" => has_path,
                "409" => has_path && method != "get",
                "413" | "422" => has_body,
                _ => true,
            };
            if applies {
                operation["responses"][*status] = json!({"$ref": format!("#/components/responses/{name}")});
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Set to write the copy in docs/ instead of comparing it.
    const UPDATE: &str = "CELLKEEP_TEST_UPDATE";

    fn operations() -> impl Iterator<Item = (&'static String, &'static String, &'static Value)> {
        let items = document()["paths"].as_object().unwrap().iter();
        items.flat_map(|(path, item)| item.as_object().unwrap().iter().map(move |(method, one)| (path, method, one)))
    }

    #[test]
    fn copy_in_docs_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        let text = serde_json::to_string_pretty(document()).unwrap() + "\n";
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let copy = std::fs::read_to_string(&path).unwrap_or_default();
        let command = format!("{UPDATE}=1 cargo test --all-features --lib openapi::");
        assert!(copy == text, "the API has changed, and docs/openapi.json has not; if that is intended, run\n{command}");
    }

    #[test]
    fn every_operation_has_a_name_and_a_group() {
        let tags: BTreeSet<_> = document()["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str()).collect();
        let mut names = BTreeSet::new();
        for (path, method, operation) in operations() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name), "{name} is the name of two operations");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{method} {path}");
            assert!(tags.contains(&operation["tags"][0].as_str()), "{method} {path}");
            let summary = operation["summary"].as_str().unwrap();
            assert!(!summary.is_empty() && !summary.ends_with('.'), "{method} {path}: {summary}");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
            }
            let placeholders = path.matches('{').count();
            let described = operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "path");
            assert_eq!(described.count(), placeholders, "{method} {path}");
        }
        assert!(names.len() > 40, "{names:?}");
    }

    /// All routes are declared with `routes!`, which describes them. The style of the page is no operation.
    #[test]
    fn no_route_is_left_out() {
        assert_eq!(include_str!("mod.rs").matches(".route(").count(), 1);
    }

    #[test]
    fn references_resolve() {
        let text = document().to_string();
        let mut count = 0;
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document().pointer(pointer).is_some(), "{pointer}");
            count += 1;
        }
        assert!(count > 100, "{count}");
    }

    #[test]
    fn examples_fit_their_schemas() {
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource("mem:///api.json", document().clone()).unwrap();
        let (mut schemas, mut count) = (boon::Schemas::new(), 0);
        for (name, schema) in document()["components"]["schemas"].as_object().unwrap() {
            let index = compiler.compile(&format!("mem:///api.json#/components/schemas/{name}"), &mut schemas).unwrap();
            for example in schema["examples"].as_array().into_iter().flatten() {
                schemas.validate(example, index).unwrap_or_else(|error| panic!("{name}: {error}"));
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn lines_of_a_paragraph_are_joined() {
        assert_eq!(joined(" a\nb\n\nc\nd"), "a b\n\nc d");
        assert_eq!(joined("- a\n  b\n- c"), "- a b\n- c");
    }
}
