"""Programs that look for what a sandbox leaves open: each prints HOLE where it found it. Numbers of system calls are
those of x86-64."""

from textwrap import dedent

HEAD = """
import ctypes, mmap, os, resource, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
call = libc.syscall
def hole(found): print('HOLE' if found else 'no', flush=True)
def tries(action):
    try: return action()
    except (OSError, ValueError, MemoryError) as error: return None
"""


def _programs(texts):
    return {name: HEAD + dedent(text) for name, text in texts.items()}


# Every one of them answers at once.
REACH = _programs(
    {
        "keys of the caller": """
            def read(keyring):
                key = call(250, 10, keyring, b'user', b'holes:secret', 0)
                buffer = ctypes.create_string_buffer(64)
                return key > 0 and call(250, 11, key, buffer, 64) > 0
            listed = tries(lambda: 'holes:secret' in open('/proc/keys').read())
            asked = call(249, b'user', b'holes:secret', None, 0) > 0
            hole(any([read(ring) for ring in (-1, -2, -3, -4, -5, -6, -8)]) or listed or asked)
        """,
        "a key for the next one": """
            ring = {rings}
            def find():
                key = call(250, 10, ring, b'user', b'holes:note', 0)
                return key if key > 0 else 0
            found = find()
            call(248, b'user', b'holes:note', b'data', 4, ring)
            hole(found)
        """,
        "namespaces": """
            flags = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x80]
            made = [flag for flag in flags if call(272, flag | (0x10000000 if flag != 0x10000000 else 0)) == 0]
            made += [flag for flag in flags if call(272, flag) == 0]
            clone3 = struct.pack('<11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6)
            for number, arguments in ((56, (0x10000000 | 17, 0, 0, 0, 0)), (435, (clone3, 88))):
                child = call(number, *arguments)
                if child == 0: os._exit(0)
                if child > 0: made.append(number)
            for name in os.listdir('/proc/self/ns'):
                if tries(lambda: call(308, os.open('/proc/self/ns/' + name, 0), 0)) == 0: made.append(name)
            hole(made)
        """,
        "mounts and roots": """
            done = [libc.mount(b'x', b'/scratch', b'tmpfs', 0, None), libc.umount2(b'/scratch', 2)]
            done += [libc.chroot(b'/scratch')]
            done += [libc.mount(None, b'/', None, 32 | 4096, None), call(155, b'/scratch', b'/scratch')]
            done += [call(428, -100, b'/', 1), call(430, b'tmpfs', 0)]
            hole(any(result >= 0 for result in done))
        """,
        "capabilities and users": """
            status = open('/proc/self/status').read()
            caps = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith('Cap')]
            became = [tries(lambda: (os.setuid(user), True)) for user in (0, 1, 65534) if user != os.getuid()]
            groups = os.getgroups() not in ([], [os.getgid()], [65534])
            hole(any(caps) or any(became) or groups or 'NoNewPrivs:\\t1' not in status)
        """,
        "files of the machine": """
            names = ['/etc/passwd', '/etc/shadow', '/etc/hosts', '/home', '/opt', '/var', '/sys', '/boot', '/srv']
            names += ['/usr/src', '/usr/include', '/usr/games', '/usr/local/share', '/usr/share/doc', 'DATA']
            names += ['/proc/1/root/etc/passwd', '/proc/self/root/../etc/passwd', '/proc/1/cwd/../../etc/passwd']
            hole([name for name in names if os.path.exists(name)])
        """,
        "doors of the kernel in proc": """
            names = ['sysrq-trigger', 'sys/kernel/core_pattern', 'sys/kernel/modprobe', 'sys/user/max_user_namespaces']
            names += ['sys/vm/drop_caches', 'sys/kernel/shmmax', 'sys/fs/binfmt_misc/register', 'irq/0/smp_affinity']
            names += ['sys/kernel/msgmni', 'sys/kernel/sem', 'sys/fs/mqueue/msg_max', 'sys/net/ipv4/tcp_mem']
            opened = [name for name in names if tries(lambda: os.open('/proc/' + name, os.O_WRONLY)) is not None]
            read = lambda name: os.read(os.open('/proc/' + name, os.O_NONBLOCK), 1)
            hole(opened + [name for name in ('kcore', 'kmsg') if tries(lambda: read(name))])
        """,
        "what proc tells of others": """
            pids = [name for name in os.listdir('/proc') if name.isdigit()]
            own = open('/proc/self/cgroup').read()
            hole(len(pids) > 3 or any(len(line.split(':', 2)[2]) > 1 for line in own.splitlines()) or 'reward-' in own)
        """,
        "signals to others": """
            reached = [pid for pid in range(2, 5000) if pid != os.getpid() and tries(lambda: (os.kill(pid, 0), True))]
            reached += [pid for pid in range(2, 5000) if pid != os.getpid() and call(434, pid, 0) >= 0]
            tries(lambda: os.kill(os.getppid(), signal.SIGKILL))
            tries(lambda: os.kill(-1, signal.SIGKILL))
            hole(reached)
        """,
        "descriptors that were left": """
            kinds = [tries(lambda: os.readlink('/proc/self/fd/%d' % n)) for n in range(3, 128)]
            foreign = ('mnt:', 'user:', 'net:', 'pid:', 'anon_inode', 'socket', '/sys', '/root')
            hole([kind for kind in kinds if kind and kind.startswith(foreign)])
        """,
        "networks": """
            made = []
            for family in (socket.AF_INET, socket.AF_INET6, 16, 17, 38, 40):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
                    made.append(tries(lambda: socket.socket(family, kind)))
            reached = [tries(lambda: s.connect(('192.0.2.1', 80)) or s) for s in made if s and s.family == 2]
            local = socket.socket(socket.AF_UNIX)
            hole(any(reached) or tries(lambda: local.connect('\\0/tmp/.X11-unix/X0') or True))
        """,
        "devices": """
            known = {'console', 'core', 'fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin'}
            known |= {'stdout', 'tty', 'urandom', 'zero'}
            made = tries(lambda: os.mknod('/scratch/disk', 0o60600, os.makedev(8, 0)) or True)
            hole(made or set(os.listdir('/dev')) - known)
        """,
    }
)

