//! Connections to the sandbox itself: requests about its kernels, processes and files, answered one after the other.

use std::rc::Rc;

use bytes::Bytes;

use super::connection::ManagerStream;
use super::file_requests::{self, DONE, to_answer};
use super::sandbox::Sandbox;
use super::uploads::Uploads;
use crate::agent_protocol::{Answer, AnswerBody, FromAgent, Hello, ProcessInfo, Request, ToAgent, write_all_vectored};
use crate::ids::Seq;

/// Serves a connection until it ends. Unfinished uploads end with it.
pub(super) async fn serve(mut stream: ManagerStream, sandbox: Rc<Sandbox>) {
    let mut uploads = Uploads::default();
    let hello = Hello::without_kernel(sandbox.epoch, Seq::FIRST, Seq::FIRST);
    let mut frame = FromAgent::Hello(hello);
    while write_all_vectored(&mut stream.writer, frame.encode()).await.is_ok() {
        let Some(answer) = next_answer(&mut stream, &sandbox, &mut uploads).await else { break };
        frame = FromAgent::Answer(answer);
    }
    uploads.discard_all();
}

/// The answer to the next request. `None` if the connection has ended, or has sent what belongs to a kernel.
async fn next_answer(stream: &mut ManagerStream, sandbox: &Rc<Sandbox>, uploads: &mut Uploads) -> Option<Answer> {
    loop {
        match ToAgent::decode(stream.frames.next().await.ok()?).ok()? {
            // There are no events.
            ToAgent::Attach { .. } | ToAgent::Ack { .. } => {}
            ToAgent::Request { id, request, data } => {
                let (body, data) = match file_requests::answer(sandbox, uploads, &request, &data) {
                    Some(answer) => answer,
                    None => (handle(sandbox, request, &data).await, Bytes::new()),
                };
                return Some(Answer { id, body, data });
            }
            ToAgent::Open { .. } | ToAgent::Submit { .. } => return None,
        }
    }
}

async fn handle(sandbox: &Rc<Sandbox>, request: Request, data: &[u8]) -> AnswerBody {
    let processes = &sandbox.processes;
    let described = |info: ProcessInfo| AnswerBody::Process(Box::new(info));
    match request {
        Request::StartKernel { session, env } => to_answer(sandbox.start_kernel(session, env), |()| DONE),
        Request::StopKernel { session } => {
            sandbox.stop_kernel(&session).await;
            DONE
        }
        Request::StartProcess(spec) => to_answer(processes.start(sandbox, *spec), described),
        Request::Process { id } => to_answer(processes.info(&id), described),
        Request::ListProcesses => AnswerBody::Processes(processes.list()),
        Request::ProcessInput { id, offset, close } => to_answer(processes.write(&id, offset, data, close), described),
        Request::ProcessSignal { id, signal } => to_answer(processes.signal(sandbox, &id, signal), |()| DONE),
        Request::ProcessResize { id, size } => to_answer(processes.resize(&id, size), |()| DONE),
        Request::RemoveProcess { id } => {
            processes.remove(sandbox, &id);
            DONE
        }
        Request::Usage => AnswerBody::Usage(sandbox.meter.borrow_mut().read()),
        _ => AnswerBody::Refused("the request belongs to a kernel".to_owned().into()),
    }
}
