//! Attacks by hostile code. Each is stopped within its limit, with a clear status, and the sandbox holds.
//!
//! Every test fails if the limit or restriction that it covers is removed.

use std::time::Duration;

use cellkeep::policy::{Limits, hidden_paths};
use cellkeep::sandbox::SandboxKind;
use cellkeep::session::ExecutionStatus;

use crate::support::TestSandbox;

in_every_sandbox!(
    fork_bomb_is_limited,
    thread_bomb_is_limited,
    disk_use_is_limited,
    descriptors_are_limited,
    network_is_unreachable,
    dangerous_system_calls_are_denied,
    other_processes_are_unreachable,
    host_secrets_are_invisible,
    host_details_are_invisible,
    forged_messages_do_not_end_execution,
    garbage_on_sockets_is_survived,
    agent_socket_is_unreachable,
    zombies_are_reaped_daemons_end_with_kernel,
    ignored_interrupt_escalates_to_kill,
);

pub async fn fork_bomb_is_limited(place: TestSandbox) {
    let living = place.session_with("python", Limits { pids: 64, ..Limits::default() }).await;
    let code = "import os, time\nfailed = 0\nwhile not failed:\n    try:\n        if os.fork() == 0:\n            time.sleep(600)\n    except BlockingIOError:\n        failed = 1\nprint('refused')";
    assert!(living.ok(code).await.contains("refused"));
    let ran = living
        .run_for(
            "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
            Duration::from_secs(2),
        )
        .await;
    assert_eq!(ran.status(), ExecutionStatus::Timeout, "{}", ran.error());
    living.end().await;
}

pub async fn thread_bomb_is_limited(place: TestSandbox) {
    let living = place.session_with("python", Limits { pids: 64, ..Limits::default() }).await;
    let code = "import threading\nstop = threading.Event()\ntry:\n    for i in range(10000):\n        threading.Thread(target=stop.wait).start()\nexcept RuntimeError as error:\n    print(error)\nstop.set()";
    assert!(living.ok(code).await.contains("can't start new thread"));
    living.assert_works().await;
    living.end().await;
}

pub async fn disk_use_is_limited(place: TestSandbox) {
    let limits = Limits { disk_mb: 32, memory_mb: 512, ..Limits::default() };
    let living = place.session_with("python", limits).await;
    let code = "import os, errno
for folder in ['/work', '/tmp', '/dev/shm', '/run/kernel']:
    path = f'{folder}/big'
    try:
        with open(path, 'wb', buffering=0) as file:
            for megabyte in range(128):
                file.write(bytes(1 << 20))
        print(folder, 'took it all')
    except OSError as error:
        print(folder, errno.errorcode[error.errno])
    finally:
        os.path.exists(path) and os.unlink(path)
for folder in ['/', '/usr', '/etc', '/dev', '/opt/kernel', '/proc', '/run', '/run/cellkeep', '/sys']:
    try:
        open(f'{folder}/x', 'w')
        print(folder, 'writable')
    except OSError as error:
        print(folder, 'no')
";
    let text = living.ok(code).await;
    for folder in ["/work", "/tmp", "/dev/shm", "/run/kernel"] {
        let refused = [format!("{folder} ENOSPC"), format!("{folder} EFBIG")];
        // An unbuffered write to a full tmpfs ends with a short write.
        assert!(refused.iter().any(|line| text.contains(line)), "{text}");
    }
    assert!(!text.contains("writable"), "{text}");
    living.assert_works().await;
    living.end().await;
}

pub async fn descriptors_are_limited(place: TestSandbox) {
    let living = place.session("python").await;
    let code = "import os, errno\nkept = []\ntry:\n    while True:\n        kept.append(os.open('/dev/null', os.O_RDONLY))\nexcept OSError as error:\n    print(errno.errorcode[error.errno])\nfor fd in kept: os.close(fd)";
    assert!(living.ok(code).await.contains("EMFILE"));
    living.assert_works().await;
    living.end().await;
}

pub async fn network_is_unreachable(place: TestSandbox) {
    let living = place.session("python").await;
    let code = "import socket, time
began = time.time()
for family, address in [(socket.AF_INET, ('1.1.1.1', 53)), (socket.AF_INET, ('169.254.169.254', 80)), (socket.AF_INET, ('172.17.0.1', 22)), (socket.AF_INET, ('127.0.0.1', 7788)), (socket.AF_INET6, ('fd00:ec2::254', 80))]:
    for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM]:
        try:
            s = socket.socket(family, kind)
            s.settimeout(5)
            s.connect(address)
            if kind == socket.SOCK_DGRAM and address[0] == '127.0.0.1': continue
            print('reached', address, kind)
        except OSError as error:
            pass
