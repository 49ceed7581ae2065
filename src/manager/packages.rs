//! The versions of the packages in a kernel's environment, listed by the kernel itself.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::silent_execution::run_silently;
use crate::agent_protocol::{AnswerBody, Request};
use crate::kernels::KernelSpec;
use crate::session::SessionHandle;

/// The workspace file in which the kernel leaves the list for a moment.
const FILE: &str = ".cellkeep-packages";
/// The largest number of packages in one list.
const MAX_PACKAGES: usize = 5_000;

/// Asks the kernel for the versions of its packages, between two cells. The kernel writes them into a file, because the
/// output of silent code is dropped.
pub(super) async fn list_packages(session: &SessionHandle, kernel: &KernelSpec) -> Result<BTreeMap<String, String>, String> {
    let Some(code) = listing_code(&kernel.language) else { return Ok(BTreeMap::new()) };
    run_silently(session, &code).await?;
    let get = Request::FileGet { path: FILE.to_owned(), offset: 0 };
    let answer = session.ask_agent(get, Bytes::new()).await.map_err(|error| error.to_string())?;
    let _ = session.ask_agent(Request::FileRemove { path: FILE.to_owned() }, Bytes::new()).await;
    match answer {
        (AnswerBody::File { .. }, data) => Ok(parse_list(&String::from_utf8_lossy(&data))),
        (AnswerBody::Refused(refused), _) => Err(refused.reason),
        _ => Err("the agent answered a file request with something else".to_owned()),
    }
}

pub(super) fn parse_list(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once("=="));
    pairs.take(MAX_PACKAGES).map(|(name, version)| (name.trim().to_owned(), version.trim().to_owned())).collect()
}

/// Code that writes a line `name==version` for each package, and defines no name in the user's namespace.
fn listing_code(language: &str) -> Option<String> {
    let path = format!("/work/{FILE}");
    Some(match language {
        "python" => format!(
            "exec('''import importlib.metadata as m\nwith open(\"{path}\", \"w\") as f:\n    for d in m.distributions(): f.write(str(d.metadata[\"Name\"]) + \"==\" + str(d.version) + \"\\\\n\")''', {{}})"
        ),
        "R" => format!(
            "local({{ p <- utils::installed.packages()[, c(\"Package\", \"Version\"), drop = FALSE]; writeLines(paste0(p[, 1], \"==\", p[, 2]), \"{path}\") }})"
        ),
        "julia" => format!(
            "let p = Base.require(Base.PkgId(Base.UUID(\"44cfe95a-1eb2-52ea-b672-e2afdf69b78f\"), \"Pkg\")); open(\"{path}\", \"w\") do f; for d in values(Base.invokelatest(p.dependencies)); println(f, d.name, \"==\", something(d.version, VERSION)); end; end; nothing; end"
        ),
        "typescript" | "javascript" => format!(
            "void Deno.writeTextFileSync(\"{path}\", Object.entries(Deno.version).map(([n, v]) => n + \"==\" + v + \"\\n\").join(\"\"));"
        ),
        "bash" => format!("printf 'bash==%s\\n' \"$BASH_VERSION\" > {path}"),
        _ => return None,
    })
}
