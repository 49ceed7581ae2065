//! The available kernels: kernelspecs, names and aliases, managed environments.
//!
//! Our own kernels: the embedded folder `kernel-images/NAME/`, with the shared `kernel-images/common/`, is the only source. Both the container image ([`context()`]) and the
//! environment of the process sandbox ([`install()`]) are made from it, so that both run the same kernel.

mod catalog;
mod install;
mod own;
mod versions;

pub use catalog::{KernelError, KernelSpec, add, all, commands, context, find, for_notebook};
pub use install::{
    InstallError, Progress, Status, environment, has_old_versions, install, missing_command_packages, remove_old_versions,
    status,
};
pub use own::{OwnKernelError, available, is_kernel_name, needed_folders, read as read_own};
