//! Kernels that an operator adds: kernelspecs of Jupyter with folders of the machine, and images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cellkeep::config::Paths;
use serde_json::{Value, json};

use crate::cli::{Cli, Done};
use crate::server::Server;
use crate::support::TestSandbox;

/// A data folder and an environment of Python, with a secret beside it.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ck-own-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("data")).unwrap();
        fs::write(folder.join("secret"), "secret").unwrap();
        Self(folder)
    }

    /// An environment with ipykernel and a module of its own, as `pip install ipykernel` makes it.
    fn environment(&self) -> PathBuf {
        let environment = self.0.join("env");
        let made =
            Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(&environment).status().unwrap();
        assert!(made.success());
        let packages = fs::canonicalize(Paths::from_environment().kernels().join("python-minimal")).unwrap();
        let (from, to) = (site_packages(&packages), site_packages(&environment));
        assert!(Command::new("cp").arg("-r").args([&from.join("."), &to]).status().unwrap().success());
        fs::write(to.join("only_here.py"), "version = '7.0'\n").unwrap();
        let kernelspec = environment.join("share/jupyter/kernels/python3");
        let argv = json!(["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]);
        write_kernelspec(&kernelspec, &json!({"argv": argv, "display_name": "Second", "language": "python"}));
        kernelspec
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Cli::new(arguments).args(&["--data"]).path(&self.0.join("data")).run()
    }

    fn ok(&self, arguments: &[&str]) -> Done {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
        ran
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], reason: &str) {
        let ran = self.run(arguments);
        assert!(ran.code == 2 && ran.stderr.contains(reason), "{arguments:?}: {} {}", ran.code, ran.stderr);
    }

    fn listed(&self, name: &str) -> Value {
        let listed: Value = serde_json::from_str(&self.ok(&["kernels", "list", "--json"]).stdout).unwrap();
        listed.as_array().unwrap().iter().find(|kernel| kernel["name"] == name).cloned().unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn site_packages(environment: &Path) -> PathBuf {
    let mut versions =
        fs::read_dir(environment.join("lib")).unwrap().flatten().map(|entry| entry.path().join("site-packages"));
    versions.find(|path| path.is_dir()).unwrap()
}

fn write_kernelspec(folder: &Path, spec: &Value) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("kernel.json"), spec.to_string()).unwrap();
}

/// A tag of one of our images, as an operator's.
struct Tag(String);

impl Tag {
    fn new(kernel: &str) -> Self {
        let tag = format!("ck-own-{kernel}-{}:latest", std::process::id());
        assert!(
            Command::new("docker").args(["tag", &format!("cellkeep/{kernel}:latest"), &tag]).status().unwrap().success()
        );
        Self(tag)
    }
}

impl Drop for Tag {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", &self.0]).output();
    }
}

#[test]
fn kernelspec_of_environment_runs_in_process_sandbox() {
    TestSandbox::process();
    let machine = Machine::new("process");
    let kernelspec = machine.environment();
    let added = machine.ok(&["kernels", "add", kernelspec.to_str().unwrap(), "--name", "second"]);
    let environment = machine.0.join("env");
    assert!(added.stderr.contains(&format!("read-only: {}\n", environment.display())), "{}", added.stderr);
    let secret = machine.0.join("secret");
    let code = format!(
        "import only_here, os, sys\nprint(only_here.version, sys.prefix, os.path.exists({secret:?}))
try: open(sys.prefix + '/new', 'w')\nexcept OSError as error: print(error.strerror)"
    );
    let ran = machine.ok(&["exec", "-k", "second", "--sandbox", "process", "-c", &code]);
    assert_eq!(ran.stdout, format!("7.0 {} False\nRead-only file system\n", environment.display()));
    assert_eq!((&machine.listed("second")["process"], &machine.listed("second")["own"]), (&json!("ready"), &json!(true)));
    // A changed kernelspec is noticed, and installed by the same command.
    fs::write(kernelspec.join("logo.svg"), "<svg/>").unwrap();
    assert_eq!(machine.listed("second")["process"], "stale");
    machine.ok(&["kernels", "install", "second"]);
    assert_eq!(machine.listed("second")["process"], "ready");
    let docker = machine.run(&["exec", "-k", "second", "--sandbox", "docker", "-c", "1"]);
    assert!(docker.code == 3 && !docker.stderr.contains("images build"), "{}", docker.stderr);
    fs::rename(&environment, machine.0.join("moved")).unwrap();
    let gone = machine.run(&["exec", "-k", "second", "--sandbox", "process", "-c", "1"]);
    assert!(
        gone.code != 0 && gone.stderr.contains("second is left out") && !gone.stderr.contains("panicked"),
        "{}",
        gone.stderr
    );
    machine.ok(&["kernels", "remove", "second"]);
    assert_eq!(machine.listed("second"), Value::Null);
    machine.refused(&["kernels", "remove", "second"], "no kernel \"second\"");
}

