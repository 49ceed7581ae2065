//! Answers the manager's requests about files of the workspace.

use bytes::Bytes;

use super::sandbox::Sandbox;
use super::uploads::{Chunk, Uploads};
use crate::agent_protocol::{AnswerBody, Refused, Request};

/// The answer to a request that returns nothing.
pub(super) const DONE: AnswerBody = AnswerBody::Done { repeated: false };

/// Answers a request of a connection with these unfinished `uploads`. `None` if it is not about files. A change that a request makes is
/// not reported as one of the code.
pub(super) fn answer(
    sandbox: &Sandbox,
    uploads: &mut Uploads,
    request: &Request,
    data: &[u8],
) -> Option<(AnswerBody, Bytes)> {
    let (body, data) = answer_any(sandbox, uploads, request, data)?;
    // A recursive removal takes several requests.
    if !matches!(body, AnswerBody::Refused(_) | AnswerBody::Removed { more: true }) {
        let mut changes = sandbox.changes.borrow_mut();
        changed_paths(request).iter().for_each(|path| changes.absorb(&sandbox.files, path));
    }
    Some((body, data))
}

fn answer_any(sandbox: &Sandbox, uploads: &mut Uploads, request: &Request, data: &[u8]) -> Option<(AnswerBody, Bytes)> {
    let files = &sandbox.files;
    let body = match request {
        Request::FileGet { path, offset, length } => match files.get(path, *offset, *length) {
            Ok((stat, data)) => return Some((AnswerBody::File(stat), data)),
            Err(refused) => AnswerBody::Refused(refused),
        },
        Request::FilePut { upload, path, offset, last, options } => {
            let chunk = Chunk { upload: *upload, path, offset: *offset, last: *last, options: *options };
            to_answer(uploads.write_chunk(files, &chunk, data), |stat| stat.map_or(DONE, AnswerBody::File))
        }
        Request::FileDrop { upload } => {
            uploads.discard(*upload);
            DONE
        }
        Request::FileStat { path } => to_answer(files.stat(path), AnswerBody::Entry),
        Request::FileList { path, after, limit } => {
            let page = files.list(path, after, *limit);
            to_answer(page, |(entries, next)| AnswerBody::Listing { entries, next })
        }
        Request::FileMakeFolder { path } => to_answer(files.make_folder(path), |()| DONE),
        Request::FileLink { path, target } => to_answer(files.make_link(path, target), |()| DONE),
        Request::FileMove { path, to, replace } => to_answer(files.rename(path, to, *replace), |()| DONE),
        Request::FileRemove { path, recursive } => {
            to_answer(files.remove(path, *recursive), |more| AnswerBody::Removed { more })
        }
        _ => return None,
    };
    Some((body, Bytes::new()))
}

/// The answer with a result.
pub(super) fn to_answer<T>(result: Result<T, Refused>, answer: impl FnOnce(T) -> AnswerBody) -> AnswerBody {
    result.map_or_else(AnswerBody::Refused, answer)
}

/// The paths whose files a request changes.
fn changed_paths(request: &Request) -> Vec<&str> {
    match request {
        Request::FilePut { path, last: true, .. } | Request::FileRemove { path, .. } => vec![path],
        Request::FileMove { path, to, .. } => vec![path, to],
        _ => Vec::new(),
    }
}
