//! Compares ARCHITECTURE.md with the code: the table of modules and their imports, which the compiler cannot check inside one crate.
//! Also keeps pure code pure, files short, and the dependencies tidy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that appear in one place only, or in these places.
const CONFINED: &[(&str, &str)] = &[
    ("bollard", "sandbox/docker"),
    ("zeromq", "agent/channels.rs"),
    ("seccompiler", "agent/confine.rs"),
    ("landlock", "agent/confine.rs"),
    ("rust_embed", "kernels languages.rs web.rs"),
    ("rusqlite", "store"),
    ("clap", "cli"),
    ("anyhow", "cli"),
    ("indicatif", "cli"),
    ("jupyter_protocol", "wire/requests.rs kernels/catalog.rs"),
    ("hyper_rustls", "http_client.rs"),
    ("rcgen", "egress/secrets/authority.rs"),
    ("opentelemetry", "telemetry"),
    ("utoipa", "api report"),
];

/// Pure code, as beginnings of paths below `src`. It does no I/O: none of [`IMPURE`] is in it.
const PURE: &[&str] = &["mime", "policy", "wire", "output", "notebook", "render", "report", "export", "session/machine"];
const IMPURE: &[&str] = &["std::fs", "std::net", "std::process", "tokio::", "rustix::"];
/// Pure code that also reads no clock and makes no random number: the same inputs give the same outcome.
const DETERMINISTIC: &[&str] = &["mime", "policy", "output", "notebook/parameters", "render", "report", "session/machine"];
const CLOCKS_AND_CHANCE: &[&str] = &["SystemTime::now", "Instant::now", "random_uuid", "random_bytes", "::random()"];

/// The longest file, lines, tests at its end left out.
const LONGEST_FILE: usize = 620;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Each source file: its path below `src`, its module, and its code without comments and unit tests.
fn sources() -> Vec<(String, String, String)> {
    let src = root().join("src");
    rust_files(&src)
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
            let module = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            (relative, module, code.join("\n"))
        })
        .filter(|(relative, ..)| !["lib.rs", "main.rs", "bin/agent.rs"].contains(&relative.as_str()))
        .collect()
}

/// Our modules that the code names with `crate::NAME` or inside `use crate::{NAME...`.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    code.match_indices("crate::")
        .map(|(at, found)| word(&code[at + found.len()..]))
        .filter(|name| !name.is_empty())
        .collect()
}

/// The table of modules in ARCHITECTURE.md: what each imports of ours.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## Modules\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let imports = cells[3].split(", ").filter(|name| *name != "–").map(str::to_owned).collect();
        (cells[1].trim_matches('`').to_owned(), imports)
    })
    .collect()
}

#[test]
fn modules_import_exactly_what_the_table_says() {
    let mut real: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, module, code) in sources() {
        assert!(!code.contains("use crate::{"), "{file}: one `use` per module, so that this test can read it");
        let imported = imports(&code).into_iter().filter(|import| *import != module);
        real.entry(module.clone()).or_default().extend(imported);
    }
    let table = table();
    let mut drifted = Vec::new();
    for module in real.keys().chain(table.keys()).collect::<BTreeSet<_>>() {
        if real.get(module) != table.get(module) {
            let show = |imports: Option<&BTreeSet<String>>| match imports {
                None => "no such module".to_owned(),
                Some(imports) if imports.is_empty() => "–".to_owned(),
                Some(imports) => imports.iter().cloned().collect::<Vec<_>>().join(", "),
            };
            drifted.push(format!("{module}: table: {}; code: {}", show(table.get(module)), show(real.get(module))));
        }
    }
    assert!(drifted.is_empty(), "ARCHITECTURE.md does not say what the code does:\n{}", drifted.join("\n"));
}

#[test]
fn modules_import_downwards_only() {
    let (table, mut open) = (table(), Vec::new());
    let mut done: BTreeSet<String> = BTreeSet::new();
    while done.len() < table.len() {
        let free = |module: &&String| !done.contains(*module) && table[*module].is_subset(&done);
        match table.keys().find(free) {
            Some(module) => drop(done.insert(module.clone())),
            None => {
                open.extend(table.keys().filter(|module| !done.contains(*module)));
                break;
            }
        }
    }
    assert!(open.is_empty(), "these modules import each other in a circle, or stand above one: {open:?}");
}

