//! bubblewrap's command line, and explanations of its errors.
//!
//! bubblewrap gets an empty environment and reads its options from a descriptor, since code in the sandbox can read the
//! arguments and the environment of its exec in `/proc/1`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::PipeFlags;

use super::cgroup::{self, Cgroup};
use super::open_network::RESOLV_CONF;
use super::private_mounts::PrivateMounts;
use crate::agent_protocol::Listen;
use crate::descriptors;
use crate::policy::{Network, hidden_paths};
use crate::sandbox::certificates::{self, CERTIFICATES, FOLDER as CERTIFICATES_FOLDER};
use crate::sandbox::environment::{
    CONNECTION_DIR, CONNECTION_DIR_BYTES, PACKAGES, RUNTIME_DIR, RUNTIME_DIR_BYTES, SHM_BYTES, WORKSPACE,
};
use crate::sandbox::{SANDBOX_UID, SandboxSpec};

/// System files that kernels read besides `/usr`, which are copied. Missing ones are skipped.
const ETC: &[&str] = &["/etc/ld.so.cache", "/etc/R/Makeconf", "/etc/R/Renviron", "/etc/R/ldpaths", "/etc/R/repositories"];
/// As [`ETC`], for sessions with a network.
const ETC_NETWORK: &[&str] = &["/etc/services", "/etc/protocols"];
/// Folders for sessions with a network. Missing ones are skipped.
const FOLDERS_NETWORK: &[&str] = &["/etc/ssl", "/etc/ca-certificates"];
/// The largest system file that is copied, bytes.
const MAX_COPIED: u64 = 4 << 20;

/// Folders of the environment, and the folders of the host in whose place they are. Without the first, the second is hidden.
const OWN_FOLDERS: &[(&str, &str)] = &[("fonts", "/usr/share/fonts"), ("common/fontconfig", "/etc/fonts")];

/// The programs and libraries behind names in `/etc/alternatives`: as in the images, whatever the host's choice is. Used if they
/// exist.
const ALTERNATIVES: &[(&str, &str)] = &[
    ("awk", "/usr/bin/mawk"),
    ("nawk", "/usr/bin/mawk"),
    ("pager", "/usr/bin/less"),
    ("which", "/usr/bin/which.debianutils"),
    ("libblas.so.3-x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/blas/libblas.so.3"),
    ("liblapack.so.3-x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/lapack/liblapack.so.3"),
    ("libblas.so.3-aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu/blas/libblas.so.3"),
    ("liblapack.so.3-aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu/lapack/liblapack.so.3"),
];

/// Size of the empty tmpfs that hides a folder, bytes.
const COVER_BYTES: u64 = 4096;

/// The parameters of one start.
pub(super) struct Launch<'a> {
    pub spec: &'a SandboxSpec,
    pub environment: &'a Path,
    pub agent: &'a Path,
    pub cgroup: &'a Cgroup,
    pub listen: &'a Listen,
    /// The end of a pipe that the sandbox holds as long as it exists.
    pub alive: OwnedFd,
    /// Whether to hide the files in `/proc` that describe the host. A few machines forbid that to ordinary users.
    pub masked: bool,
    /// The file systems of its own. Without them, folders and devices are the machine's.
    pub mounts: Option<PrivateMounts>,
    /// The uid of the sandbox on the host, if it is not our own.
    pub uid: Option<u32>,
}

/// The folders of the host that a sandbox shows.
pub(super) fn trees(environment: &Path, spec: &SandboxSpec) -> Vec<PathBuf> {
    let packages = spec.package_set.as_ref().map(|set| set.folder.as_path());
    let own = [environment].into_iter().chain(spec.certificates.as_deref()).chain(packages).map(Path::to_owned);
    system_trees(spec.network).into_iter().chain(own).collect()
}

/// Those of [`trees`] that are the machine's.
pub(super) fn system_trees(network: Network) -> Vec<PathBuf> {
    let open = if network == Network::Open { FOLDERS_NETWORK } else { &[] };
    let top = TOP_FOLDERS.iter().map(|name| format!("/{name}"));
    let system = [SYSTEM.to_owned()].into_iter().chain(top).chain(open.iter().map(|path| (*path).to_owned()));
    system.filter(|path| is_folder(path)).map(PathBuf::from).collect()
}

