//! The OpenAPI description as one HTML page: operations by tag, then schemas. All parts are open, so that the search of the
//! browser finds them.

use serde_json::{Map, Value};

use super::curl;
use crate::render::{Allowance, escaped, markdown};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// An operation with its place in the description.
pub(super) struct Operation<'a> {
    pub path: &'a str,
    pub method: &'a str,
    pub fields: &'a Value,
}

impl<'a> Operation<'a> {
    pub fn parameters(&self) -> impl Iterator<Item = &'a Value> {
        self.fields["parameters"].as_array().into_iter().flatten()
    }

    fn id(&self) -> &'a str {
        text(&self.fields["operationId"])
    }

    fn is_public(&self) -> bool {
        self.fields.get("security").is_some()
    }
}

/// The page of a description.
pub(super) fn html(document: &Value) -> String {
    let info = &document["info"];
    let title = format!("{} {}: HTTP API", text(&info["title"]), text(&info["version"]));
    let operations = operations(document);
    let schemas = document["components"]["schemas"].as_object();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <link rel=\"stylesheet\" href=\"/docs.css\">\n</head>\n<body>\n{navigation}<main>\n<h1>{title}</h1>\n{description}\
         <p>The same for programs: <a href=\"/openapi.json\">/openapi.json</a> (OpenAPI {version}). The curl lines expect \
         <code>export URL=http://127.0.0.1:7788 TOKEN=...</code></p>\n",
        title = escaped(&title),
        navigation = navigation(document, &operations),
        description = paragraphs(&info["description"]),
        version = escaped(text(&document["openapi"])),
    );
    for tag in tags(document) {
        let (name, title) = (escaped(text(&tag["name"])), escaped(&capitalized(text(&tag["name"]))));
        page += &format!("<h2 id=\"tag-{name}\">{title}</h2>\n{}", paragraphs(&tag["description"]));
        page.extend(operations.iter().filter(|one| has_tag(one, tag)).map(|one| operation(document, one)));
    }
    page += "<h2 id=\"schemas\">Schemas</h2>\n";
    page.extend(schemas.into_iter().flatten().map(|(name, schema)| named_schema(name, schema)));
    page + "</main>\n</body>\n</html>\n"
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn tags(document: &Value) -> impl Iterator<Item = &Value> {
    document["tags"].as_array().into_iter().flatten()
}

fn has_tag(operation: &Operation<'_>, tag: &Value) -> bool {
    operation.fields["tags"].as_array().is_some_and(|tags| tags.contains(&tag["name"]))
}

pub(super) fn operations(document: &Value) -> Vec<Operation<'_>> {
    let items = document["paths"].as_object().into_iter().flatten();
    let of_item = |(path, item): (&'_ String, &'_ Value)| {
        let methods = METHODS.into_iter().filter(|method| item.get(method).is_some());
        methods.map(|method| (path.clone(), method)).collect::<Vec<_>>()
    };
    let places = items.flat_map(of_item).collect::<Vec<_>>();
    places
        .into_iter()
        .filter_map(|(path, method)| {
            let (path, item) = document["paths"].as_object()?.get_key_value(&path)?;
            Some(Operation { path, method, fields: &item[method] })
        })
        .collect()
}

