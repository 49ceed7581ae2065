//! The OpenAPI description as a contract: the clients of the tests compare every answer of a server with it. Answers must
//! have the described status, media type and fields, and no other fields: a description that says less than the server
//! sends is wrong as well.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::server::{Reply, Server};
use crate::support::{TestSandbox, skip};

/// The name of the document that holds all schemas for the validator.
const RESOURCE: &str = "mem:///contract.json";
/// Schemas that are not the body of a response.
const EVENT: &str = "Event";
/// An event of a process. Its types have no dot, unlike those of sessions.
const PROCESS_EVENT: &str = "ProcessEvent";
const ENVIRONMENT_EVENT: &str = "EnvironmentEvent";
const SOCKET_REPLY: &str = "SocketReply";
const PROBLEM: &str = "Problem";

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| {
    Contract::new(&serde_json::from_str(include_str!("../../docs/openapi.json")).expect("docs/openapi.json is JSON"))
});

/// Checks an answer to a request.
#[track_caller]
pub fn check(method: &Method, path: &str, reply: &Reply) {
    if let Err(difference) = CONTRACT.check(method, path, reply) {
        panic!("{method} {path}: {} is not as docs/openapi.json says: {difference}\n{}", reply.status, reply.text());
    }
}

/// Checks an event of a stream or a WebSocket.
#[track_caller]
pub fn check_event(event: &Value) {
    let schema = match event["type"].as_str() {
        Some("line" | "ended") => ENVIRONMENT_EVENT,
        Some(kind) if !kind.contains('.') => PROCESS_EVENT,
        _ => EVENT,
    };
    CONTRACT.validate(schema, event).unwrap_or_else(|difference| panic!("{difference}\n{event}"));
}

/// Checks a message of a WebSocket: an event, or a reply to a command.
#[track_caller]
pub fn check_message(message: &Value) {
    match message["type"] == "reply" {
        true => CONTRACT.validate(SOCKET_REPLY, message).unwrap_or_else(|difference| panic!("{difference}\n{message}")),
        false => check_event(message),
    }
}

/// An operation: its path as a pattern, and its responses by status.
struct Operation {
    method: Method,
    path: String,
    responses: Map<String, Value>,
}

impl Operation {
    /// Whether a path fits. The last parameter of a path of files may contain slashes.
    fn accepts(&self, method: &Method, path: &str) -> bool {
        let (mut wanted, mut given) = (self.path.split('/').peekable(), path.split('/').peekable());
        if self.method != *method {
            return false;
        }
        while let (Some(pattern), Some(part)) = (wanted.next(), given.next()) {
            let is_parameter = pattern.starts_with('{');
            if pattern == "{path}" {
                return !part.is_empty();
            }
            if (is_parameter && part.is_empty()) || (!is_parameter && pattern != part) {
                return false;
            }
            if wanted.peek().is_none() && given.peek().is_none() {
                return true;
            }
        }
        false
    }
}

struct Contract {
    operations: Vec<Operation>,
    schemas: Schemas,
    /// Compiled schemas by the names of bodies.
    bodies: HashMap<String, SchemaIndex>,
}

