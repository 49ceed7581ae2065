//! Seeds for reproducible runs.

use super::silent_execution::run_silently;
use crate::kernels::KernelSpec;
use crate::languages::{self, Language};
use crate::session::SessionHandle;

/// The environment variables that a seed needs before the kernel starts.
pub fn seed_env(kernel: &KernelSpec, seed: u32) -> Vec<(String, String)> {
    let variable = languages::find(&kernel.language).and_then(Language::seed_variable);
    variable.into_iter().map(|name| (name.to_owned(), seed.to_string())).collect()
}

/// Seeds the random number generators before the first cell. Returns `false` if this kernel has none that can be seeded.
pub async fn seed(session: &SessionHandle, kernel: &KernelSpec, seed: u32) -> Result<bool, String> {
    let code = languages::find(&kernel.language).and_then(|language| language.seed_code(seed));
    let Some(code) = code else { return Ok(false) };
    run_silently(session, &code).await.map(|()| true)
}
