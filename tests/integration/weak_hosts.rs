//! Machines with fewer permissions: missing protection is reported, and the rest is still enforced.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cellkeep::config::Paths;
use cellkeep::kernels;
use cellkeep::manager::{Manager, SandboxChoice, SessionSpec};
use cellkeep::policy::{Limits, NetworkPolicy};
use cellkeep::sandbox::SandboxKind;

use crate::cli::{Cli, scratch};
use crate::support::TestSession;

/// A folder with a `bwrap` that cannot hide files in `/proc`, as in some containers, and otherwise calls the real one.
fn refusing_bwrap(folder: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|folder| folder.join("bwrap")).find(|path| path.is_file()).unwrap();
    let script = format!(
        "#!/bin/sh
if echo \"$*\" | grep -q /proc/kallsyms || {{ [ \"$1\" = --args ] && grep -aq /proc/kallsyms /proc/self/fd/$2; }}; then
    echo \"bwrap: Can't bind mount /oldroot/dev/null on /newroot/proc/kallsyms: Operation not permitted\" >&2
    exit 1
fi
exec {} \"$@\"
",
        real.display()
    );
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("bwrap"), script).unwrap();
    fs::set_permissions(folder.join("bwrap"), fs::Permissions::from_mode(0o755)).unwrap();
    folder.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmasked_proc_is_reported() {
    let folder = refusing_bwrap(&scratch("refusing"));
    let path =
        std::env::join_paths([folder.clone()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())));
    let path = path.unwrap().into_string().unwrap();
    let doctor = Cli::new(&["doctor"]).env("PATH", &path).run();
    assert!(
        doctor.stdout.contains("cannot be hidden") && doctor.stdout.contains("Operation not permitted"),
        "{}",
        doctor.stdout
    );
    // SAFETY: nextest runs each test in its own process, and nothing else in this one reads the environment meanwhile.
    #[expect(unsafe_code, reason = "the manager looks bubblewrap up in the environment")]
    unsafe {
        std::env::set_var("PATH", path);
    }
    let spec = SessionSpec {
        kernel: kernels::find("python").unwrap().clone(),
        sandbox: SandboxChoice::Only(SandboxKind::Process),
        limits: Limits::default(),
        network: NetworkPolicy::None,
        env: Vec::new(),
        mounts: Vec::new(),
        secrets: Vec::new(),
        package_set: None,
    };
    let session = Manager::new(Paths::from_environment()).create(spec).await.unwrap();
    let living = TestSession::new(session);
    let not_enforced = living.session.record.isolation.not_enforced.join("\n");
    assert!(not_enforced.contains("/proc: describes the machine"), "{not_enforced}");
    living.assert_works().await;
    living.end().await;
    fs::remove_dir_all(folder).unwrap();
}

