//! Attacks on other sessions and on the machine, through what the system counts or shares: refused or contained.
//!
//! Every test fails if the limit or restriction that it covers is removed.

use std::time::Duration;

use cellkeep::sandbox::SandboxKind;
use cellkeep::session::ExecutionStatus;

use crate::support::TestSandbox;

in_every_sandbox!(
    memory_of_sockets_is_limited,
    counters_of_machine_are_spared,
    shared_files_carry_no_locks,
    watching_shared_files_is_refused,
    limits_of_agent_are_protected,
    unused_protocols_are_refused,
    planted_names_do_not_stop_restart,
    busy_processes_yield_to_agent,
    files_in_flight_are_limited,
    open_network_does_not_reach_machine,
    open_networks_are_apart,
);

/// Fills the buffers of many sockets, and prints how many megabytes they hold.
const FILL_SOCKETS: &str = r"
import socket
kept, held = [], {'tcp': 0, 'udp': 0}
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen(200)
for _ in range(120):
    sender = socket.socket()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    sender.connect(server.getsockname())
    receiver, _ = server.accept()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sender.setblocking(False)
    kept += [sender, receiver]
    try:
        while True: held['tcp'] += sender.send(bytes(1 << 16))
    except OSError: pass
print('tcp', held['tcp'] >> 20)
for one in kept: one.close()
kept = []
for _ in range(120):
    both = socket.socket(type=socket.SOCK_DGRAM)
    both.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    both.bind(('127.0.0.1', 0))
    both.setblocking(False)
    kept.append(both)
    try:
        for _ in range(200): both.sendto(bytes(60000), both.getsockname())
    except OSError: pass
for one in kept:
    try:
        while True: held['udp'] += len(one.recv(65536))
    except OSError: pass
print('udp', held['udp'] >> 20)
";

pub async fn memory_of_sockets_is_limited(place: TestSandbox) {
    let living = place.session("python").await;
    let text = living.ok(FILL_SOCKETS).await;
    for kind in ["tcp", "udp"] {
        let held = text.lines().find_map(|line| line.strip_prefix(kind)?.trim().parse::<u64>().ok()).unwrap();
        assert!(held < 200, "{kind}: {text}");
    }
    living.assert_works().await;
    living.end().await;
}

