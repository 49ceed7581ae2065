//! A package index on loopback, for tests of packages.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::server::Server;
use crate::support::TestSandbox;

/// The index, in a process of its own.
pub struct Index {
    pub folder: PathBuf,
    child: Child,
    pub port: u16,
}

impl Index {
    pub fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    /// `options` are those of the program.
    pub fn start_with(name: &str, options: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("ck-index-{name}-{}", cellkeep::ids::random_uuid()));
        fs::create_dir(&folder).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/package_index.py");
        let mut command = Command::new("/usr/bin/python3");
        let mut child = command.arg(program).arg(&folder).args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { folder, child, port: line.trim().parse().unwrap() }
    }

    /// The options of a server that uses it.
    fn options(&self) -> Vec<String> {
        ["--allow-network=packages", "--python-index", &self.url(), "--egress-private", &self.address()]
            .map(str::to_owned)
            .to_vec()
    }

    pub fn address(&self) -> String {
        format!("127.0.0.2:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("http://{}/simple", self.address())
    }

    /// A server that uses it.
    pub async fn server(&self, name: &str, place: TestSandbox, more: &[&str]) -> Server {
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Server::start(name, place, &options).await
    }

    /// The number of requests so far.
    pub fn requests(&self) -> usize {
        self.log().len()
    }

    /// The requests so far: method, path and credentials of each.
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("requests")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The packages of an environment that are in its set: name and version of each.
pub fn installed(environment: &Value) -> Vec<(&str, &str)> {
    let packages = environment["packages"].as_array().unwrap().iter().filter(|package| package["installed"] == true);
    packages.map(|package| (package["name"].as_str().unwrap(), package["version"].as_str().unwrap())).collect()
}