#[test]
fn some_crates_are_known_in_one_place_only() {
    let strays: Vec<String> = sources()
        .into_iter()
        .flat_map(|(file, _, code)| {
            let uses = move |name: &str| code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"));
            let file_name = file.clone();
            CONFINED
                .iter()
                .filter(move |(name, homes)| !homes.split(' ').any(|home| file.starts_with(home)) && uses(name))
                .map(move |(name, _)| format!("{file_name}: {name}"))
        })
        .collect();
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn pure_modules_do_no_io() {
    let contains = |rule: &[&str], file: &str, words: &[&str], code: &str| -> Vec<String> {
        // Files of their own that only tests are built from.
        let is_test = file.ends_with("tests.rs") || file.ends_with("bench.rs");
        let applies = rule.iter().any(|path| file.starts_with(path)) && !is_test;
        let found = words.iter().filter(|word| applies && code.contains(**word));
        found.map(|word| format!("{file}: {word}")).collect()
    };
    for (file, _, code) in sources() {
        assert_eq!(contains(PURE, &file, IMPURE, &code), [""; 0]);
        assert_eq!(contains(DETERMINISTIC, &file, CLOCKS_AND_CHANCE, &code), [""; 0]);
    }
}

/// The modules that `module` imports, directly or through others.
fn transitive_imports(module: &str) -> BTreeSet<String> {
    let modules: BTreeSet<String> = sources().into_iter().map(|(_, module, _)| module).collect();
    let (mut found, mut open) = (BTreeSet::from([module.to_owned()]), vec![module.to_owned()]);
    while let Some(next) = open.pop() {
        for (_, _, code) in sources().into_iter().filter(|(_, module, _)| *module == next) {
            let imported = modules.iter().filter(|name| code.contains(&format!("crate::{name}")));
            for name in imported.filter(|name| !found.contains(*name)).cloned().collect::<Vec<_>>() {
                found.insert(name.clone());
                open.push(name);
            }
        }
    }
    found
}

#[test]
fn build_script_watches_all_agent_sources() {
    let script = fs::read_to_string(root().join("build.rs")).unwrap();
    let list = script.split("AGENT_SOURCES: &[&str] = &[").nth(1).unwrap().split("];").next().unwrap();
    let watched: BTreeSet<String> =
        list.split(',').map(|item| item.trim().trim_matches('"').to_owned()).filter(|item| !item.is_empty()).collect();
    let mut expected: BTreeSet<String> =
        ["build.rs", "Cargo.lock", "Cargo.toml", "src/bin/agent.rs", "src/lib.rs"].map(str::to_owned).into();
    for module in transitive_imports("agent") {
        let folder = format!("src/{module}");
        expected.insert(if root().join(&folder).is_dir() { folder } else { format!("{folder}.rs") });
    }
    assert_eq!(watched, expected);
}

#[test]
fn files_stay_readable() {
    for (file, _, code) in sources() {
        let lines = code.lines().count();
        assert!(lines <= LONGEST_FILE, "{file} has {lines} lines; it tells more than one story");
    }
}

#[test]
fn every_dependency_is_used() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let code: String = sources().into_iter().map(|(_, _, code)| code).collect();
    for line in dependencies.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let name = line.split([' ', '=', '.']).next().unwrap().replace('-', "_");
        assert!(code.contains(&format!("{name}::")), "{name} is a dependency that no code names");
    }
}

/// Licences that may be linked into the binary.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "BSL-1.0",
    "Apache-2.0 WITH LLVM-exception",
    "CC0-1.0",
    "MIT-0",
    // Of single files, which we use as they are: cssparser and dtoa-short, by way of ammonia.
    "MPL-2.0",
];

#[test]
fn every_licence_is_allowed() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--all-features"])
        // What other systems would need is not downloaded.
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        // Each alternative joined by AND must have one choice joined by OR that is allowed.
        let allowed = licence
            .split(" AND ")
            .all(|all| all.split(" OR ").any(|one| LICENCES.contains(&one.trim_matches(['(', ')', ' ']))));
        assert!(allowed, "{} has the licence {licence:?}", package["name"]);
    }
}
