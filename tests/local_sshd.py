"""A real sshd on this machine for tests of the ssh launcher: own port, keys and config in a temporary folder."""

import getpass
import os
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from rank_jobs import free_port

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
"""


@contextmanager
def serving(folder):
    """The ssh command that reaches it. Skips the test, with the reason, where sshd is absent or refuses this user."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd, ssh or ssh-keygen is not installed (apt-get install openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it of root, where no service has made it
    port, before = free_port(), _own_files()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(CONFIG.format(port=port, folder=folder))
    options = [
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        f"UserKnownHostsFile={folder}/known_hosts",
        "LogLevel=ERROR",
    ]
    ssh = ["ssh", "-F", "none", "-p", f"{port}", "-i", f"{folder}/user_key", *(f"-o{option}" for option in options)]
    with open(folder / "sshd.log", "wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        _require_login([*ssh, f"{getpass.getuser()}@127.0.0.1", "true"], folder / "sshd.log")
        yield shlex.join(ssh)
    finally:
        server.terminate()
        server.wait()
    assert _own_files() == before, "the user's ~/.ssh was written to"


def _require_login(command, log):
    for _ in range(20):
        if subprocess.run(command, capture_output=True, timeout=20).returncode == 0:
            return
        time.sleep(0.1)
    pytest.skip(f"the local sshd refuses this user: {log.read_text().strip()[-300:]}")


def _own_files():
    home = Path.home() / ".ssh"
    return {path: path.stat().st_mtime_ns for path in [home, *home.glob("*")] if path.exists()}
