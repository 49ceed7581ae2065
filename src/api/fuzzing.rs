//! Entry points of the fuzz targets (`fuzz/`): what reads the bodies and cursors of requests.

use super::extract::read_object;
use super::{cells, chat, notebooks, paging, runs, sessions, shares, socket};

/// Reads bytes as each kind of request.
pub fn read_requests(bytes: &[u8]) {
    let _ = read_object::<cells::Add>(bytes);
    let _ = read_object::<cells::Edit>(bytes);
    let _ = read_object::<cells::Run>(bytes);
    let _ = read_object::<chat::MessageBody>(bytes);
    let _ = read_object::<notebooks::Run>(bytes);
    let _ = read_object::<runs::JobRequest>(bytes);
    let _ = read_object::<new_session::Create>(bytes);
    let _ = read_object::<sessions::Input>(bytes);
    let _ = read_object::<sessions::Patch>(bytes);
    let _ = read_object::<shares::Create>(bytes);
    let _ = read_object::<socket::Command>(bytes);
    if let Ok(cursor) = std::str::from_utf8(bytes) {
        let _ = paging::position::<(i64, String)>(Some(cursor));
    }
}
