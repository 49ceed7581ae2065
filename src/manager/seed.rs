//! Seeds for reproducible runs.

use super::silent_execution::run_silently;
use crate::kernels::KernelSpec;
use crate::session::SessionHandle;

/// The environment variables that a seed needs before the kernel starts.
pub fn seed_env(kernel: &KernelSpec, seed: u32) -> Vec<(String, String)> {
    let hash = ("PYTHONHASHSEED".to_owned(), seed.to_string());
    if kernel.language == "python" { vec![hash] } else { Vec::new() }
}

/// Seeds the random number generators before the first cell. Returns `false` if this kernel has none that can be seeded.
pub async fn seed(session: &SessionHandle, kernel: &KernelSpec, seed: u32) -> Result<bool, String> {
    let code = match kernel.language.as_str() {
        "python" => format!(
            "exec('''import random\nrandom.seed({seed})\ntry:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    numpy.random.seed({seed})''', {{}})"
        ),
        "R" => format!("set.seed({seed})"),
        "julia" => format!(
            "let r = Base.require(Base.PkgId(Base.UUID(\"9a3f8284-a2c9-5f02-9a11-845980a1fd5c\"), \"Random\")); Base.invokelatest(r.seed!, {seed}); nothing; end"
        ),
        "bash" => format!("RANDOM={seed}"),
        _ => return Ok(false),
    };
    run_silently(session, &code).await.map(|()| true)
}
