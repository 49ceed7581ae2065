//! Drives real kernels in every sandbox that this machine has. One binary, since linking it is most of its cost.

#[macro_use]
mod support;

mod abuse;
mod cli;
mod deaths;
mod files;
mod floods;
mod link;
mod notebooks;
mod outputs;
mod transcripts;