pub async fn counters_of_machine_are_spared(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def count(most, call):
    for number in range(most):
        if call() < 0: return number, errno.errorcode[ctypes.get_errno()]
    return most, 'no limit'
context = ctypes.c_ulong
print('aio', count(100, lambda: libc.syscall(206, 1, ctypes.byref(context()))))
print('inotify', count(200, lambda: libc.syscall(294, 0)))
timer = lambda: libc.syscall(222, 1, None, ctypes.byref(ctypes.c_int()))
print('timers', count(10000, timer)[0] <= 4096)
def terminal():
    try: return os.openpty()[0]
    except OSError as error:
        ctypes.set_errno(error.errno)
        return -1
print('terminals', count(300, terminal)[0] <= 64)
print('keys', count(1, lambda: libc.syscall(248, b'user', b'x', b'y', 1, -3)))
for call, number in ('perf', 298), ('bpf', 321), ('userfaultfd', 323), ('io_uring', 425): print(call, count(1, lambda: libc.syscall(number, 0, 0, 0, 0, 0)))
import resource
print('queues', resource.getrlimit(12), 'signals', resource.getrlimit(11))
print('uid', os.getuid())
";
    let text = living.ok(code).await;
    for expected in [
        "aio (0, 'ENOSYS')",
        "inotify (0, 'ENOSYS')",
        "timers True",
        "terminals True",
        "keys (0, 'EPERM')",
        "perf (0, 'EPERM')",
        "bpf (0, 'EPERM')",
        "userfaultfd (0, 'EPERM')",
        "io_uring (0, 'EPERM')",
        "queues (0, 0) signals (4096, 4096)",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // In a container the uid is the host's, by which it counts; in a user namespace all see the same.
    let uid = |text: &str| text.lines().find_map(|line| line.strip_prefix("uid ")?.parse::<u32>().ok()).unwrap();
    if place.kind == SandboxKind::Docker {
        let other = place.session("python").await;
        assert_ne!(uid(&text), uid(&other.ok("import os\nprint('uid', os.getuid())").await));
        other.end().await;
    }
    living.assert_works().await;
    living.end().await;
}

const LOCK: &str = r"
import fcntl, os, struct, sysconfig
paths = ['/usr/bin/env', '/usr/lib/os-release', sysconfig.get_paths()['stdlib'] + '/os.py', '/opt/kernel/bin', '/etc/passwd', '/etc/ld.so.cache', '/dev/null', '/dev/urandom', '/proc/sys/kernel/osrelease', '/run/cellkeep/agent']
kept = []
for path in paths:
    if not os.path.exists(path): continue
    file = os.open(path, os.O_RDONLY)
    kept.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.isdir(path): fcntl.fcntl(file, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0))
    except OSError as error: print('refused', path, error)
    if not os.path.isdir(path):
        found = fcntl.fcntl(file, 36, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
        if struct.unpack('hhqqi4x', found)[0] != fcntl.F_UNLCK: print('sees a lock', path)
print('locked', len(kept))
";

pub async fn shared_files_carry_no_locks(place: TestSandbox) {
    let (one, other) = (place.session("python").await, place.session("python").await);
    for session in [&one, &other] {
        let text = session.ok(LOCK).await;
        assert!(text.contains("locked") && !text.contains("refused") && !text.contains("sees"), "{text}");
    }
    // Nor between a session and the machine.
    if place.kind == SandboxKind::Process {
        for path in ["/usr/bin/env".as_ref(), one.session.record.agent_binary.as_path()] {
            let file = std::fs::File::open(path).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        }
    }
    // In the workspace locks work.
    let own = "import fcntl\na, b = open('/work/x', 'w'), open('/work/x', 'w')\nfcntl.lockf(a, fcntl.LOCK_EX)\nfcntl.flock(a, fcntl.LOCK_EX)\ntry: fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: print('held')";
    assert!(one.ok(own).await.contains("held"));
    one.end().await;
    other.end().await;
}

pub async fn watching_shared_files_is_refused(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import ctypes, errno, fcntl, os
libc = ctypes.CDLL(None, use_errno=True)
for name, number in ('inotify_init', 253), ('inotify_init1', 294), ('inotify_add_watch', 254), ('fanotify_init', 300), ('cachestat', 451), ('statmount', 457), ('listmount', 458):
    print(name, errno.errorcode.get(ctypes.get_errno(), '?') if libc.syscall(number, 0, 0, 0, 0) == -1 else 'ALLOWED')
usr = os.open('/usr/bin', os.O_RDONLY)
mine = os.open('/work/mine', os.O_RDWR | os.O_CREAT)
for name, file, request, argument in ('dnotify', usr, 1026, 1), ('lease', mine, 1024, fcntl.F_RDLCK):
    try: print(name, 'ALLOWED', fcntl.fcntl(file, request, argument))
    except OSError as error: print(name, errno.errorcode[error.errno])
try: print('nowait ALLOWED', os.preadv(os.open('/usr/bin/env', os.O_RDONLY), [bytearray(10)], 0, os.RWF_NOWAIT))
except OSError as error: print('nowait', errno.errorcode[error.errno])
";
    let text = living.ok(code).await;
    assert!(!text.contains("ALLOWED"), "{text}");
    for expected in ["inotify_init1 ENOSYS", "cachestat ENOSYS", "dnotify EPERM", "lease EPERM", "nowait ENOTSUP"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    living.end().await;
}

pub async fn limits_of_agent_are_protected(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import ctypes, errno, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call):
    try: print(name, 'ALLOWED', call())
    except OSError as error: print(name, errno.errorcode[error.errno])
def raw(number, *arguments):
    if libc.syscall(number, *arguments) == -1: raise OSError(ctypes.get_errno(), '')
attempt('prlimit', lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8)))
high = ctypes.c_void_p(1 << 32)
attempt('prlimit, low bits of the pointer zero', lambda: raw(302, 1, 7, high, None))
attempt('scheduler', lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
attempt('parameters', lambda: os.sched_setparam(1, os.sched_param(0)))
attempt('affinity', lambda: os.sched_setaffinity(1, {0}))
attempt('sched_setattr', lambda: raw(314, 1, bytes(48), 0))
attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
attempt('nice of group', lambda: os.setpriority(os.PRIO_PGRP, 1, 19))
attempt('nice of user', lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt('ioprio', lambda: raw(251, 1, 1, 3 << 13))
attempt('ioprio of user', lambda: raw(251, 3, os.getuid(), 3 << 13))
for value in 0x40000, 0x400000, 0x800000, 3: attempt(f'personality {value}', lambda: raw(135, value))
attempt('kexec_file_load', lambda: raw(320, 0, 0, 0, 0, 0))
try: raw(135, 0xffffffff)
except OSError as error: print('query REFUSED' if error.errno != errno.EINVAL else 'no such call')
for calls in [lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)), lambda: os.setpriority(os.PRIO_PROCESS, 0, 11), lambda: resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK)), lambda: resource.prlimit(0, resource.RLIMIT_CORE)]:
    calls()
