//! Notebook files: what is accepted, is printed as a notebook that is read as the same one.
#![no_main]

use cellkeep::notebook::Notebook;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(notebook) = Notebook::parse(file) else { return };
    let printed = notebook.print();
    let again = Notebook::parse(printed.as_bytes()).map(|again| again.print());
    assert_eq!(again.as_deref().ok(), Some(printed.as_str()));
});
