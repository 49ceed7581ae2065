//! Packages: the first installation of a set, and what a set adds to the start of a session once it is installed. From the index of the
//! configuration, so the network is in the first figure, as it is in pip's beside it.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use cellkeep::manager::{BuildLog, SandboxChoice, SessionSpec, WantedPackages};
use cellkeep::policy::{Limits, NetworkPolicy, PackageRequest};
use cellkeep::sandbox::SandboxKind;

use crate::table::{Figure, Goal, Rows, percentile};
use crate::{Lab, run};

const PACKAGE: &str = "humanize";
const STARTS: usize = 10;

pub(crate) async fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let (ours, theirs) = (first_installation(lab).await?, pip(lab)?);
    let goal = Some(Goal::Within(10.0));
    rows.value("first installation of a pure package", Figure::Seconds(ours), goal);
    rows.compare("first installation of a pure package", Figure::Seconds(ours), "pip", Figure::Seconds(theirs), None);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..=STARTS {
        eprintln!("packages: round {round} of {STARTS}");
        let (one, other) = (start(lab, true).await?, start(lab, false).await?);
        if round > 0 {
            with.push(one);
            without.push(other);
        }
    }
    let [with, without] = [with, without].map(|seconds| percentile(&seconds, 50));
    rows.value("second use: added to the start of a session", Figure::Seconds(with - without), Some(Goal::Within(0.1)));
    rows.compare("start with a set", Figure::Seconds(with), "start without", Figure::Seconds(without), None);
    rows.note(format!("{PACKAGE}, process sandbox; {STARTS} starts each, alternating, to the result of an import"));
    Ok(rows)
}

fn wanted(lab: &Lab) -> anyhow::Result<WantedPackages> {
    Ok(WantedPackages {
        kernel: lab.kernel.clone(),
        sandbox: SandboxChoice::Only(SandboxKind::Process),
        scope: None,
        request: PackageRequest::new(&[PACKAGE.to_owned()], None)?,
        known_lock: None,
    })
}

async fn first_installation(lab: &Lab) -> anyhow::Result<f64> {
    let wanted = wanted(lab)?;
    if let Some(set) = lab.manager.find_package_set(&lab.manager.package_key(&wanted)) {
        ensure!(lab.manager.remove_package_set(&set.id)?, "a sandbox uses the set");
    }
    let began = Instant::now();
    let log: BuildLog = Arc::new(|_| {});
    lab.manager.install_packages(&wanted, log).await?;
    Ok(began.elapsed().as_secs_f64())
}

/// pip, into an empty folder.
fn pip(lab: &Lab) -> anyhow::Result<f64> {
    let folder = std::env::temp_dir().join(format!("cellkeep-bench-{}", std::process::id()));
    let mut command = Command::new(&lab.python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--target"]);
    let began = Instant::now();
    let status = command.arg(&folder).arg(PACKAGE).status().context("pip")?;
    let seconds = began.elapsed().as_secs_f64();
    let _ = std::fs::remove_dir_all(folder);
    ensure!(status.success(), "pip failed");
    Ok(seconds)
}

/// From the wish for packages to the result of an import.
async fn start(lab: &Lab, with_set: bool) -> anyhow::Result<f64> {
    let began = Instant::now();
    let package_set = match with_set {
        true => Some(lab.manager.install_packages(&wanted(lab)?, Arc::new(|_| {})).await?),
        false => None,
    };
    let spec = SessionSpec {
        kernel: lab.kernel.clone(),
        sandbox: SandboxChoice::Only(SandboxKind::Process),
        limits: Limits::default(),
        network: NetworkPolicy::None,
        env: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: package_set.as_ref().map(|set| lab.manager.mounted_packages(set)),
    };
    let mut session = lab.manager.create(spec).await?;
    let ran = run(&mut session, if with_set { "import humanize" } else { "import colorsys" }).await;
    let seconds = began.elapsed().as_secs_f64();
    session.destroy().await?;
    ran.map(|_| seconds)
}
