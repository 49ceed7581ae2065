//! interim
use clap::Subcommand;
use super::{Exit, Failure};
use crate::config::Paths;
/// Images.
#[derive(Subcommand)]
pub(super) enum ImagesCommand {
    /// List
    List,
}
pub(super) async fn run(_paths: &Paths, _command: ImagesCommand) -> Result<Exit, Failure> { Ok(Exit::Ok) }
