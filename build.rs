//! Builds the agent, the program inside the sandbox, as a static binary that the manager embeds.
//!
//! The agent is the same crate with other features and flags, hence a second cargo run with its own target folder. It takes
//! time only when the agent's sources change.

use std::env;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

/// Everything that the agent is built from. `tests/architecture.rs` compares this list with the agent's imports.
const AGENT_SOURCES: &[&str] = &[
    "build.rs",
    "Cargo.lock",
    "Cargo.toml",
    "src/agent",
    "src/agent_protocol",
    "src/allocator.rs",
    "src/bin/agent.rs",
    "src/descriptors.rs",
    "src/ids.rs",
    "src/lib.rs",
    "src/policy",
    "src/streams",
    "src/wire",
];

fn main() -> Result<(), Box<dyn Error>> {
    // The build of the agent runs this script too, and embeds nothing.
    if env::var_os("CARGO_FEATURE_HOST").is_none() {
        return Ok(());
    }
    // The web assets are embedded by the crate itself, which must be rebuilt when one is added.
    println!("cargo::rerun-if-changed=web/dist");
    for path in AGENT_SOURCES {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=CELLKEEP_AGENT");
    let agent = match env::var_os("CELLKEEP_AGENT") {
        Some(prebuilt) => PathBuf::from(prebuilt),
        None => build_agent()?,
    };
    println!("cargo::rustc-env=CELLKEEP_AGENT_BINARY={}", agent.canonicalize()?.display());
    // Computed here instead of at every start. It only distinguishes versions, so the hash need not be cryptographic.
    let mut hasher = std::hash::DefaultHasher::new();
    std::fs::read(&agent)?.hash(&mut hasher);
    println!("cargo::rustc-env=CELLKEEP_AGENT_FINGERPRINT={:016x}", hasher.finish());
    Ok(())
}

fn build_agent() -> Result<PathBuf, Box<dyn Error>> {
    let target = env::var("TARGET")?;
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // All profiles of the outer build share one folder beside them: OUT_DIR is TARGET_DIR/PROFILE/build/NAME/out.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let shared = out.ancestors().nth(4).ok_or("OUT_DIR is not where cargo puts it")?.join("agent");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .args(["build", "--profile", "agent", "--no-default-features", "--features", "agent", "--bin", "cellkeep-agent"])
        .args(["--target", &target, "--locked", "--target-dir"])
        .arg(&shared)
        .current_dir(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // Settings of the outer build must not affect this one.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    // The features of the outer build are in the environment; the inner build script would find them and recurse.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_FEATURE_")) {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err("the agent failed to build; see cargo's messages above".into());
    }
    Ok(shared.join(target).join("agent/cellkeep-agent"))
}