fn navigation(document: &Value, operations: &[Operation<'_>]) -> String {
    let mut nav = "<nav aria-label=\"Contents\">\n".to_owned();
    for tag in tags(document) {
        let name = text(&tag["name"]);
        nav += &format!("<a href=\"#tag-{}\">{}</a>\n<ul>\n", escaped(name), escaped(&capitalized(name)));
        for operation in operations.iter().filter(|one| has_tag(one, tag)) {
            let summary = escaped(text(&operation.fields["summary"]));
            nav += &format!("<li><a href=\"#{}\">{summary}</a></li>\n", escaped(operation.id()));
        }
        nav += "</ul>\n";
    }
    nav + "<a href=\"#schemas\">Schemas</a>\n</nav>\n"
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Markdown as paragraphs.
fn paragraphs(source: &Value) -> String {
    source
        .as_str()
        .map(|source| markdown::html(source, &|_| None, &Allowance::for_source(source.len())).0)
        .unwrap_or_default()
}

fn operation(document: &Value, operation: &Operation<'_>) -> String {
    let (fields, id) = (operation.fields, escaped(operation.id()));
    let mut html = format!(
        "<article id=\"{id}\">\n<h3><a href=\"#{id}\">{}</a></h3>\n<p class=\"path\"><span class=\"{method}\">{}</span> \
         <code>{}</code></p>\n{}",
        escaped(text(&fields["summary"])),
        operation.method.to_uppercase(),
        escaped(operation.path),
        paragraphs(&fields["description"]),
        method = operation.method,
    );
    if operation.is_public() {
        html += "<p>Needs no token.</p>\n";
    }
    let parameters: String = operation.parameters().map(parameter).collect();
    if !parameters.is_empty() {
        html += &table("Parameters", &["name", "in", "type", "meaning"], &parameters);
    }
    if let Some(content) = fields["requestBody"]["content"].as_object() {
        let optional = if fields["requestBody"]["required"] == true { "" } else { " (optional)" };
        html += &format!("<p><strong>Body</strong>{optional}: {}</p>\n", media(content));
    }
    let responses = fields["responses"].as_object().into_iter().flatten();
    html += &table(
        "Responses",
        &["status", "meaning", "body"],
        &responses.map(|(status, one)| response(document, status, one)).collect::<String>(),
    );
    if let Some(line) = curl::line(document, operation) {
        html += &format!("<pre><code>{}</code></pre>\n", escaped(&line));
    }
    html + "</article>\n"
}

fn table(caption: &str, columns: &[&str], rows: &str) -> String {
    let columns: String = columns.iter().map(|column| format!("<th scope=\"col\">{column}</th>")).collect();
    format!("<table>\n<caption>{caption}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n")
}

fn parameter(parameter: &Value) -> String {
    let schema = &parameter["schema"];
    format!(
        "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}{}</td></tr>\n",
        escaped(text(&parameter["name"])),
        escaped(text(&parameter["in"])),
        type_name(schema),
        paragraphs(&parameter["description"]),
        constraints(schema),
    )
}

fn response(document: &Value, status: &str, response: &Value) -> String {
    let shared = response["$ref"].as_str().and_then(|reference| document.pointer(reference.trim_start_matches('#')));
    let response = shared.unwrap_or(response);
    // The introduction explains the headers of shared responses.
    let own = if shared.is_some() { None } else { response["headers"].as_object() };
    let headers = own.into_iter().flatten().map(|(name, header)| {
        format!("<p>Header <code>{}</code>: {}</p>", escaped(name), escaped(text(&header["description"])))
    });
    format!(
        "<tr><th scope=\"row\">{}</th><td>{}{}</td><td>{}</td></tr>\n",
        escaped(status),
        paragraphs(&response["description"]),
        headers.collect::<String>(),
        response["content"].as_object().map(media).unwrap_or_default(),
    )
}

/// Media types with their schemas.
fn media(content: &Map<String, Value>) -> String {
    let one = |(kind, media): (&String, &Value)| format!("<code>{}</code>: {}", escaped(kind), type_name(&media["schema"]));
    content.iter().map(one).collect::<Vec<_>>().join("<br>")
}

/// The type of a value, with links to named schemas.
fn type_name(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return format!("<a href=\"#schema-{name}\">{name}</a>", name = escaped(name));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        return choices.iter().map(type_name).collect::<Vec<_>>().join(" or ");
    }
    if let Some(values) = schema["enum"].as_array() {
        let values = values.iter().filter_map(Value::as_str);
        return values.map(|value| format!("<code>{}</code>", escaped(value))).collect::<Vec<_>>().join(" | ");
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => vec!["any value"],
    };
    let one = |name: &&str| match (*name, schema["format"].as_str()) {
        ("array", _) => format!("list of {}", type_name(&schema["items"])),
        ("object", _) if schema["additionalProperties"].is_object() => {
            format!("object with values of type {}", type_name(&schema["additionalProperties"]))
        }
        ("string", Some("date-time")) => "date and time".to_owned(),
        ("string", Some("binary")) => "bytes".to_owned(),
        (name, _) => escaped(name),
    };
    types.iter().map(one).collect::<Vec<_>>().join(" or ")
}

/// The default and the bounds of a value.
fn constraints(schema: &Value) -> String {
    const WORDS: &[(&str, &str)] = &[
        ("default", "default"),
        ("minimum", "at least"),
        ("exclusiveMinimum", "more than"),
        ("maximum", "at most"),
        ("minLength", "shortest length"),
        ("maxLength", "longest length"),
        ("maxProperties", "most entries"),
        ("pattern", "pattern"),
    ];
    let known = WORDS.iter().filter_map(|(key, word)| {
        let value = schema.get(key)?;
        Some(format!("{word} <code>{}</code>", escaped(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))))
    });
    let known = known.collect::<Vec<_>>().join(", ");
    if known.is_empty() { known } else { format!("<p class=\"bounds\">{known}</p>") }
}

