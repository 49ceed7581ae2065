//! Reads notebook files, and replaces them atomically.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};

use super::options::write_durably;
use crate::notebook::Notebook;

/// The largest notebook file that is accepted, bytes.
const MAX_NOTEBOOK: u64 = 512 << 20;

/// Reads a notebook; `-` is standard input.
pub(super) fn read_notebook(path: &Path) -> anyhow::Result<Notebook> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_NOTEBOOK + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        // Reserving the size avoids growing the buffer step by step.
        let size = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_NOTEBOOK));
        bytes.reserve_exact(usize::try_from(size).unwrap_or(0) + 1);
        file.take(MAX_NOTEBOOK + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
    }
    if bytes.len() as u64 > MAX_NOTEBOOK {
        bail!("{} is larger than the limit of {} MB", path.display(), MAX_NOTEBOOK >> 20);
    }
    Notebook::parse(&bytes).with_context(|| format!("cannot read {} as a notebook", path.display()))
}

/// Writes a notebook; `-` is standard output.
pub(super) fn save(target: &Path, notebook: &Notebook) -> anyhow::Result<()> {
    let text = notebook.print();
    if target == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output");
    }
    // Devices and pipes are written to; they cannot be replaced.
    if target.exists() && !target.is_file() {
        return std::fs::write(target, text).with_context(|| format!("cannot write {}", target.display()));
    }
    write_durably(target, text.as_bytes())
}
