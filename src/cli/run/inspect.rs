//! `cellkeep run --inspect`: shows the packages that a notebook needs, the parameters that it declares and the cell that would be injected.

use serde_json::{Value, json};

use super::load::LoadedNotebook;
use super::parameterize::ParameterizedNotebook;
use super::plan::Job;
use super::progress::ProgressDisplay;
use super::settings::Settings;
use crate::cli::Exit;
use crate::notebook::parameters::{self, DeclaredParameter};

pub(super) fn inspect(settings: &Settings, jobs: &[Job], display: &ProgressDisplay, as_json: bool) -> anyhow::Result<Exit> {
    let mut all = Vec::new();
    for job in jobs {
        let progress = display.notebook(&job.source, None);
        let loaded = LoadedNotebook::load(settings, job, &progress)?;
        let ready = ParameterizedNotebook::new(loaded, settings, job, &progress)?;
        let language = &ready.kernel.language;
        let declared = parameters::declared(&ready.notebook, language).unwrap_or_default();
        let cell = (!ready.parameters.is_empty())
            .then(|| parameters::source(&ready.notebook, language, &ready.parameters))
            .transpose()?;
        if as_json {
            all.push(json!({
                "notebook": job.source, "kernel": ready.kernel.name, "packages": ready.needed_packages, "injected": cell,
                "parameters": declared.iter().map(declared_json).collect::<Vec<_>>(),
            }));
        } else {
            print_line!("{}\n{}", job.source.display(), lines(&ready.needed_packages, &declared, cell.as_deref()));
        }
    }
    if as_json {
        let json = if let (false, [one]) = (display.many, &all[..]) { one.clone() } else { json!({"notebooks": all}) };
        print_line!("{json}");
    }
    Ok(Exit::Ok)
}

fn declared_json(one: &DeclaredParameter) -> Value {
    json!({"name": one.name, "type": one.kind, "default": one.default, "help": one.help})
}

fn lines(needed: &[String], declared: &[DeclaredParameter], cell: Option<&str>) -> String {
    let mut lines: Vec<String> = declared
        .iter()
        .map(|one| {
            let kind = one.kind.as_ref().map(|kind| format!(": {kind}")).unwrap_or_default();
            let help = if one.help.is_empty() { String::new() } else { format!("    {}", one.help) };
            format!("  {}{kind} = {}{help}", one.name, one.default)
        })
        .collect();
    if declared.is_empty() {
        lines.push("  no parameters: no cell with assignments has the tag `parameters`".to_owned());
    }
    if !needed.is_empty() {
        lines.push(format!("\n  packages that --install installs: {}", needed.join(", ")));
    }
    if let Some(cell) = cell {
        lines.push("\n  this cell would be injected:".to_owned());
        lines.extend(cell.lines().map(|line| format!("    {line}")));
    }
    lines.join("\n")
}