const SYSTEM: &str = "/usr";
/// Links into [`SYSTEM`], or folders on machines where they are not merged.
const TOP_FOLDERS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

impl Launch<'_> {
    /// The command, and the pipe on which bubblewrap reports the agent's PID. The agent inherits `listener` under the same
    /// number.
    pub fn command(self, listener: OwnedFd) -> io::Result<(Command, OwnedFd)> {
        let (status_read, status_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // The agent is executed by its descriptor, so that the sandbox has no path of a file that others use.
        let agent = OwnedFd::from(fs::File::open(self.agent)?);
        let Options { list, mut inherited } = self.options(&status_write)?;
        let list: Vec<u8> = list.iter().flat_map(|option| option.as_bytes().iter().chain(b"\0")).copied().collect();
        let arguments = memory_file(&list)?;
        let mut command = Command::new(program()?);
        command
            .env_clear()
            .arg("--args")
            .arg(arguments.as_raw_fd().to_string())
            .arg(format!("/proc/self/fd/{}", agent.as_raw_fd()))
            .arg(serde_json::to_string(self.listen)?);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let groups = self.cgroup.open_for_joining()?;
        inherited.extend([arguments, status_write, listener, agent, self.alive]);
        let mounts = self.mounts;
        if let (None, Some(uid)) = (&mounts, self.uid) {
            command.uid(uid).gid(uid);
        }
        // SAFETY: runs between fork and exec; the closure makes system calls on descriptors that it owns and does not
        // allocate.
        #[expect(unsafe_code, reason = "the child must join its cgroup before exec")]
        unsafe {
            command.pre_exec(move || {
                cgroup::join(&groups)?;
                rustix::process::setsid()?;
                if let Some(mounts) = &mounts {
                    mounts.enter()?;
                }
                // Descriptors inherited from our parent must not reach the sandbox.
                descriptors::close_all_at_exec()?;
                inherited.iter().try_for_each(|fd| descriptors::keep_at_exec(fd.as_raw_fd()))
            });
        }
        Ok((command, status_read))
    }

    fn options(&self, status: &OwnedFd) -> io::Result<Options> {
        let mut options = Options::default();
        options.add(&["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]);
        let uid = SANDBOX_UID.to_string();
        options.add(&["--unshare-cgroup-try", "--disable-userns", "--uid", &uid, "--gid", &uid, "--hostname", "cellkeep"]);
        options.add(&["--as-pid-1", "--new-session", "--cap-drop", "ALL", "--clearenv"]);
        options.add(&["--json-status-fd", &status.as_fd().as_raw_fd().to_string()]);
        self.system(&mut options)?;
        options.bind(&self.source(self.environment), "/opt/kernel");
        if let Some(set) = &self.spec.package_set {
            options.bind(&self.source(&set.folder), PACKAGES);
        }
        self.writable(&mut options);
        for (number, (folder, path)) in self.spec.shared_folders().into_iter().enumerate() {
            let source = self.mounts.as_ref().map_or(folder.to_owned(), |mounts| mounts.shared_source(number));
            options.bind(&source, &path);
        }
        for (source, target) in self.cgroup.views() {
            options.bind(&source, &target);
        }
        if self.mounts.as_ref().is_none_or(|mounts| !mounts.is_root()) {
            // It is a tmpfs that belongs to the sandbox's uid, and writable it would be unlimited storage.
            options.add(&["--remount-ro", "/dev"]);
        }
        options.add(&["--remount-ro", "/", "--chdir", WORKSPACE]);
        Ok(options)
    }

    /// Where bubblewrap finds a folder of the host: an overlay of it, if there are private mounts.
    fn source(&self, path: &Path) -> PathBuf {
        self.mounts.as_ref().map_or(path.to_owned(), |mounts| mounts.source(path))
    }

    /// Devices, `/proc` and the writable folders.
    fn writable(&self, options: &mut Options) {
        options.add(&["--proc", "/proc"]);
        let Some(mounts) = &self.mounts else {
            options.add(&["--dev", "/dev"]);
            if self.masked {
                options.mask(Path::new("/proc"), Path::new("/dev/null"));
            }
            let limits = &self.spec.limits;
            options.tmpfs("1777", SHM_BYTES, "/dev/shm");
            options.tmpfs("1777", limits.tmp_bytes(), "/tmp");
            options.tmpfs("0700", limits.disk_bytes(), WORKSPACE);
            options.tmpfs("0700", RUNTIME_DIR_BYTES, RUNTIME_DIR);
            return options.tmpfs("0700", CONNECTION_DIR_BYTES, CONNECTION_DIR);
        };
        let bind = |options: &mut Options, kind: &str, source: &str, target: &str| {
            let source = mounts.source(Path::new(source));
            options.add_os(&[OsStr::new(kind), source.as_os_str(), OsStr::new(target)]);
        };
        if mounts.is_root() {
            bind(options, "--dev-bind", "/dev", "/dev");
        } else {
            options.add(&["--dev", "/dev"]);
            bind(options, "--dev-bind", "/pts", "/dev/pts");
            bind(options, "--bind", "/shm", "/dev/shm");
        }
        match (self.masked, mounts.is_root()) {
            (false, _) => {}
            (true, true) => options.mask(&mounts.source(Path::new("/proc")), &mounts.source(Path::new("/dev")).join("null")),
            (true, false) => options.mask(Path::new("/proc"), Path::new("/dev/null")),
        }
        for folder in ["/tmp", WORKSPACE, RUNTIME_DIR, CONNECTION_DIR] {
            bind(options, "--bind", folder, folder);
        }
    }

    fn system(&self, options: &mut Options) -> io::Result<()> {
        options.bind(&self.source(Path::new(SYSTEM)), SYSTEM);
        for path in hidden_paths::HOST_FOLDERS.iter().filter(|path| is_folder(path)) {
            options.hide_folder(path);
        }
        self.hide_locales(options);
        for (own, target) in OWN_FOLDERS {
            let own = self.environment.join(own);
            match own.is_dir() {
                // A mount point cannot be made in the read-only /usr.
                true if is_folder(target) || !target.starts_with("/usr/") => options.bind(&self.source(&own), target),
                false if is_folder(target) && target.starts_with("/usr/") => options.hide_folder(target),
                _ => {}
            }
        }
        for name in TOP_FOLDERS {
            let path = PathBuf::from("/").join(name);
            match fs::read_link(&path) {
                Ok(target) => options.add_os(&[OsStr::new("--symlink"), target.as_os_str(), path.as_os_str()]),
                Err(_) if path.is_dir() => options.bind(&self.source(&path), &path.display().to_string()),
                Err(_) => {}
            }
        }
        let (files, folders): (&[_], &[_]) = match self.spec.network {
            Network::Open => (ETC_NETWORK, FOLDERS_NETWORK),
            Network::None => (&[], &[]),
        };
        for path in ETC.iter().chain(files) {
            if let Some(content) = read_file(path) {
                options.file(&content, path)?;
            }
        }
        if self.spec.network == Network::Open {
            options.file(RESOLV_CONF.as_bytes(), "/etc/resolv.conf")?;
        }
        for path in folders.iter().filter(|path| is_folder(path)) {
            options.bind(&self.source(Path::new(path)), path);
        }
        let (shared, own) = (self.spec.certificates.as_deref(), self.spec.own_certificate.as_deref());
        match shared {
            Some(shared) if own.is_none() => options.bind(&self.source(shared), CERTIFICATES_FOLDER),
            shared => {
                if let Some(together) = certificates::together(shared, own)? {
                    options.file(&together, CERTIFICATES)?;
                }
            }
        }
        for (name, target) in ALTERNATIVES.iter().filter(|(_, target)| Path::new(target).exists()) {
            options.add(&["--symlink", target, &format!("/etc/alternatives/{name}")]);
        }
        options.add(&["--symlink", "../usr/lib/os-release", "/etc/os-release"]);
        for (name, content) in [
            ("passwd", format!("cellkeep:x:{SANDBOX_UID}:{SANDBOX_UID}::{WORKSPACE}:/bin/bash\n")),
            ("group", format!("cellkeep:x:{SANDBOX_UID}:\n")),
            ("hosts", "127.0.0.1 localhost cellkeep\n::1 localhost\n".to_owned()),
        ] {
            options.file(content.as_bytes(), &format!("/etc/{name}"))?;
        }
        Ok(())
    }

    /// Hides all locales except C.UTF-8, the only one of the images. Without it, programs would take text for ASCII.
    fn hide_locales(&self, options: &mut Options) {
        const LOCALES: &str = "/usr/lib/locale";
        if !is_folder(LOCALES) {
            return;
        }
        options.tmpfs("0755", COVER_BYTES, LOCALES);
        for locale in fs::read_dir(LOCALES).into_iter().flatten().flatten() {
            if locale.file_name().to_string_lossy().starts_with("C.") {
                options.bind(&self.source(&locale.path()), &locale.path().display().to_string());
            }
        }
        options.add(&["--remount-ro", LOCALES]);
    }
}

/// Whether it is a folder. The target of a symlink is not visible in a sandbox, so symlinks need not be hidden.
fn is_folder(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// The content of a system file, if it exists and is not larger than any should be.
fn read_file(path: &str) -> Option<Vec<u8>> {
    let small = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= MAX_COPIED);
    fs::read(path).ok().filter(|_| small)
}

/// Options, and the descriptors to which they refer.
#[derive(Default)]
struct Options {
    list: Vec<OsString>,
    inherited: Vec<OwnedFd>,
}

impl Options {
    fn add(&mut self, options: &[&str]) {
        self.list.extend(options.iter().map(OsString::from));
    }

    fn add_os(&mut self, options: &[&OsStr]) {
        self.list.extend(options.iter().map(OsString::from));
    }

    fn bind(&mut self, source: &Path, target: &str) {
        self.add_os(&[OsStr::new("--ro-bind"), source.as_os_str(), OsStr::new(target)]);
    }

    fn tmpfs(&mut self, mode: &str, bytes: u64, target: &str) {
        self.add(&["--perms", mode, "--size", &bytes.to_string(), "--tmpfs", target]);
    }

    /// Hides a folder behind an empty one.
    fn hide_folder(&mut self, target: &str) {
        self.tmpfs("0755", COVER_BYTES, target);
        self.add(&["--remount-ro", target]);
    }

    /// Adds a generated file.
    fn file(&mut self, content: &[u8], target: &str) -> io::Result<()> {
        let file = memory_file(content)?;
        self.add(&["--perms", "0444", "--ro-bind-data", &file.as_raw_fd().to_string(), target]);
        self.inherited.push(file);
        Ok(())
    }

    /// Hides files in `/proc` that describe the host, and makes others read-only, bound from the given `/proc` and device.
    /// There is no `/sys`. Existence is checked on the host, whose `/proc` has the same files.
    fn mask(&mut self, proc: &Path, null: &Path) {
        for path in hidden_paths::READONLY.iter().filter(|path| Path::new(path).exists()) {
            self.bind(&proc.join(path.trim_start_matches("/proc/")), path);
        }
        for path in hidden_paths::MASKED.iter().filter(|path| path.starts_with("/proc/")) {
            match fs::metadata(path) {
                Ok(found) if found.is_dir() => self.hide_folder(path),
                // As container engines do: the file can be opened and is empty.
                Ok(_) => self.add_os(&[OsStr::new("--dev-bind"), null.as_os_str(), OsStr::new(path)]),
                Err(_) => {}
            }
        }
    }
}

/// The path of bubblewrap. Looked up here, since a command with an empty environment has no PATH.
fn program() -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("bwrap")).find(|program| program.is_file());
    found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// A memfd with this content, positioned at its start.
fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = fs::File::from(memfd_create("cellkeep", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Whether bubblewrap failed to hide files in `/proc`, without which a sandbox can run, rather than to mount `/proc`.
pub(super) fn cannot_mask(message: &str) -> bool {
    message.contains("/proc/")
}

/// The result of a trial start of bubblewrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Works {
        version: String,
        /// Why the files in `/proc` that describe the host cannot be hidden, if they cannot.
        unmasked: Option<String>,
    },
    Fails {
        reason: String,
    },
}

/// Starts `true` with the same namespaces and hidden files as a sandbox, under a sandbox uid. Takes about 5 ms.
pub fn probe() -> Probe {
    let Ok(program) = program() else {
        return Probe::Fails { reason: "bubblewrap (bwrap) is not installed: apt-get install bubblewrap".to_owned() };
    };
    let version = match Command::new(&program).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => return Probe::Fails { reason: format!("{}: {error}", program.display()) },
    };
    match trial(&program, true) {
        Ok(()) => Probe::Works { version, unmasked: None },
        Err(masks) if cannot_mask(&masks) => match trial(&program, false) {
            Ok(()) => Probe::Works { version, unmasked: Some(masks) },
            Err(reason) => Probe::Fails { reason },
        },
        Err(reason) => Probe::Fails { reason },
    }
}