#[test]
fn unusable_kernelspecs_are_refused_with_reason() {
    let machine = Machine::new("refused");
    let (home, path) = (machine.0.join("home/bin"), machine.0.join("spec"));
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("program"), "").unwrap();
    let add = |more: &[&'static str]| {
        let mut arguments = vec!["kernels", "add", path.to_str().unwrap().to_owned().leak()];
        arguments.extend(more);
        arguments
    };
    machine.refused(&add(&[]), "No such file");
    fs::create_dir_all(&path).unwrap();
    machine.refused(&add(&[]), "no kernel.json");
    let spec = |argv: Value| write_kernelspec(&path, &json!({"argv": argv, "display_name": "x", "language": "x"}));
    spec(json!(["/usr/bin/env"]));
    machine.refused(&add(&[]), "{connection_file}");
    spec(json!(["/nowhere/program", "{connection_file}"]));
    machine.refused(&add(&[]), "is not on this machine");
    spec(json!([home.join("program"), "{connection_file}"]));
    machine.refused(&add(&[]), "name the folders that it needs");
    spec(json!(["/usr/bin/env", "{connection_file}"]));
    machine.refused(&add(&["--folder", "/etc"]), "cannot show /etc");
    machine.refused(&add(&["--folder", "/nowhere"]), "/nowhere is not a folder");
    machine.refused(&add(&["--name", "python3"]), "choose another name");
    machine.refused(&add(&["--name", "../x"]), "lower-case letters");
    fs::write(path.join("large"), vec![0; 17 << 20]).unwrap();
    machine.refused(&add(&[]), "16 MB");
    assert!(!machine.0.join("data/kernels.toml").exists());
}

#[test]
fn kernelspecs_of_jupyter_are_listed() {
    let machine = Machine::new("listed");
    let folder = machine.0.join("jupyter/kernels/mine");
    write_kernelspec(&folder, &json!({"argv": ["x", "{connection_file}"], "display_name": "x", "language": "x"}));
    let path = machine.0.join("jupyter");
    let listed = Cli::new(&["kernels", "list"]).env("JUPYTER_PATH", path.to_str().unwrap()).run().stdout;
    assert!(listed.contains(&format!("cellkeep kernels add {}", folder.display())), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_of_operator_is_a_kernel() {
    let Some(place) = TestSandbox::docker().await else { return };
    let (machine, tag) = (Machine::new("image"), Tag::new("deno"));
    machine.ok(&["kernels", "add", "--image", &tag.0, "--name", "team"]);
    let ran = machine.ok(&["exec", "-k", "team", "--sandbox", "docker", "-c", "console.log(6 * 7)"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("42\n", ""), "no warning at each use");
    assert_eq!((&machine.listed("team")["process"], &machine.listed("team")["docker"]), (&json!("missing"), &json!("own")));
    let images = machine.ok(&["images", "list"]).stdout;
    assert!(images.lines().any(|line| line.contains(&tag.0) && line.ends_with("the operator's")), "{images}");
    machine.refused(&["images", "build", "team"], "a kernel of yours");
    let process = machine.run(&["exec", "-k", "team", "--sandbox", "process", "-c", "1"]);
    assert!(process.code == 3 && process.stderr.contains("--sandbox docker"), "{}", process.stderr);
    let none = machine.run(&["kernels", "add", "--image", "debian:bookworm-slim", "--name", "none"]);
    assert!(none.code == 3 && none.stderr.contains("it has no kernelspec"), "{}", none.stderr);

    let config = machine.0.join("cellkeep.toml");
    let kernelspec = machine.0.join("data/kernelspecs/team");
    fs::write(&config, format!("[kernels.configured]\nkernelspec = {kernelspec:?}\nimage = {:?}\n", tag.0)).unwrap();
    let server = Server::start("own-kernels", place, &["--config", config.to_str().unwrap()]).await;
    let kernels = server.client().get("/v1/kernels").await.is(200);
    let configured = kernels["kernels"].as_array().unwrap().iter().find(|kernel| kernel["name"] == "configured").cloned();
    assert_eq!(configured.unwrap_or_else(|| panic!("{kernels}"))["sandboxes"], json!(["docker"]));
    let session = server.client().create(json!({"kernel": "configured"})).await;
    assert_eq!(session.ok("console.log(6 * 7)").await, "42\n");
    server.end().await;
    drop(tag);
    let gone = machine.run(&["exec", "-k", "team", "--sandbox", "docker", "-c", "1"]);
    assert!(gone.code == 3 && gone.stderr.contains("docker pull ck-own-deno"), "{}", gone.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derived_image_has_packages_and_is_built_once() {
    if TestSandbox::docker().await.is_none() {
        return;
    }
    let machine = Machine::new("derived");
    let name = format!("derived-{}", std::process::id());
    let image = Tag(format!("cellkeep/own-{name}:latest"));
    let build = [
        "images",
        "build",
        "--from",
        "python-minimal",
        "--packages",
        "six>=1,<2",
        "--system-packages",
        "figlet",
        "--name",
        &name,
    ];
    let built = machine.ok(&build);
    assert!(built.stderr.contains(&format!("is built: {}", image.0)), "{}", built.stderr);
    let code = "import six; print(six.__version__[0]); !figlet -v | head -1 | cut -c1-5";
    let ran = machine.ok(&["exec", "-k", &name, "--sandbox", "docker", "-c", &code.replace("; !", "\n!")]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("1\nFIGle\n", ""));
    assert!(machine.ok(&build).stderr.contains("is up to date"));
    let none = machine.run(&[
        "images",
        "build",
        "--from",
        "python-minimal",
        "--packages",
        "no-such-package-at-all",
        "--name",
        "none",
    ]);
    assert!(none.code == 1 && none.stderr.contains("no-such-package-at-all"), "{}", none.stderr);
    assert_eq!(machine.listed("none"), Value::Null, "nothing is half-made");
    machine.refused(&["images", "build", "--from", "r", "--packages", "dplyr", "--name", "x"], "--system-packages");
    machine.refused(&["images", "build", "--from", "bash", "--system-packages", "a;b", "--name", "x"], "not a package");
    machine.refused(&["images", "build", "--from", "bash", "--name", "python"], "choose another name");
    let base = machine.run(&["images", "build", "bash", "--base", "ck-no-such-image:1"]);
    assert!(base.code == 1 && base.stderr.contains("docker pull ck-no-such-image:1"), "{}", base.stderr);
}