impl Contract {
    fn new(document: &Value) -> Self {
        let mut components = document["components"]["schemas"].clone();
        components.as_object_mut().unwrap().values_mut().for_each(close_parts);
        let mut bodies = Map::new();
        for name in [EVENT, PROCESS_EVENT, ENVIRONMENT_EVENT, SOCKET_REPLY, PROBLEM] {
            bodies.insert(name.to_owned(), closed(&json!({"$ref": format!("#/components/schemas/{name}")})));
        }
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let mut responses = Map::new();
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let shared = response["$ref"].as_str().map(|name| document.pointer(&name[1..]).unwrap());
                    let content = shared.unwrap_or(response)["content"].as_object().cloned().unwrap_or_default();
                    // Each body has a name in the validator's document.
                    let named = content.into_iter().map(|(kind, media)| {
                        let name = format!("body{}", bodies.len());
                        bodies.insert(name.clone(), closed(&media["schema"]));
                        (kind, Value::from(name))
                    });
                    responses.insert(status.clone(), named.collect());
                }
                let method = method.to_uppercase().parse().unwrap();
                operations.push(Operation { method, path: path.clone(), responses });
            }
        }
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        let names: Vec<String> = bodies.keys().cloned().collect();
        compiler.add_resource(RESOURCE, json!({"components": {"schemas": components}, "bodies": bodies})).unwrap();
        let mut schemas = Schemas::new();
        let compiled = names.into_iter().map(|name| {
            let schema = compiler.compile(&format!("{RESOURCE}#/bodies/{name}"), &mut schemas);
            let schema = schema.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            (name, schema)
        });
        let bodies = compiled.collect();
        Self { operations, schemas, bodies }
    }

    fn check(&self, method: &Method, path: &str, reply: &Reply) -> Result<(), String> {
        let path = path.split('?').next().unwrap_or_default();
        let operation = self.operations.iter().find(|operation| operation.accepts(method, path));
        let Some(operation) = operation else {
            // The page, preflight requests and HEAD are not described. Everything else is an error.
            let is_api = path.starts_with("/v1/") && ![Method::HEAD, Method::OPTIONS].contains(method);
            return match reply.status {
                _ if !is_api => Ok(()),
                400.. => self.validate(PROBLEM, &reply.json()),
                _ => Err("the operation is not described".to_owned()),
            };
        };
        let by_status = operation.responses.get(&reply.status.to_string());
        let is_success = reply.status < 400;
        let response = by_status.or_else(|| operation.responses.get("default").filter(|_| !is_success));
        let content = response.and_then(Value::as_object).ok_or("the status is not described")?;
        let kind = reply.header("content-type").split(';').next().unwrap_or_default().trim();
        if content.is_empty() {
            return if reply.body.is_empty() { Ok(()) } else { Err("it has a body".to_owned()) };
        }
        let fits = |described: &str| match described.strip_suffix('*') {
            Some("*/") => true,
            Some(start) => kind.starts_with(start),
            None => kind == described,
        };
        // A media type by its name comes before a range of types.
        let body = content.get(kind).or_else(|| content.iter().find(|(described, _)| fits(described)).map(|(_, body)| body));
        let body = body.and_then(Value::as_str).ok_or_else(|| format!("the media type {kind:?} is not described"))?;
        let is_json = kind.ends_with("/json") || kind.ends_with("+json");
        if is_json && body_is_structured(path) { self.validate(body, &reply.json()) } else { Ok(()) }
    }

    /// Validates a value against the schema of a body.
    fn validate(&self, name: &str, value: &Value) -> Result<(), String> {
        self.schemas.validate(value, self.bodies[name]).map_err(|error| format!("{error:#}"))
    }
}

/// Whether JSON on this path is described by a schema. An artifact can be JSON of any form.
fn body_is_structured(path: &str) -> bool {
    !path.starts_with("/v1/artifacts/")
}

/// A schema for one place in an answer: fields that it does not list are errors, unless it is an object of any form.
fn closed(schema: &Value) -> Value {
    let mut schema = schema.clone();
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    close_parts(schema);
    let lists_fields = ["$ref", "allOf", "oneOf", "properties"].iter().any(|key| schema.get(key).is_some());
    if lists_fields {
        schema["unevaluatedProperties"] = false.into();
    }
}

/// Closes the values inside a schema, but not the schema itself, which may be a part of another.
fn close_parts(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    for key in ["allOf", "oneOf", "anyOf"] {
        fields.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(close_parts);
    }
    let properties = fields.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(close);
    for key in ["items", "additionalProperties"] {
        fields.get_mut(key).into_iter().filter(|value| value.is_object()).for_each(close);
    }
}

