//! Builds the agent (the program inside the sandbox) statically, so that the manager can carry it in its own binary.
//!
//! It is the same crate with other features and flags, hence a second cargo run in a target folder of its own. Cargo keeps
//! what has not changed, so this costs time only when the agent's sources change.

use std::env;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    // The agent's own build runs this script too; it has nothing to carry.
    if env::var_os("CARGO_FEATURE_HOST").is_none() {
        return Ok(());
    }
    for path in [
        // Embedded by the build itself, which must see when a library comes.
        "web/dist",
        "src/agent",
        "src/agent_protocol",
        "src/descriptors.rs",
        "src/wire",
        "src/policy",
        "src/ids.rs",
        "src/bin/agent.rs",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=CELLKEEP_AGENT");
    let agent = match env::var_os("CELLKEEP_AGENT") {
        Some(ready_made) => PathBuf::from(ready_made),
        None => build_agent()?,
    };
    println!("cargo::rustc-env=CELLKEEP_AGENT_BINARY={}", agent.canonicalize()?.display());
    // Hashed here and not at every start: it only has to tell one version from another.
    let mut hasher = std::hash::DefaultHasher::new();
    std::fs::read(&agent)?.hash(&mut hasher);
    println!("cargo::rustc-env=CELLKEEP_AGENT_FINGERPRINT={:016x}", hasher.finish());
    Ok(())
}

fn build_agent() -> Result<PathBuf, Box<dyn Error>> {
    let target = env::var("TARGET")?;
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    // Beside the outer build's profiles, shared by all of them: OUT_DIR is TARGET_DIR/PROFILE/build/NAME/out.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let shared = out.ancestors().nth(4).ok_or("OUT_DIR is not where cargo puts it")?.join("agent");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .args(["build", "--profile", "agent", "--no-default-features", "--features", "agent", "--bin", "cellkeep-agent"])
        .args(["--target", &target, "--locked", "--target-dir"])
        .arg(&shared)
        .current_dir(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // What the outer build was told is not meant for this one.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    // This script's features are in its environment, where the inner build's script would find them and build again.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_FEATURE_")) {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err("the agent does not build; see cargo's messages above".into());
    }
    Ok(shared.join(target).join("agent/cellkeep-agent"))
}