try:
    print('resolved', socket.gethostbyname('example.com'))
except OSError:
    pass
print('interfaces', sorted(name for _, name in socket.if_nameindex()))
print('quick', time.time() - began < 20)";
    let text = living.ok(code).await;
    assert!(!text.contains("reached") && !text.contains("resolved"), "{text}");
    assert!(text.contains("quick True"), "{text}");
    for harmless in
        text.split("interfaces").nth(1).unwrap_or_default().lines().next().unwrap_or_default().split('\'').skip(1).step_by(2)
    {
        // Tunnel interfaces that the system creates in every namespace, down and without addresses.
        assert!(
            ["lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0"]
                .contains(&harmless),
            "{text}"
        );
    }
    living.end().await;
}

pub async fn dangerous_system_calls_are_denied(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import ctypes, os, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    result = libc.syscall(number, *arguments)
    code = errno.errorcode.get(ctypes.get_errno(), '?') if result == -1 else 'ALLOWED'
    print(name, code)
for name, number, arguments in [
    ('io_uring_setup', 425, (8, 0)), ('bpf', 321, (0, 0, 0)), ('userfaultfd', 323, (0,)), ('perf_event_open', 298, (0, 0, 0, 0, 0)),
    ('keyctl', 250, (0, -3, 0)), ('add_key', 248, (0, 0, 0, 0, 0)), ('ptrace', 101, (0, 0, 0, 0)), ('process_vm_readv', 310, (1, 0, 0, 0, 0, 0)),
    ('mount', 165, (0, 0, 0, 0, 0)), ('unshare', 272, (0x10000000,)), ('setns', 308, (0, 0)), ('pivot_root', 155, (0, 0)), ('chroot', 161, (b'/tmp',)),
    ('open_by_handle_at', 304, (0, 0, 0)), ('name_to_handle_at', 303, (0, b'/', 0, 0, 0)), ('memfd_secret', 447, (0,)), ('fsopen', 430, (b'tmpfs', 0)),
    ('clone(newuser)', 56, (0x10000000 | 17, 0, 0, 0, 0)), ('init_module', 175, (0, 0, b'')), ('reboot', 169, (0, 0, 0, 0)), ('syslog', 103, (3, 0, 0)),
    ('future', 600, ()), ('x32', 0x40000000 + 39, ()), ('clone3', 435, (0, 0)), ('ioctl(TIOCSTI)', 16, (0, 0x5412, b'x')),
]:
    call(name, number, *arguments)
for family in range(46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind).close()
            print('family', family, kind)
        except OSError:
            pass
try:
    socket.socket(16, socket.SOCK_RAW, 12)
    print('netfilter ALLOWED')
except OSError: pass
for path in ['/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/dev/mem', '/dev/kmem', '/proc/kcore', '/sys/kernel/uevent_helper', '/proc/sys/kernel/hostname']:
    try:
        with open(path, 'r+b') as file:
            # Docker masks some with /dev/null.
            if os.fstat(file.fileno()).st_rdev != os.makedev(1, 3): print('opened', path)
    except OSError: pass
try:
    os.mknod('/work/device', 0o020600, os.makedev(1, 1)); open('/work/device'); print('device ALLOWED')
except OSError: pass
status = open('/proc/self/status').read()
print([line for line in status.splitlines() if line.split(':')[0] in ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs', 'Seccomp')])
";
    let text = living.ok(code).await;
    assert!(!text.contains("ALLOWED") && !text.contains("opened"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("family")) {
        assert!(
            ["family 1 ", "family 2 ", "family 10 ", "family 16 "].iter().any(|allowed| line.starts_with(allowed)),
            "{text}"
        );
    }
    for absent in ["future ENOSYS", "x32 ENOSYS", "clone3 ENOSYS"] {
        assert!(text.contains(absent), "{absent}: {text}");
    }
    for expected in ["CapEff:\\t0000000000000000", "CapPrm:\\t0000000000000000", "NoNewPrivs:\\t1", "Seccomp:\\t2"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    living.end().await;
}

pub async fn other_processes_are_unreachable(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os, signal
for what in [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV]:
    try: os.kill(1, what)
    except OSError: pass
for path in ['/proc/1/mem', '/proc/1/environ', '/proc/1/maps']:
    try:
        open(path, 'rb').read(10); print('read', path)
    except OSError: pass
try:
    print('agent files', os.listdir('/proc/1/fd'))
except OSError: pass
print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[:3], len([p for p in os.listdir('/proc') if p.isdigit()]) < 10)
";
    let text = living.ok(code).await;
    assert!(!text.contains("read /proc") && !text.contains("agent files"), "{text}");
    assert!(text.contains("[1, ") && text.contains("True"), "the sandbox sees its own processes only: {text}");
    // kill(-1) kills everything except its caller and PID 1.
    living.run("import os, signal\nos.kill(-1, signal.SIGKILL)").await;
    living.assert_works().await;
    living.end().await;
}

pub async fn host_secrets_are_invisible(place: TestSandbox) {
    // A descriptor inherited from the manager's parent must not be visible inside.
    let (left_open, _other_end) = std::io::pipe().unwrap();
    let number = rustix::io::fcntl_dupfd_cloexec(&left_open, 700).unwrap();
    rustix::io::fcntl_setfd(&number, rustix::io::FdFlags::empty()).unwrap();
    // tests/integration/cli.rs looks for a canary in the environment of the command.
    let living = place.session("python").await;
    let code = r"
import os, glob
# Those with the certificates, that of the agent, and those of the kernelspec are our own.
own = ('CELLKEEP_PROGRAM', 'PIP_DISABLE_PIP_VERSION_CHECK', 'PIP_NO_CACHE_DIR', 'PIP_RETRIES')
names = [name for name, value in os.environ.items() if value != '/etc/ssl/certs/ca-certificates.crt' and name not in own]
found = [name for name in names if any(word in name.upper() for word in ('CARGO', 'NEXTEST', 'CELLKEEP', 'SSL', 'PIP_'))]
print('leaked', found)
print('given', os.environ['GIVEN'])
print('descriptors', [fd for fd in os.listdir('/proc/self/fd') if int(fd) >= 600])
for path in ['/var/run/docker.sock', '/run/docker.sock', '/root', '/home', '/var/lib/cellkeep', '/etc/shadow', '/etc/ssh', '/etc/hostname', '/mnt', '/boot']:
    try:
        if os.path.isdir(path): print('sees', path, os.listdir(path)[:3]) if os.listdir(path) else None
        else: open(path).read(1); print('reads', path)
    except OSError: pass
";
    let text = living.ok(code).await;
    assert!(text.contains("descriptors []"), "{text}");
    assert!(text.contains("leaked []") && text.contains("given to the kernel"), "{text}");
    let allowed = |line: &&str| !(line.contains("/etc/hostname"));
    let seen: Vec<&str> =
        text.lines().filter(|line| line.starts_with("sees") || line.starts_with("reads")).filter(allowed).collect();
    assert!(seen.is_empty(), "{text}");
    living.end().await;
}

pub async fn host_details_are_invisible(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os
for path in cellkeep_masked:
    try:
        if os.path.isdir(path): found = os.listdir(path)
        else: found = open(path, 'rb').read(100)
        if found: print('sees', path, found)
    except OSError: pass
for path in cellkeep_readonly:
    for inner in ([path] if not os.path.isdir(path) else [path + '/x'] + [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names][:2000]):
        try:
            with open(inner, 'ab') as file:
                # Hidden files are /dev/null.
                if os.fstat(file.fileno()).st_rdev != os.makedev(1, 3): print('opened', inner)
        except OSError: pass
    print(path, 'ro' if not os.path.exists(path) or os.statvfs(path).f_flag & os.ST_RDONLY else 'writable')
print('release', open('/proc/sys/kernel/osrelease').read() != '')
for line in open('/proc/self/mountinfo'):
    root, target = line.split()[3:5]
    if target in ('/etc/passwd', '/etc/group', '/etc/hosts'): print('account', root)
";
    let code =
        format!("cellkeep_masked = {:?}\ncellkeep_readonly = {:?}\n{code}", hidden_paths::MASKED, hidden_paths::READONLY);
    let text = living.ok(&code).await;
    assert!(!text.contains("sees") && !text.contains("opened") && !text.contains("writable"), "{text}");
    assert!(text.contains("release True"), "programs read some of /proc/sys: {text}");
    if place.kind == SandboxKind::Process {
        let accounts: Vec<&str> = text.lines().filter(|line| line.starts_with("account")).collect();
        assert!(
            accounts.len() == 3 && accounts.iter().all(|line| line.contains("bindfile")),
            "no host path is visible: {text}"
        );
        let code = format!(
            "import os\nprint([os.listdir(path) for path in {:?} if os.path.exists(path)])",
            hidden_paths::HOST_FOLDERS
        );
        let text = living.ok(&code).await;
        assert!(text.contains("[]") && !text.contains('\''), "{text}");
    }
    living.end().await;
}

pub async fn forged_messages_do_not_end_execution(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r#"
from ipykernel.kernelapp import IPKernelApp
import time
kernel = IPKernelApp.instance().kernel
parent = kernel.get_parent("shell")
def forge(kind, content, parent):
    kernel.session.send(kernel.iopub_socket, kind, content, parent=parent, ident=b"x")
stranger = {"header": {"msg_id": "someone-else", "session": "s", "msg_type": "execute_request", "username": "u", "version": "5.3"}}
forge("status", {"execution_state": "idle"}, stranger)
forge("stream", {"name": "stdout", "text": "for someone else"}, stranger)
forge("stream", {"name": 7, "text": None}, parent)
forge("display_data", {"data": {"image/png": {"not": "base64"}, "text/plain": None}}, parent)
forge("execute_reply", {"status": "ok"}, stranger)
forge("no_such_type", {"deep": [[[[]]]]}, parent)
forge("status", {"execution_state": "idle"}, parent)
time.sleep(0.3)
print("said after the forged idle")
"#;
    let ran = living.run(code).await;
    assert_eq!(ran.status(), ExecutionStatus::Ok, "{}", ran.error());
    assert!(ran.text().contains("said after the forged idle"), "{}", ran.text());
    assert!(!ran.text().contains("for someone else"), "{}", ran.text());
    living.assert_works().await;
    living.end().await;
}

pub async fn garbage_on_sockets_is_survived(place: TestSandbox) {
    let living = place.session("python").await;
    // First as another client of the kernel's sockets; the kernel ignores it.
    let knock = r"
import glob, os, socket
for path in glob.glob('/run/kernel/*'):
    for garbage in [os.urandom(4096), b'\xff' + bytes(8) + b'\x01\x7f' + bytes(53), b'GET / HTTP/1.1\r\n\r\n']:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(1)
        try:
            s.connect(path); s.sendall(garbage)
        except OSError: pass
print('knocked')
";
    assert!(living.ok(knock).await.contains("knocked"));
    living.assert_works().await;
    // Then into the streams that the agent reads: a frame that claims 2^46 bytes.
    let flood = r"
import os, stat, time
for fd in range(3, 200):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.write(fd, b'\x02' + (1 << 46).to_bytes(8, 'big') + b'x' * 4096)
    except OSError: pass
time.sleep(60)
";
    let ran = living.run_for(flood, Duration::from_secs(5)).await;
    assert!(
        matches!(ran.status(), ExecutionStatus::KernelDied | ExecutionStatus::Timeout),
        "{:?} {}",
        ran.status(),
        ran.error()
    );
    living.end().await;
}

pub async fn agent_socket_is_unreachable(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import glob, os, socket
for path in glob.glob('/run/cellkeep/**', recursive=True):
    if os.path.isdir(path): continue
    try:
        os.unlink(path); print('unlinked', path)
    except OSError: pass
    try:
        os.rename(path, path + '2'); print('renamed', path)
    except OSError: pass
    try:
        s = socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(path); s.sendall(b'CKEEP\x01')
        print('spoke with the agent', path) if s.recv(10) else None
    except OSError: pass
for folder in ['/run/cellkeep', '/run/cellkeep/sock']:
    try:
        open(folder + '/x', 'w'); print('wrote', folder)
    except OSError: pass
print('tried')
";
    let text = living.ok(code).await;
    assert_eq!(text.trim(), "tried");
    living.assert_works().await;
    living.end().await;
}

pub async fn zombies_are_reaped_daemons_end_with_kernel(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os, time
for i in range(150):
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
deadline = time.time() + 20
count = lambda: len([p for p in os.listdir('/proc') if p.isdigit()])
while count() > 8 and time.time() < deadline: time.sleep(0.05)
print('left', count() <= 8)
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork() == 0:
        open('/work/daemon', 'w').write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not os.path.exists('/work/daemon'): time.sleep(0.01)
";
    assert!(living.ok(code).await.contains("left True"));
    living.session.handle.restart().await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    living.assert_works().await;
    let text = living.ok("import os\nprint('daemon lives', os.path.exists('/proc/' + open('/work/daemon').read()))").await;
    // The workspace stays, the daemon does not. (PIDs are reused only after thousands of processes.)
    assert!(text.contains("daemon lives False"), "{text}");
    living.end().await;
}

pub async fn ignored_interrupt_escalates_to_kill(place: TestSandbox) {
    let living = place.session("python").await;
    let code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nwhile True: pass";
    let ran = living.run_for(code, Duration::from_secs(1)).await;
    assert_eq!(ran.status(), ExecutionStatus::Timeout);
    assert!(ran.text().contains("deaf"), "the output until then is kept");
    assert!(ran.notices.iter().any(|notice| notice.contains("killing")), "each step is reported: {:?}", ran.notices);
    living.assert_works().await;
    let ran = living
        .run_for("while True:\n    try:\n        while True: pass\n    except BaseException: pass", Duration::from_secs(1))
        .await;
    assert_eq!(ran.status(), ExecutionStatus::Timeout);
    living.assert_works().await;
    living.end().await;
}
