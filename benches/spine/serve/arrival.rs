//! A cell that prints 50 MB, and what of it arrives at a client.

use std::time::Instant;

use anyhow::ensure;

use super::client::{Jupyter, Kernel, OverSocket, OverStream};
use super::servers::{Server, jupyter_is_missing};
use crate::Lab;
use crate::table::{Figure, Goal, Rows};

/// 50 MB in lines, as a program prints them.
const LINES: &str = "for i in range(50_000): print('x' * 999)";
const BYTES: usize = 50_000_000;

/// What arrived, and in how long.
struct Arrived {
    bytes: usize,
    seconds: f64,
}

impl Arrived {
    fn of(kernel: &mut dyn Kernel) -> anyhow::Result<Self> {
        kernel.run("1")?;
        let began = Instant::now();
        let bytes = kernel.run(LINES)?;
        ensure!(bytes <= BYTES, "{bytes} bytes arrived of {BYTES}: some twice");
        Ok(Self { bytes, seconds: began.elapsed().as_secs_f64() })
    }

    fn lost(&self) -> Figure {
        Figure::Bytes(BYTES.saturating_sub(self.bytes) as u64)
    }
}

pub(crate) fn measure(lab: &Lab) -> anyhow::Result<Rows> {
    let server = Server::cellkeep(lab, &[])?;
    eprintln!("arrival: WebSocket");
    let socket = Arrived::of(&mut OverSocket::open(server.address, &server.session()?)?)?;
    eprintln!("arrival: events");
    let events = Arrived::of(&mut OverStream::open(server.address, &server.session()?))?;
    drop(server);
    let missing = jupyter_is_missing(lab);
    let theirs = match missing {
        None => {
            eprintln!("arrival: jupyter_server");
            let jupyter = Server::jupyter(lab)?;
            Some(Arrived::of(&mut Jupyter::open(jupyter.address, &jupyter.kernel()?)?)?)
        }
        Some(_) => None,
    };
    let mut rows = Rows::default();
    for (name, ours) in [("WebSocket", socket), ("events (SSE)", events)] {
        let (lost, seconds) = (format!("{name}: lost of 50 MB"), format!("{name}: until the cell's end"));
        match &theirs {
            Some(theirs) => {
                rows.compare(&lost, ours.lost(), "jupyter_server", theirs.lost(), Some(Goal::None));
                rows.compare(
                    &seconds,
                    Figure::Seconds(ours.seconds),
                    "jupyter_server",
                    Figure::Seconds(theirs.seconds),
                    None,
                );
            }
            None => {
                rows.value(&lost, ours.lost(), Some(Goal::None));
                rows.value(&seconds, Figure::Seconds(ours.seconds), None);
            }
        }
    }
    if let Some(reason) = missing {
        rows.skip("jupyter_server", reason);
    }
    rows.note("in 50,000 lines of 1,000 bytes; jupyter_server with its own limits, by the same WebSocket client".to_owned());
    Ok(rows)
}
