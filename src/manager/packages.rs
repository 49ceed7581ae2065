//! The versions of the packages in a kernel's environment, listed by the kernel itself.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::silent_execution::run_silently;
use crate::agent_protocol::{AnswerBody, FILE_CHUNK, Request};
use crate::kernels::KernelSpec;
use crate::languages;
use crate::session::SessionHandle;

/// The workspace file in which the kernel leaves the list for a moment.
const FILE: &str = ".cellkeep-packages";
/// The largest number of packages in one list.
const MAX_PACKAGES: usize = 5_000;

/// Asks the kernel for the versions of its packages, between two cells. The kernel writes them into a file, because the
/// output of silent code is dropped.
pub(super) async fn list_packages(session: &SessionHandle, kernel: &KernelSpec) -> Result<BTreeMap<String, String>, String> {
    let language = languages::find(&kernel.language);
    let code = language.and_then(|language| language.packages_code(&format!("/work/{FILE}")));
    let Some(code) = code else { return Ok(BTreeMap::new()) };
    run_silently(session, &code).await?;
    let get = Request::FileGet { path: FILE.to_owned(), offset: 0, length: FILE_CHUNK as u64 };
    let answer = session.ask_agent(get, Bytes::new()).await.map_err(|error| error.to_string())?;
    let _ = session.ask_agent(Request::FileRemove { path: FILE.to_owned(), recursive: false }, Bytes::new()).await;
    match answer {
        (AnswerBody::File(_), data) => Ok(parse_list(&String::from_utf8_lossy(&data))),
        (AnswerBody::Refused(refused), _) => Err(refused.reason),
        _ => Err("the agent answered a file request with something else".to_owned()),
    }
}

pub(super) fn parse_list(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once("=="));
    pairs.take(MAX_PACKAGES).map(|(name, version)| (name.trim().to_owned(), version.trim().to_owned())).collect()
}
