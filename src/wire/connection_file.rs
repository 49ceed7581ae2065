//! The connection file, which tells a kernel its sockets.
//!
//! Source: <https://jupyter-client.readthedocs.io/en/stable/kernels.html#connection-files>.

use serde::{Deserialize, Serialize};

use super::Channel;
use crate::ids;

/// The transport of the kernel's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Unix sockets: no ports, hence no races for ports.
    Ipc,
    /// TCP on the sandbox's loopback, for kernels that support nothing else (Deno).
    Tcp,
}

/// The content of a connection file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    pub transport: Transport,
    /// An address; for ipc the common prefix of the socket files.
    pub ip: String,
    pub shell_port: u16,
    pub iopub_port: u16,
    pub stdin_port: u16,
    pub control_port: u16,
    /// The heartbeat, which is not used.
    pub hb_port: u16,
    /// The HMAC key.
    pub key: String,
    /// Always `hmac-sha256`.
    pub signature_scheme: String,
    pub kernel_name: String,
}

impl ConnectionInfo {
    /// With a random key. `ports`: shell, iopub, stdin, control, heartbeat.
    pub fn new(transport: Transport, ip: &str, ports: [u16; 5], kernel_name: &str) -> Self {
        let [shell_port, iopub_port, stdin_port, control_port, hb_port] = ports;
        Self {
            transport,
            ip: ip.to_owned(),
            shell_port,
            iopub_port,
            stdin_port,
            control_port,
            hb_port,
            key: ids::random_uuid(),
            signature_scheme: "hmac-sha256".to_owned(),
            kernel_name: kernel_name.to_owned(),
        }
    }

    /// The port of a channel; for ipc the suffix of its file.
    pub fn port(&self, channel: Channel) -> u16 {
        match channel {
            Channel::Shell => self.shell_port,
            Channel::Control => self.control_port,
            Channel::Stdin => self.stdin_port,
            Channel::Iopub => self.iopub_port,
        }
    }

    /// The ZeroMQ endpoint of a channel. For ipc the file is `{ip}-{port}`.
    pub fn endpoint(&self, channel: Channel) -> String {
        match self.transport {
            Transport::Ipc => format!("ipc://{}-{}", self.ip, self.port(channel)),
            Transport::Tcp => format!("tcp://{}:{}", self.ip, self.port(channel)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_follow_transport() {
        let ipc = ConnectionInfo::new(Transport::Ipc, "/run/kernel/1", [1, 2, 3, 4, 5], "python");
        assert_eq!(ipc.endpoint(Channel::Iopub), "ipc:///run/kernel/1-2");
        let tcp = ConnectionInfo::new(Transport::Tcp, "127.0.0.1", [9001, 9002, 9003, 9004, 9005], "deno");
        assert_eq!(tcp.endpoint(Channel::Control), "tcp://127.0.0.1:9004");
        assert!(serde_json::to_string(&tcp).unwrap().contains(r#""transport":"tcp""#));
    }
}
