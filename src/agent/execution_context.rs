//! The context of an execution: read from the manager's request, and for kernels that cannot read it there, put into the code.

use serde_json::Value;

use crate::agent_protocol::ExecutionContext;
use crate::wire::Message;

/// The manager's object in the metadata of an `execute_request`.
pub(super) fn read(request: &Message) -> ExecutionContext {
    #[derive(Default, serde::Deserialize)]
    struct Metadata {
        #[serde(default)]
        cellkeep: ExecutionContext,
    }
    serde_json::from_slice::<Metadata>(&request.metadata).unwrap_or_default().cellkeep
}

/// The request with code in front that sets environment and working folder. `template` has `{context}` where their JSON belongs. The
/// lines of the cell's code keep their numbers.
pub(super) fn prefix_code(mut request: Message, context: &ExecutionContext, template: &str) -> Message {
    if context.env.is_empty() && context.cwd.is_none() {
        return request;
    }
    let Ok(Value::Object(mut content)) = serde_json::from_slice(&request.content) else { return request };
    let code = content.get("code").and_then(Value::as_str).unwrap_or_default();
    let context = ExecutionContext { env: context.env.clone(), cwd: context.cwd.clone(), ..ExecutionContext::default() };
    let prefix = template.replace("{context}", &serde_json::json!(context).to_string());
    content.insert("code".to_owned(), format!("{prefix} {code}").into());
    request.content = Value::Object(content).to_string().into();
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request(metadata: &Value) -> Message {
        let mut message = Message::new_request("s", "execute_request", &json!({"code": "1\n2", "silent": false}));
        message.metadata = metadata.to_string().into();
        message
    }

    #[test]
    fn context_is_in_the_metadata() {
        let context = read(&request(&json!({"cellId": "a", "cellkeep": {"env": {"A": "b"}, "artifacts": ["*.csv"]}})));
        assert_eq!((context.env["A"].as_str(), context.artifacts.as_slice()), ("b", ["*.csv".to_owned()].as_slice()));
        assert!(read(&request(&json!({}))).is_default() && read(&request(&json!("foreign"))).is_default());
    }

    #[test]
    fn code_is_prefixed_on_its_first_line() {
        let context = ExecutionContext { cwd: Some("a'b".to_owned()), ..ExecutionContext::default() };
        let prefixed = prefix_code(request(&json!({})), &context, "enter({context});");
        assert_eq!(prefixed.content_value()["code"], "enter({\"cwd\":\"a'b\"}); 1\n2");
        assert_eq!(prefixed.content_value()["silent"], false);
        let unchanged = request(&json!({}));
        assert_eq!(prefix_code(unchanged.clone(), &ExecutionContext::default(), "enter({context});"), unchanged);
    }
}
