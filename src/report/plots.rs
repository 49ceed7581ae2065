//! The plots among the outputs of an execution.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::mime;
use crate::output::{ArtifactOptions, artifacts_of, joined};

/// The longest caption in characters.
const MAX_CAPTION: usize = 300;

/// A plot that an execution displayed.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Plot {
    /// `png`, `svg` or `pdf`; for other images their usual file ending; `plotly`, `vega` or `vega-lite` for the specification of
    /// an interactive plot.
    pub format: String,
    /// The text of SVG and specifications, else base64.
    pub data: String,
    /// What the plot's title or the kernel says that it shows.
    #[schema(required)]
    pub caption: Option<String>,
}

/// The plot of an output in the best of its types, if it is one.
pub fn of_output(output: &Value) -> Option<Plot> {
    let found = artifacts_of(output, 0, 1, ArtifactOptions::default()).into_iter();
    let mut plots = found.filter_map(|artifact| Some((artifact.mime, artifact.content.ok()?)));
    let (mime, bytes) = plots.find(|(mime, _)| !mime.starts_with("audio/") && !mime.starts_with("video/"))?;
    let data = match mime::is_binary(&mime) {
        true => STANDARD.encode(bytes),
        false => String::from_utf8_lossy(&bytes).into_owned(),
    };
    Some(Plot { format: format(&mime), data, caption: caption(output, &mime) })
}

fn format(mime: &str) -> String {
    let essence = mime::essence(mime);
    let known = [("plotly", "plotly"), ("vegalite", "vega-lite"), ("vega", "vega")];
    match known.into_iter().find(|(part, _)| essence.starts_with(&format!("application/vnd.{part}"))) {
        Some((_, name)) => name.to_owned(),
        None => mime::extension(mime).to_owned(),
    }
}

/// The title of a specification, or the text beside an image, unless that is the name of an object such as `<Figure size 640x480>`.
fn caption(output: &Value, mime: &str) -> Option<String> {
    let specification = &output["data"][mime];
    let titles = [&specification["layout"]["title"]["text"], &specification["layout"]["title"], &specification["title"]];
    let title = titles.into_iter().find_map(Value::as_str).map(str::to_owned);
    let text = || Some(joined(output["data"].get("text/plain"))).filter(|text| !text.trim_start().starts_with('<'));
    let caption: String = title.or_else(text)?.trim().chars().take(MAX_CAPTION).collect();
    let is_name =
        caption.is_empty() || caption == "plot without title" || specification.is_object() && caption.starts_with("Figure(");
    (!is_name).then_some(caption)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_output_is_one_plot_in_its_best_type() {
        let outputs = [
            json!({"output_type": "display_data", "data": {"image/png": "iVBORw==\n", "text/plain": "<Figure size 640x480>"}}),
            json!({"output_type": "display_data", "data": {"image/svg+xml": ["<svg>", "</svg>"], "image/png": "iVBORw=="}}),
            json!({"output_type": "display_data", "data": {"image/png": "iVBORw", "text/plain": "Plot with title “Cars”"}}),
            json!({"output_type": "display_data", "data": {
                "application/vnd.plotly.v1+json": {"data": [], "layout": {"title": {"text": "Sales"}}}}}),
            json!({"output_type": "display_data", "data": {"application/vnd.vegalite.v5+json": {"title": "Heights"}}}),
            json!({"output_type": "display_data", "data": {"application/pdf": "JVBERg=="}}),
            json!({"output_type": "display_data", "data": {"audio/wav": "AAAA"}}),
            json!({"output_type": "display_data", "data": {"image/png": "!!"}}),
            json!({"output_type": "stream", "name": "stdout", "text": "x"}),
        ];
        let plots: Vec<Plot> = outputs.iter().filter_map(of_output).collect();
        let described: Vec<(&str, &str, Option<&str>)> =
            plots.iter().map(|plot| (&*plot.format, &*plot.data, plot.caption.as_deref())).collect();
        assert_eq!(
            described,
            [
                ("png", "iVBORw==", None),
                ("svg", "<svg></svg>", None),
                ("png", "iVBORw==", Some("Plot with title “Cars”")),
                ("plotly", r#"{"data":[],"layout":{"title":{"text":"Sales"}}}"#, Some("Sales")),
                ("vega-lite", r#"{"title":"Heights"}"#, Some("Heights")),
                ("pdf", "JVBERg==", None),
            ]
        );
    }
}