print('score', open('/proc/self/oom_score_adj').read().strip())
for lower in range(0, 500, 50):
    try:
        open('/proc/self/oom_score_adj', 'w').write(str(lower))
        print('LOWERED to', lower)
        break
    except OSError: pass
print('own calls work')
";
    let text = living.ok(code).await;
    assert!(!text.contains("ALLOWED") && !text.contains("REFUSED") && text.contains("own calls work"), "{text}");
    // Only who has this capability can set the lowest score; the engine's daemon has ours here.
    let own = rustix::thread::capabilities(None).unwrap().effective;
    assert!(!text.contains("LOWERED") || !own.contains(rustix::thread::CapabilitySet::SYS_RESOURCE), "{text}");
    living.end().await;
}

pub async fn unused_protocols_are_refused(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import socket
for family in socket.AF_INET, socket.AF_INET6:
    for kind in 1, 2, 3, 4, 5, 6, 10:
        for protocol in [0, 1, 2, 6, 17, 33, 58, 115, 132, 136, 255, 262]:
            try:
                socket.socket(family, kind, protocol).close()
                print('opened', kind, protocol)
            except OSError: pass
one = socket.socket()
for level, option, value in (6, 31, b'tls'), (6, 31, b'smc'), (1, 50, bytes(4)), (1, 51, bytes(16)), (1, 52, bytes(4)), (17, 100, bytes(4)):
    try:
        one.setsockopt(level, option, value)
        print('set', level, option)
    except PermissionError: pass
    except OSError as error: print('reached', level, option, error)
";
    let text = living.ok(code).await;
    for line in text.lines() {
        assert!(["opened 1 0", "opened 1 6", "opened 2 0", "opened 2 17"].contains(&line), "{text}");
    }
    living.end().await;
}

pub async fn planted_names_do_not_stop_restart(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os
for folder in ['/run/kernel', '/run/connection']:
    for generation in range(1, 6):
        for name in [f'connection-{generation}.json', f'{generation}.json'] + [f'{generation}-{port}' for port in range(6)]:
            for plant in [os.mkfifo, lambda path: os.symlink('/run/kernel/nowhere', path)]:
                try: plant(f'{folder}/{name}')
                except OSError as error: refused = error
print('connection', [name for name in os.listdir('/run/connection') if not name.endswith('.json') or '-' not in name])
try:
    open('/run/connection/x', 'w')
    print('WRITABLE')
except OSError: print('not writable')
";
    let text = living.ok(code).await;
    assert!(!place.has_landlock() || text.contains("not writable") && text.contains("connection []"), "{text}");
    living.session.handle.restart().await.unwrap();
    living.assert_works().await;
    living.end().await;
}

