//! interim
use super::*;
use crate::config::Paths;
/// x
pub struct DockerSandbox;
/// x
pub enum Engine { /** x */ Usable { /** x */ description: String, /** x */ warnings: Vec<String> }, /** x */ Unusable { /** x */ reason: String, /** x */ remedy: String } }
/// x
pub async fn engine() -> Engine { Engine::Unusable { reason: "interim".into(), remedy: String::new() } }
impl DockerSandbox {
    /// x
    /// # Errors
    /// x
    pub async fn connect(_paths: Paths) -> Result<Self, SandboxError> { Err(SandboxError::Unavailable { kind: SandboxKind::Docker, reason: "interim".into(), remedy: String::new() }) }
}
#[async_trait]
impl Sandbox for DockerSandbox {
    fn kind(&self) -> SandboxKind { SandboxKind::Docker }
    async fn create(&self, _: &SandboxSpec) -> Result<SandboxRecord, SandboxError> { unreachable!() }
    async fn connect(&self, _: &SandboxRecord) -> Result<UnixStream, SandboxError> { unreachable!() }
    async fn inspect(&self, _: &SandboxRecord) -> Result<SandboxState, SandboxError> { unreachable!() }
    async fn stats(&self, _: &SandboxRecord) -> Result<SandboxStats, SandboxError> { unreachable!() }
    async fn destroy(&self, _: &SandboxRecord) -> Result<(), SandboxError> { unreachable!() }
    async fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> { unreachable!() }
}
