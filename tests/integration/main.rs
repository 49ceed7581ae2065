//! Tests with real kernels in every sandbox of this machine. One binary, since linking takes most of the build time.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[macro_use]
mod support;

mod abuse;
mod action;
mod archives;
mod audit;
mod bad_notebooks;
mod bash_kernel;
mod ceilings;
mod cell_context;
mod changed_files;
mod chats;
mod cli;
mod common_cells;
mod contract;
mod crash;
mod deaths;
mod elements;
mod embedding;
mod ended_runs;
mod exports;
mod file_requests;
mod files;
mod floods;
mod frames;
mod gvisor;
mod half_sent;
mod hostile;
mod interrupts;
mod large_answers;
mod late_output;
mod link;
mod list_pages;
mod long_text;
mod many;
mod matrix;
mod nbclient_oracle;
mod neighbours;
mod notebooks;
mod opened;
mod output_widgets;
mod outputs;
mod package;
mod pages;
mod parameters;
mod private_data;
mod removal;
mod same_results;
mod secrets;
mod serve;
mod served_notebooks;
mod server;
mod shares;
mod strict;
mod sudden_deaths;
mod sweeping;
mod talks;
mod tidying;
mod traces;
mod transcripts;
mod uploads;
mod versions;
mod weak_hosts;