# With a filter of system calls none of these is granted.
KERNEL = HEAD + dedent("""
    b = ctypes.create_string_buffer(256)
    here = os.getpid()
    grants = {
        'io_uring': call(425, 8, b), 'userfaultfd': call(323, 1), 'bpf': call(321, 0, b, 48),
        'perf': call(298, b, 0, -1, -1, 0), 'memfd': call(319, b'x', 0), 'shmget': call(29, 0, 4096, 0o1600),
        'msgget': call(68, 0, 0o1600), 'semget': call(64, 0, 1, 0o1600), 'mq_open': call(240, b'q', 0o102, 0o600, 0),
        'add_key': call(248, b'user', b'n', b'd', 1, -3), 'keyctl': call(250, 0, -3, 1),
        'ptrace': call(101, 0, 0, 0, 0), 'kcmp': call(312, here, here, 0, 0, 1), 'vsock': call(41, 40, 1, 0),
        'handle': call(303, -100, b'/scratch', b, b, 0), 'vm_readv': call(310, here, b, 0, b, 0, 0),
        'netlink': call(41, 16, 3, 0), 'alg': call(41, 38, 5, 0), 'inet': call(41, 2, 1, 0),
    }
    hole([name for name, result in grants.items() if result >= 0])
""")

# Each tries to hold 600 MiB, or what stands for it, where 256 MiB are allowed.
MEMORY = _programs(
    {
        "files without a name that are only written": """
            block = b'x' * (1 << 20)
            for n in range(30):
                file = call(319, b'f', 0)
                if file < 0: break
                for _ in range(20): os.write(file, block)
            hole(n == 29)
        """,
        "shared memory that nobody holds": """
            libc.shmat.restype, libc.shmdt.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            for _ in range(20):
                number = libc.shmget(0, ctypes.c_size_t(30 << 20), 0o1600)
                if number < 0: break
                place = libc.shmat(number, None, 0)
                ctypes.memset(place, 1, 30 << 20); libc.shmdt(place)
            else: hole(True)
        """,
        "both folders, files mapped": """
            held = 0
            for folder in ('/scratch', '/dev/shm'):
                for n in range(10):
                    with open(f'{folder}/{n}', 'w+b') as file:
                        if tries(lambda: file.write(b'x' * (30 << 20)) or True): held += 30
                        tries(file.flush)
                        tries(lambda: mmap.mmap(file.fileno(), 0))
            used = sum((s.f_blocks - s.f_bfree) * s.f_frsize for s in map(os.statvfs, ('/scratch', '/dev/shm')))
            hole(used > 256 << 20)
        """,
        "inodes": """
            n = 0
            for folder in ('/scratch/', '/dev/shm/'):
                try:
                    while n < 300_000: os.symlink('x' * 60, folder + str(n)); n += 1
                except OSError: pass
            time.sleep(0.4)
            hole(n >= 30_000)
        """,
        "deep folders": """
            made = 0
            try:
                while made < 100_000: os.mkdir('d'); os.chdir('d'); made += 1
            except OSError: pass
            time.sleep(0.4)
            hole(made == 100_000)
        """,
        "attributes of files": """
            held = 0
            for n in range(300):
                open(f'/scratch/{n}', 'w').close()
                for m in range(40):
                    if not tries(lambda: os.setxattr(f'/scratch/{n}', f'user.{m}', b'x' * 60_000) or True): break
                    held += 60_000
            hole(held > 600 << 20)
        """,
        "buffers of pipes": """
            import fcntl
            held = 0
            children = []
            for _ in range(20):
                if os.fork() == 0:
                    time.sleep(20)
                for _ in range(50):
                    pair = tries(os.pipe)
                    if not pair: break
                    tries(lambda: fcntl.fcntl(pair[1], 1031, 1 << 20))
                    os.set_blocking(pair[1], False)
                    held += tries(lambda: os.write(pair[1], b'x' * (1 << 20))) or 0
            hole(held > 600 << 20)
        """,
        "buffers of sockets": """
            counts = mmap.mmap(-1, 8 * 32)
            for n in range(25):
                if tries(os.fork) == 0:
                    held, kept = 0, []
                    for _ in range(50):
                        pair = tries(socket.socketpair)
                        if not pair: break
                        kept.append(pair)
                        for s in pair:
                            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                            s.setblocking(False)
                            while tries(lambda: s.send(b'x' * 40_000)): held += 40_000
                            counts[8 * n:8 * n + 8] = struct.pack('q', held)
                    time.sleep(20); os._exit(0)
            time.sleep(3)
            hole(sum(struct.unpack('32q', counts[:])) > 256 << 20)
        """,
        "messages that nobody reads": """
            held = 0
            for _ in range(32000):
                queue = call(68, 0, 0o1600)
                if queue < 0: break
                for _ in range(2):
                    if call(69, queue, struct.pack('<q', 1) + b'x' * 8000, 8000, 0o4000) == 0: held += 8000
            hole(held > 400 << 20)
        """,
        "many that hold a little": """
            for _ in range(28):
                if tries(os.fork) == 0:
                    held = bytearray(20 << 20); time.sleep(20); os._exit(0)
            time.sleep(2)
            hole(True)
        """,
    }
)

