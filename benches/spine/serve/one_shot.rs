//! Code that runs once: `POST /v1/execute` on a warm pool, against the same image with `docker run`.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::pool::{POOL, wait_until_full};
use super::servers::Server;
use crate::Lab;
use crate::peer::{docker_image, docker_is_missing};
use crate::table::{Figure, Goal, Rows, percentile};

const EXECUTIONS: usize = 50;
const CONTAINERS: usize = 5;
const AT_ONCE: usize = 100;
/// The goal is to be 20 times as fast as `docker run`.
const OF_DOCKER_RUN: f64 = 1.0 / 20.0;

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let server = Server::cellkeep(lab, &["--pool", &format!("python={POOL}")])?;
    let mut seconds = Vec::with_capacity(EXECUTIONS);
    let mut http = server.http()?;
    for round in 1..=EXECUTIONS {
        if round % 10 == 1 {
            eprintln!("one shot: execution {round} of {EXECUTIONS}");
        }
        wait_until_full(&mut http)?;
        seconds.push(execute(&server)?);
    }
    let mut rows = Rows::default();
    let p50 = percentile(&seconds, 50);
    rows.value("`print(1)` p50", Figure::Seconds(p50), Some(Goal::Within(0.030)));
    rows.value("`print(1)` p95", Figure::Seconds(percentile(&seconds, 95)), None);
    match docker_is_missing(lab) {
        Some(reason) => rows.skip("`print(1)` against docker run", reason),
        None => {
            let peer = (0..CONTAINERS).map(|_| docker_run(lab)).collect::<anyhow::Result<Vec<f64>>>()?;
            let theirs = Figure::Seconds(percentile(&peer, 50));
            rows.compare(
                "`print(1)` p50",
                Figure::Seconds(p50),
                "docker run",
                theirs,
                Some(Goal::AtMostTimes(OF_DOCKER_RUN)),
            );
        }
    }
    let began = Instant::now();
    let failed = std::thread::scope(|scope| {
        let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| execute(&server))).collect();
        all.into_iter().map(|one| one.join().is_ok_and(|ran| ran.is_ok())).filter(|succeeded| !succeeded).count()
    });
    rows.value(&format!("{AT_ONCE} at once, all"), Figure::Seconds(began.elapsed().as_secs_f64()), None);
    rows.value(&format!("{AT_ONCE} at once, errors"), Figure::Count(failed), Some(Goal::None));
    rows.note(format!("{EXECUTIONS} executions, the pool of {POOL} refilled before each; {CONTAINERS} containers"));
    Ok(rows)
}

fn execute(server: &Server) -> anyhow::Result<f64> {
    let mut http = server.http()?;
    let began = Instant::now();
    let report = http.ask("POST", "/v1/execute", Some(&json!({"code": "print(1)"})))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(report["output"]["stdout"] == "1\n", "the report is {report}");
    Ok(seconds)
}

fn docker_run(lab: &Lab) -> anyhow::Result<f64> {
    let began = Instant::now();
    let image = docker_image(lab);
    let program = lab.kernel.argv.first().context("the kernel has no command")?;
    let ran = Command::new("docker")
        .args(["run", "--rm", "--network", "none", &image, program, "-c", "print(1)"])
        .stderr(Stdio::null())
        .output()?;
    ensure!(ran.stdout == b"1\n", "docker run printed {:?}", String::from_utf8_lossy(&ran.stdout));
    Ok(began.elapsed().as_secs_f64())
}