/// A data folder and its user, who cannot create cgroups: another user if we are root, else the current one.
fn ordinary_user(name: &str) -> (PathBuf, Option<u32>) {
    let uid = rustix::process::geteuid().is_root().then_some(64_999);
    // Not in the target folder, which only root may be able to enter.
    let folder = std::env::temp_dir().join(format!("cellkeep-{name}-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(Paths::from_environment().kernels(), folder.join("kernels")).unwrap();
    if uid.is_some() {
        std::os::unix::fs::chown(&folder, uid, uid).unwrap();
    }
    (folder, uid)
}

#[test]
fn unmapped_memory_counts_towards_limit() {
    let (data, uid) = ordinary_user("watch");
    let hold = |name: &str, how: &str| {
        let code = format!("import os, time\n{how}\nprint('held', flush=True)\ntime.sleep(3)\nprint('alive')");
        let arguments = ["exec", "--sandbox", "process", "--memory", "192m", "--disk", "256m", "-c", &code, "--data"];
        let ran = Cli::new(&arguments).path(&data).uid(uid).run();
        assert!(!ran.stdout.contains("alive"), "{name}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.code == 138 && ran.stderr.contains("192 MB"), "{name}: {} {}", ran.code, ran.stderr);
    };
    let fill = |path: &str| {
        format!("for _ in range(48): os.write(os.open('{path}', os.O_WRONLY | os.O_CREAT | os.O_APPEND), bytes(1 << 20))")
    };
    let sockets = "import socket
kept, server = [], socket.socket()
server.bind(('127.0.0.1', 0))
server.listen(100)
";
    let tcp = "for _ in range(60):
    one = socket.create_connection(server.getsockname())
    kept += [one, server.accept()[0]]
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.setblocking(False)
    try:
        while True: one.send(bytes(1 << 16))
    except OSError: pass";
    let udp = "for _ in range(60):
    one = socket.socket(type=socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    one.bind(('127.0.0.1', 0))
    kept.append(one)
    for _ in range(200): one.sendto(bytes(60000), one.getsockname())";
    hold("TCP", &format!("{sockets}{tcp}"));
    hold("UDP", &format!("{sockets}{udp}"));
    hold(
        "unix",
        "import socket\nkept = []\nfor _ in range(1000):\n    one, other = socket.socketpair()\n    one.setblocking(False)\n    kept += [one, other]\n    try:\n        while True: one.send(bytes(1 << 16))\n    except OSError: pass",
    );
    hold(
        "inodes",
        &format!(
            "{}\nfor n in range(65000): os.close(os.open(f'/work/{{n}}', os.O_CREAT))",
            ["/tmp/f", "/dev/shm/f", "/work/f"].map(fill).join("\n")
        ),
    );
    hold("files", &["/tmp/f", "/dev/shm/f", "/work/f", "/work/g", "/work/h"].map(fill).join("\n"));
    let segment = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\nfor _ in range(10):\n    id = libc.shmget(0, ctypes.c_size_t(32 << 20), 0o1600)\n    at = libc.shmat(id, None, 0)\n    ctypes.memset(at, 1, 32 << 20)\n    libc.shmdt(ctypes.c_void_p(at))";
    hold("System V", segment);
    fs::remove_dir_all(data).unwrap();
}

/// The kernel is spared: what exceeds the memory has removed every trace of who started it.
#[test]
fn process_of_nobody_is_killed_alone() {
    let (data, uid) = ordinary_user("nobody");
    let code = "import os, subprocess, sys
hog = 'import os, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\nopen(\"hog\", \"w\").write(str(os.getpid()))\\nheld = bytearray(400 << 20)\\ntime.sleep(100)'
subprocess.run(['env', '-i', sys.executable, '-c', hog])
while not os.path.exists('hog') or not open('hog').read(): pass
pid = open('hog').read()
while os.path.exists('/proc/' + pid): pass
print('alive')";
    let arguments = ["exec", "--sandbox", "process", "--memory", "192m", "-c", code, "--data"];
    let ran = Cli::new(&arguments).path(&data).uid(uid).run();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "alive"), "{}", ran.stderr);
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn memory_that_cannot_be_found_is_refused() {
    let (data, uid) = ordinary_user("hidden");
    let code = "import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
for number in 319, 68, 64: print(libc.syscall(number, b'm', 0), ctypes.get_errno())
pid = os.fork()
if pid == 0:
    libc.prctl(4, 0, 0, 0, 0)
    time.sleep(100)
    os._exit(0)
print(os.waitpid(pid, 0)[1])";
    let ran = Cli::new(&["exec", "--sandbox", "process", "-c", code, "--data"]).path(&data).uid(uid).run();
    assert_eq!(ran.stdout.trim(), "-1 38\n-1 38\n-1 38\n9", "{}", ran.stderr);
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn locks_of_ordinary_user_stay_inside() {
    let (data, uid) = ordinary_user("locks");
    let held: Vec<_> = ["/usr/bin/env", "/etc/ld.so.cache"].into_iter().map(|path| fs::File::open(path).unwrap()).collect();
    for file in &held {
        rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    let code = "import fcntl
for path in '/usr/bin/env', '/etc/ld.so.cache': fcntl.flock(open(path), fcntl.LOCK_EX | fcntl.LOCK_NB)
print('free')";
    let ran = Cli::new(&["exec", "--sandbox", "process", "-c", code, "--data"]).path(&data).uid(uid).run();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "free"), "{}", ran.stderr);
    fs::remove_dir_all(data).unwrap();
}

#[test]
fn mapped_shared_memory_counts_once() {
    let (data, uid) = ordinary_user("once");
    // 100 MB, mapped by three processes: counted more than once, it exceeds 192 MB together with Python.
    let code = "import mmap, os, time
memfd = os.open('/tmp/shared', os.O_RDWR | os.O_CREAT)
os.ftruncate(memfd, 60 << 20)
file = os.open('/dev/shm/shared', os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 40 << 20)
maps = [mmap.mmap(memfd, 0), mmap.mmap(file, 0)]
for map in maps:
    for offset in range(0, len(map), 4096): map[offset] = 1
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        for map in maps: sum(map[offset] for offset in range(0, len(map), 4096))
        time.sleep(2); os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])";
    let arguments = ["exec", "--sandbox", "process", "--memory", "192m", "-c", code, "--data"];
    let ran = Cli::new(&arguments).path(&data).uid(uid).run();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "[0, 0]"), "{}", ran.stderr);
    fs::remove_dir_all(data).unwrap();
}