# Each spends more processor time, or keeps its place for longer, than it may.
TIME = _programs(
    {
        "children that nobody waits for": """
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            def burn():
                began = time.process_time()
                while time.process_time() - began < 0.8: pass
                os._exit(0)
            for _ in range(6):
                if os.fork() == 0: burn()
                try: os.wait()
                except ChildProcessError: pass
            hole(True)
        """,
        "children of children": """
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            for _ in range(6):
                if os.fork() == 0:
                    if os.fork() == 0:
                        os.setsid()
                        began = time.process_time()
                        while time.process_time() - began < 0.8: pass
                    os._exit(0)
                time.sleep(0.85)
            hole(True)
        """,
        "many short ones": """
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            began = time.time()
            for _ in range(60):
                if os.fork() == 0:
                    began = time.process_time()
                    while time.process_time() - began < 0.08: pass
                    os._exit(0)
                try: os.wait()
                except ChildProcessError: pass
            hole(True)
        """,
        "threads": """
            def burn():
                while time.process_time() < 5: sum(range(10**6))
            threads = [threading.Thread(target=burn) for _ in range(4)]
            [t.start() for t in threads]; [t.join() for t in threads]
            hole(True)
        """,
        "in the kernel": """
            b = bytearray(1 << 20)
            zero = open('/dev/zero', 'rb', 0)
            while time.process_time() < 5: zero.readinto(b)
            hole(True)
        """,
    }
)

DRIBBLE = HEAD + dedent("""
    began = time.time()
    while time.time() - began < 30:
        time.sleep(0.049)
        for _ in range(10_000): pass
    hole(True)
""")
STOPPED = HEAD + dedent("""
    child = os.fork()
    if child == 0:
        time.sleep(0.1); os.kill(1, signal.SIGSTOP); time.sleep(60)
    signal.sigwait([signal.SIGUSR1])
    hole(True)
""")

# Each wants to look like one that was killed from outside, which would leave it out instead of failing it.
EXCUSES = _programs(
    {
        "leaves with the code of a kill": "os._exit(137)",
        "leaves with it by the kernel": "call(231, 0x589)",
        "kills itself": "os.kill(os.getpid(), signal.SIGKILL); print('no')",
        "kills its first process": "os.kill(1, signal.SIGKILL); os.kill(-1, signal.SIGKILL); print('no')",
        "lowers its limit": """
            resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
            while True: pass
        """,
        "a filter of its own": "libc.prctl(22, 1, 0, 0, 0); os.getpid(); open('/scratch/x', 'w'); print('no')",
        "is traced to death": """
            child = os.fork()
            if child == 0:
                done = call(101, 0x4206, 1, 0, 0x00100000)
                os._exit(0)
            os.waitpid(child, 0); time.sleep(0.2); print('no')
        """,
    }
)
