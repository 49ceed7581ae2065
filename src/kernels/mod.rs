//! The kernels there are: their kernelspecs, names and aliases, and their managed environments.
//!
//! `kernel-images/NAME/` is the one source: embedded here, it makes the container image ([`context()`]) and the environment
//! of the process sandbox ([`install()`]), so that both run the same kernel.

mod catalog;
mod install;
mod versions;

pub use catalog::KernelSpec as Kernel;
pub use catalog::{KernelError, KernelSpec, all, context, find, for_notebook};
pub use install::{InstallError, Progress, Status, environment, has_old_versions, install, remove_old_versions, status};