/// The checks themselves must fail for wrong answers.
#[test]
fn wrong_answers_are_found() {
    let reply = |status: u16, kind: &str, body: Value| {
        let headers = [(hyper::header::CONTENT_TYPE, kind.parse().unwrap())].into_iter().collect();
        Reply { status, headers, body: body.to_string().into() }
    };
    let share = json!({
        "id": "a", "name": null, "session": "s", "created_at": "2026-11-30T11:55:05.348000Z",
        "expires_at": "2026-12-07T11:55:05.348000Z",
    });
    let (path, json) = ("/v1/sessions/s/shares?x=1", "application/json");
    let with = |name: &str, value: Value| {
        let mut share = share.clone();
        share[name] = value;
        json!({"shares": [share]})
    };
    let check = |status, kind, body| CONTRACT.check(&Method::GET, path, &reply(status, kind, body));
    assert_eq!(check(200, json, with("id", "b".into())), Ok(()));
    let wrong = [
        check(200, json, with("id", 5.into())),
        check(200, json, with("identity", "b".into())),
        check(200, json, with("created_at", "today".into())),
        check(200, json, json!({"shares": [{"id": "a"}]})),
        check(200, json, json!({"shares": [], "more": true})),
        check(200, "text/html", with("id", "b".into())),
        check(201, json, with("id", "b".into())),
        check(404, json, json!({"code": "no_session"})),
        check(404, "application/problem+json", json!({"code": "no_session"})),
        CONTRACT.check(&Method::DELETE, "/v1/sessions/s", &reply(204, "", json!(1))),
        CONTRACT.check(&Method::POST, "/v1/sessions/s/unknown", &reply(200, json, json!({}))),
    ];
    for (index, result) in wrong.into_iter().enumerate() {
        assert!(result.is_err(), "case {index} is accepted");
    }
    let event =
        json!({"seq": 1, "time": "2026-11-30T11:55:05.348000Z", "session": "s", "type": "session.state", "state": "idle"});
    assert_eq!(CONTRACT.validate(EVENT, &event), Ok(()));
    for (name, value) in [("type", json!("session.status")), ("state", json!("asleep")), ("mood", json!("good"))] {
        let mut event = event.clone();
        event[name] = value;
        assert!(CONTRACT.validate(EVENT, &event).is_err(), "{event} is accepted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_described_operation_is_routed() {
    let server = Server::start("contract", TestSandbox::process(), &[]).await;
    let anonymous = server.client().anonymous();
    anonymous.get("/v1/unknown").await.problem(404, "no_such_path");
    assert!(CONTRACT.operations.len() > 40, "{}", CONTRACT.operations.len());
    for operation in &CONTRACT.operations {
        let reply = anonymous.send(operation.method.clone(), &operation.path.replace(['{', '}'], ""), "").await;
        match operation.path.starts_with("/v1/") || operation.path == "/metrics" {
            true => drop(reply.problem(401, "no_token")),
            false => assert_eq!(reply.status, 200, "{}", operation.path),
        }
    }
    let described: Value = anonymous.get("/openapi.json").await.is(200);
    assert_eq!(described, serde_json::from_str::<Value>(include_str!("../../docs/openapi.json")).unwrap());
    server.end().await;
}

/// The validator of the OpenAPI Initiative's schema, from PyPI.
#[test]
fn description_is_valid_openapi() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new(root.join("target/test-venv/bin/python"));
    let has_validator =
        python.args(["-c", "import openapi_spec_validator"]).output().is_ok_and(|done| done.status.success());
    if !has_validator {
        return skip("no openapi-spec-validator here: run scripts/setup-test.sh");
    }
    let validated = Command::new(root.join("target/test-venv/bin/python"))
        .args(["-m", "openapi_spec_validator", "--schema", "3.1"])
        .arg(root.join("docs/openapi.json"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&validated.stdout) + String::from_utf8_lossy(&validated.stderr);
    assert!(validated.status.success(), "{said}");
}