pub async fn busy_processes_yield_to_agent(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os
print('nice', os.getpriority(os.PRIO_PROCESS, 0), 'agent', open('/proc/1/stat').read().rsplit(')', 1)[1].split()[16])
try:
    os.setpriority(os.PRIO_PROCESS, 0, 0)
    print('RAISED')
except OSError: pass
for _ in range(60):
    if os.fork() == 0:
        os.setsid()
        while True: pass
while True: pass
";
    let ran = living.run_for(code, Duration::from_secs(3)).await;
    assert_eq!(ran.status(), ExecutionStatus::Timeout, "{}", ran.error());
    assert!(ran.text().contains("nice 10 agent 0") && !ran.text().contains("RAISED"), "{}", ran.text());
    living.assert_works().await;
    living.end().await;
}

pub async fn files_in_flight_are_limited(place: TestSandbox) {
    let living = place.session("python").await;
    let code = r"
import os, resource, socket
most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
sent, kept = 0, []
try:
    while sent < 100000:
        pair = socket.socketpair()
        for end in pair: end.setblocking(False)
        kept.append(pair)
        file = os.open('/dev/null', os.O_RDONLY)
        try:
            while sent < 100000:
                socket.send_fds(pair[0], [b'x'], [file] * 200)
                sent += 200
        except BlockingIOError: pass
        finally: os.close(file)
except OSError as error: print(error)
print('in flight', sent, sent <= most + 253)
";
    let text = living.ok(code).await;
    assert!(text.contains("True"), "{text}");
    living.end().await;
}

pub async fn open_network_does_not_reach_machine(place: TestSandbox) {
    if place.kind == SandboxKind::Docker && !rustix::process::geteuid().is_root() {
        return;
    }
    // A service of the machine on all addresses, and one on an abstract socket.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let living = place.open_session("python").await;
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap();
    let own: Vec<&str> = table
        .lines()
        .zip(table.lines().skip(1))
        .filter(|(_, kind)| kind.ends_with("host LOCAL"))
        .filter_map(|(address, _)| address.trim().strip_prefix("|-- "))
        .collect();
    assert!(!own.is_empty());
    let code = format!(
        r"
import errno, socket
routes = [line.split() for line in open('/proc/net/route')][1:]
gateways = [socket.inet_ntoa(bytes.fromhex(line[2])[::-1]) for line in routes if line[1] == '00000000']
print('default route', len(gateways))
for address in {own:?} + gateways + ['169.254.169.254', '169.254.1.1', '168.63.129.16', '198.18.77.2', '0.0.0.0']:
    one = socket.socket()
    one.settimeout(5)
    try:
        one.connect((address, {port}))
        print('REACHED', address)
    except OSError as error: print(address, errno.errorcode.get(error.errno, error))
# The port can be taken inside, which changes nothing outside.
mine = socket.socket()
mine.bind(('0.0.0.0', {port}))
mine.listen()
"
    );
    let text = living.ok(&code).await;
    assert!(text.contains("default route 1") && !text.contains("REACHED"), "{text}");
    for refused in ["169.254.169.254 EHOSTUNREACH", "168.63.129.16 EHOSTUNREACH"] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    living.assert_works().await;
    living.end().await;
}

pub async fn open_networks_are_apart(place: TestSandbox) {
    let (one, other) = (place.open_session("python").await, place.open_session("python").await);
    let listen = "import socket, fcntl, struct\nserver = socket.create_server(('0.0.0.0', 4321))\nprobe = socket.socket(type=socket.SOCK_DGRAM)\nprobe.connect(('8.8.8.8', 53))\nprint(probe.getsockname()[0])";
    let address = one.ok(listen).await;
    let code = format!(
        "import socket\none = socket.socket()\none.settimeout(5)\ntry:\n    one.connect(('{}', 4321))\n    print('REACHED')\nexcept OSError as error: print('refused', error)",
        address.trim()
    );
    assert!(other.ok(&code).await.contains("refused"), "{address}");
    one.end().await;
    other.end().await;
}
