//! Stage 5: puts the record of the run and the marker of its failure into the notebook.

use serde_json::{Map, Value, json};

use super::execute::ExecutedNotebook;
use super::papermill;
use super::plan::Job;
use super::settings::Settings;
use crate::manager::Session;
use crate::manager::run_record;
use crate::notebook::Notebook;
use crate::runner::{RunError, RunReport};
use crate::wire::content::now_iso8601;

/// A notebook that is ready to be written.
pub(super) struct RecordedNotebook {
    pub notebook: Notebook,
    pub session: Session,
    pub result: Result<RunReport, RunError>,
}

impl RecordedNotebook {
    pub fn record(mut executed: ExecutedNotebook, settings: &Settings, job: &Job) -> Self {
        if !settings.no_record {
            let record = run_record(&executed, settings, job);
            executed.notebook.metadata_mut().insert(run_record::KEY.to_owned(), record);
        }
        let ExecutedNotebook { mut notebook, session, result, .. } = executed;
        if let (true, Ok(report)) = (settings.error_marker, &result) {
            papermill::mark_failure(&mut notebook, report);
        }
        Self { notebook, session, result }
    }
}

/// `metadata.cellkeep`: what a later run needs to repeat this one.
fn run_record(executed: &ExecutedNotebook, settings: &Settings, job: &Job) -> Value {
    let mut record = Map::new();
    record.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    if let Some(environment) = &executed.environment {
        environment.write(&mut record);
    }
    record.insert("limits".to_owned(), json!(settings.sandbox.limits(executed.kernel)));
    record.insert("parameters".to_owned(), executed.parameters.to_json());
    if let Some(seed) = settings.seed {
        record.insert("seed".to_owned(), json!(seed));
    }
    let status = executed.result.as_ref().map_or("session_lost", |report| report.status().name());
    let run = json!({"id": job.run_id, "start_time": executed.started_at, "end_time": now_iso8601(), "status": status});
    record.insert("run".to_owned(), run);
    Value::Object(record)
}