fn trial(program: &Path, masked: bool) -> Result<(), String> {
    let mut options = Options::default();
    options.add(&["--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--ro-bind", "/", "/"]);
    options.add(&["--proc", "/proc", "--dev", "/dev", "--uid", "65532"]);
    if masked {
        options.mask(Path::new("/proc"), Path::new("/dev/null"));
    }
    let mut command = Command::new(program);
    command.env_clear().args(options.list).arg("/usr/bin/true");
    if rustix::process::geteuid().is_root() {
        command.uid(crate::sandbox::FIRST_UID).gid(crate::sandbox::FIRST_UID);
    }
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(explain(String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(error.to_string()),
    }
}

/// bubblewrap's message, with a remedy if there is a known one.
pub(super) fn explain(message: &str) -> String {
    let hint = if message.contains("uid map")
        || message.contains("Creating new namespace")
        || message.contains("No permissions to create")
    {
        let apparmor = fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
        if apparmor.is_ok_and(|value| value.trim() == "1") {
            "; AppArmor forbids user namespaces here: load a profile for bwrap (Ubuntu: apparmor-profiles, bwrap-userns-restrict), \
             or use --sandbox docker"
        } else {
            "; user namespaces are forbidden here (common inside containers): allow them \
             (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0), or use --sandbox docker"
        }
    } else if message.contains("mount proc on") {
        "; a container with partly hidden /proc cannot mount another one: start that container with \
         --security-opt systempaths=unconfined"
    } else if message.contains("Unknown option") {
        "; this bubblewrap is too old: 0.8 or newer is required"
    } else if message.contains("Permission denied") && message.contains("find source path") {
        "; sandboxes run under another uid, which must be able to enter the data folder: use another one (--data DIR)"
    } else {
        ""
    };
    if message.is_empty() { "bubblewrap exited without a message".to_owned() } else { format!("{message}{hint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_errors_are_explained() {
        for (message, remedy) in [
            ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "systempaths=unconfined"),
            ("bwrap: Can't find source path /root/x: Permission denied", "--data DIR"),
            ("bwrap: Unknown option --disable-userns", "0.8 or newer"),
            ("bwrap: setting up uid map: Permission denied", "--sandbox docker"),
        ] {
            let explained = explain(message);
            assert!(explained.starts_with(message) && explained.contains(remedy), "{explained}");
        }
    }

    #[test]
    fn masking_errors_are_recognised() {
        assert!(cannot_mask("bwrap: Can't bind mount /oldroot/proc/sys on /newroot/proc/sys: Operation not permitted"));
        assert!(!cannot_mask(&explain("bwrap: Can't mount proc on /newroot/proc: Operation not permitted")));
    }
}