fn named_schema(name: &str, schema: &Value) -> String {
    let examples = schema["examples"].as_array().into_iter().flatten();
    let examples = examples.map(|example| {
        format!("<pre><code>{}</code></pre>\n", escaped(&serde_json::to_string_pretty(example).unwrap_or_default()))
    });
    format!(
        "<article id=\"schema-{name}\">\n<h3><a href=\"#schema-{name}\">{name}</a></h3>\n{}{}{}</article>\n",
        paragraphs(&schema["description"]),
        schema_body(schema),
        examples.collect::<String>(),
        name = escaped(name),
    )
}

/// The fields of an object, the values of an enum, or the schemas by the value of the field that tells them apart.
fn schema_body(schema: &Value) -> String {
    if let Some(parts) = schema["allOf"].as_array() {
        let part = |part: &Value| match part.get("$ref") {
            Some(_) => format!("<p>The fields of {}, and:</p>\n", type_name(part)),
            None => schema_body(part),
        };
        return parts.iter().map(part).collect();
    }
    if let Some(mapping) = schema["discriminator"]["mapping"].as_object() {
        let row = |(value, reference): (&String, &Value)| {
            let name = type_name(&serde_json::json!({"$ref": reference}));
            format!("<tr><th scope=\"row\"><code>{}</code></th><td>{name}</td></tr>\n", escaped(value))
        };
        let property = text(&schema["discriminator"]["propertyName"]);
        return table(&escaped(&capitalized(property)), &["value", "schema"], &mapping.iter().map(row).collect::<String>());
    }
    let Some(properties) = schema["properties"].as_object() else { return format!("<p>{}</p>\n", type_name(schema)) };
    let is_required = |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|one| one == name));
    let row = |(name, field): (&String, &Value)| {
        let presence = if is_required(name) { "always" } else { "optional" };
        format!(
            "<tr><th scope=\"row\"><code>{}</code></th><td>{presence}</td><td>{}</td><td>{}{}</td></tr>\n",
            escaped(name),
            type_name(field),
            paragraphs(&field["description"]),
            constraints(field),
        )
    };
    table("Fields", &["name", "present", "type", "meaning"], &properties.iter().map(row).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::document;
    use super::*;

    #[test]
    fn page_shows_every_operation_and_schema() {
        let (document, page) = (document(), html(document()));
        let ids: BTreeSet<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        for operation in operations(document) {
            assert!(ids.contains(operation.id()), "{}", operation.path);
            assert!(page.contains(&escaped(text(&operation.fields["summary"]))), "{}", operation.path);
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            assert!(ids.contains(format!("schema-{name}").as_str()), "{name}");
        }
        let targets = page.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next());
        for target in targets {
            assert!(ids.contains(target), "a link to {target} leads nowhere");
        }
    }

    #[test]
    fn texts_of_the_description_are_escaped() {
        let document = serde_json::json!({
            "openapi": "3.1.0", "info": {"title": "<b>", "version": "1", "description": "<script>x</script>"},
            "tags": [{"name": "a\"b", "description": "<i onclick=x>"}],
            "paths": {"/<p>": {"get": {
                "operationId": "\"><s>", "tags": ["a\"b"], "summary": "<u>", "parameters": [{"name": "<n>", "in": "query"}],
                "responses": {"<r>": {"description": "<script>"}},
            }}},
            "components": {"schemas": {"<S>": {"type": "object", "properties": {"<f>": {"default": "<d>"}}}}},
        });
        let page = html(&document);
        for raw in ["<b>", "<script", "onclick", "<p>\"", "<s>", "<u>", "<n>", "<r>", "<S>", "<f>", "<d>"] {
            assert!(!page.contains(raw), "{raw}: {page}");
        }
    }
}
