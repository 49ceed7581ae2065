//! A curl command for an operation, with the example of its body.

use serde_json::Value;

use super::page::Operation;

/// The command. `None` for WebSockets, which curl does not speak.
pub(super) fn line(document: &Value, operation: &Operation<'_>) -> Option<String> {
    let responses = &operation.fields["responses"];
    if responses.get("101").is_some() {
        return None;
    }
    let mut words = vec!["curl".to_owned()];
    let is_stream = responses["200"]["content"].get("text/event-stream").is_some();
    if is_stream && operation.method == "get" {
        // Without buffering.
        words.push("-N".to_owned());
    }
    let content = &operation.fields["requestBody"]["content"];
    let (body, method) = match body(document, content) {
        Some(Body::Json(text)) => (Some(format!("-d {}", quoted(&text))), "post"),
        Some(Body::File) => (Some("-T FILE".to_owned()), "put"),
        Some(Body::Form) => (Some("-F file=@FILE".to_owned()), "post"),
        None => (None, "get"),
    };
    if operation.method != method {
        words.push(format!("-X {}", operation.method.to_uppercase()));
    }
    if operation.fields.get("security").is_none() {
        words.push("-H \"Authorization: Bearer $TOKEN\"".to_owned());
    }
    words.push(format!("\"$URL{}\"", address(operation)));
    words.extend(body);
    Some(words.join(" "))
}

/// The path with a word in capitals for each parameter, and a query that waits if the operation can.
fn address(operation: &Operation<'_>) -> String {
    let mut address = operation.path.to_owned();
    for name in operation.parameters().filter(|one| one["in"] == "path").filter_map(|one| one["name"].as_str()) {
        address = address.replace(&format!("{{{name}}}"), &name.to_uppercase());
    }
    let can_wait = operation.parameters().any(|one| one["name"] == "wait");
    if can_wait { address + "?wait=30" } else { address }
}

enum Body {
    Json(String),
    File,
    Form,
}

fn body(document: &Value, content: &Value) -> Option<Body> {
    let Some(json) = content.get("application/json") else {
        let has = |media_type: &str| content.get(media_type).is_some();
        let form = has("multipart/form-data").then_some(Body::Form);
        return if has("application/octet-stream") { Some(Body::File) } else { form };
    };
    // A schema, or a choice between null and a schema.
    let schema = &json["schema"];
    let mut choices = schema["oneOf"].as_array().into_iter().flatten().chain([schema]);
    let reference = choices.find_map(|choice| choice["$ref"].as_str())?;
    let example = document.pointer(reference.trim_start_matches('#'))?["examples"].get(0)?;
    Some(Body::Json(example.to_string()))
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::super::page::operations;
    use super::*;

    #[test]
    fn commands_fit_the_operations() {
        let command = |id: &str| {
            let operation = operations(document()).into_iter().find(|one| one.fields["operationId"] == id);
            line(document(), &operation.unwrap())
        };
        let begin = "curl -H \"Authorization: Bearer $TOKEN\"";
        assert_eq!(command("get_health").as_deref(), Some("curl \"$URL/healthz\""));
        assert_eq!(
            command("add_cell"),
            Some(format!(r#"{begin} "$URL/v1/sessions/SESSION/cells?wait=30" -d '{{"source":"6*7","id":"answer"}}'"#))
        );
        assert_eq!(command("write_file"), Some(format!("{begin} \"$URL/v1/sessions/SESSION/files/PATH\" -T FILE")));
        assert!(command("stream_events").unwrap().starts_with("curl -N "));
        assert!(command("delete_cell").unwrap().starts_with("curl -X DELETE "));
        assert_eq!(command("open_socket"), None);
    }

    #[test]
    fn quotes_of_examples_do_not_end_the_word() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
