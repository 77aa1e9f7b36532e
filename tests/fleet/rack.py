"""Machines of Linux namespaces on this computer, wired to a switch that leads nowhere else.

A machine has network, processes, mounts, name and homes of its own and a disk that is this computer's until it writes;
its first process is sshd. Needs root. Whatever is started here ends with the process that started it, even where that
is killed: there is no other process to find, no network namespace with a name, and no mount outside the machines.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SCRIPT = Path(__file__).with_name("machine.sh")
TEMPORARY = Path("/tmp")
PREFIX = "pairpbt-fleet"
PROGRAMS = ("/usr/sbin/sshd", "rsync", "ip", "nsenter", "unshare", "setpriv", "ssh-keygen")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
DYING = ("setpriv", "--pdeathsig", "KILL")
"""Begins a command line whose process dies with the one that started it."""
BOOT_SECONDS = 60.0


def missing() -> str | None:
    """Why there can be no machines here; None: there can."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "machines of namespaces need root on Linux"
    lacking = [Path(name).name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if lacking:
        return f"machines need {', '.join(lacking)} (Debian: openssh-server rsync iproute2 util-linux)"
    try_out = "mount -t tmpfs try /tmp && ip link add try type bridge"
    tried = subprocess.run(["unshare", *SPACES, "--fork", "sh", "-c", try_out], capture_output=True, text=True)
    if tried.returncode:  # such as in a container
        return f"root may not make namespaces, mounts or bridges here: {' '.join(tried.stderr.split())}"
    return None


@dataclass
class Machine:
    """One machine of a rack."""

    rack: "Rack"
    name: str
    address: str
    """Address and length of the network's prefix, e.g. ``10.77.0.11/24``."""
    user: str
    """Who may log in by SSH; gets a home."""
    port: int
    """Number at the switch."""
    home_script: str = ""
    """Shell, run as the user in the new home."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every login by SSH."""
    process: subprocess.Popen[bytes] | None = None
    """Its outermost process; ends with it."""

    @property
    def log(self) -> Path:
        """What its first process wrote."""
        return self.rack.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """Whether it has power."""
        return self.process is not None and self.process.poll() is None

    def boot(self) -> None:
        """Power on, with the disk as it was left; returns when SSH answers.

        Raises:
            RuntimeError: it did not come up, with its log.
        """
        self.log.write_bytes(b"")
        variables = {
            "NAME": self.name,
            "PORT": str(self.port),
            "ADDRESS": self.address,
            "USER_NAME": self.user,
            "HOME_SCRIPT": self.home_script,
            "ENVIRONMENT": " ".join(f"{name}={value}" for name, value in self.environment.items()),
        }
        self.process = self.rack.start(self.name, ["plug"], self.log, within=True, **variables)
        deadline = time.monotonic() + BOOT_SECONDS
        while b"Server listening" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not boot:\n{self.log.read_text()}")
            time.sleep(0.02)

    def power_off(self) -> None:
        """Pull the plug: whoever talks to it hears nothing more, not even that a connection is closed."""
        self.rack.in_switch("ip", "link", "del", f"port{self.port}")
        self.end()

    def end(self) -> None:
        """End all its processes, as a machine does that is told to: its connections are closed, its card is gone."""
        if self.running:
            assert self.process is not None
            inside = psutil.Process(self.process.pid).children()
            self.process.kill()
            self.process.wait()
            psutil.wait_procs(inside, timeout=BOOT_SECONDS)  # the first one goes last

    def command(self, *arguments: str, cwd: str = "/", **variables: str) -> list[str]:
        """A command line for this computer that runs ``arguments`` as root in the machine; they end when it does."""
        assert self.process is not None
        (first,) = psutil.Process(self.process.pid).children()
        fixed = {"HOME": "/root", "TERM": "xterm", "LANG": "C.UTF-8", "PATH": PATH}
        settings = [f"{name}={value}" for name, value in {**fixed, **variables}.items()]
        inside = [*SPACES, "--root", f"--wdns={cwd}"]
        return ["nsenter", "-t", str(first.pid), *inside, *DYING, "env", "-i", *settings, *arguments]


class Rack:
    """A switch and the machines at it, in a folder of their own; a context that removes all of them."""

    def __init__(self, visible: Sequence[Path], mounted: str) -> None:
        """Make the switch; machines come by ``add``.

        Args:
            visible: Folders that machines can read at the same path, beside what lies on this computer's root disk.
            mounted: Where machines see the folder ``shared``.
        """
        remove_leftovers()
        self.folder = _own_folder()
        self.machines: dict[str, Machine] = {}
        self.shared = self.folder / "shared"
        self._ports = itertools.count()
        self._variables = {
            "FOLDER": str(self.folder),
            "VISIBLE": "\n".join(map(str, visible)),
            "SHARED": str(self.shared),
            "MOUNTED": mounted,
        }
        for name in ("disks", "shared", "pids"):
            (self.folder / name).mkdir()
        self.shared.chmod(0o1777)  # users have other numbers than here
        self.key = self.new_key("key")
        self.new_key("host_key")
        self._switch = self.start("switch", ["switch"], self.folder / "switch.log")
        while "ready" not in (self.folder / "switch.log").read_text():
            if self._switch.poll() is not None:
                raise RuntimeError(f"no switch:\n{(self.folder / 'switch.log').read_text()}")
            time.sleep(0.02)

    def __enter__(self) -> "Rack":
        return self

    def __exit__(self, *error: object) -> None:
        for machine in self.machines.values():
            machine.end()
        self._switch.kill()
        self._switch.wait()
        shutil.rmtree(self.folder)

    def new_key(self, name: str) -> Path:
        """A key pair for SSH; the public half has the ending ``.pub``."""
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", path], check=True)
        return path

    def add(
        self, name: str, address: str, user: str, public_key: str | None = None, home_script: str = "", **variables: str
    ) -> Machine:
        """A new machine, booted."""
        (self.folder / f"{name}.pub").write_text(public_key or self.key.with_suffix(".pub").read_text())
        machine = Machine(self, name, address, user, next(self._ports), home_script, variables)
        self.machines[name] = machine
        machine.boot()
        return machine

    def in_switch(self, *arguments: str) -> None:
        """Run a command in the network of the switch."""
        subprocess.run(["nsenter", "-t", str(self._switch.pid), "--net", *arguments], check=True)

    def start(
        self, name: str, arguments: list[str], log: Path, within: bool = False, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start ``machine.sh`` in namespaces of its own, or within those of the switch; it ends with this thread."""
        if within:
            spaces = ["nsenter", "-t", str(self._switch.pid), "--net", "--mount"]
        else:
            spaces = ["unshare", "--net", "--mount", "--propagation", "private"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*DYING, *spaces, "bash", str(SCRIPT), *arguments, str(self.folder), name],
                env={"PATH": PATH, **self._variables, **variables},
                stdin=subprocess.DEVNULL if within else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (self.folder / "pids" / str(process.pid)).touch()
        return process


def _own_folder() -> Path:
    """A new folder whose name tells the process it belongs to."""
    me = psutil.Process()
    for number in itertools.count():
        folder = TEMPORARY / f"{PREFIX}.{me.pid}.{me.create_time():.2f}.{number}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o711)
            return folder
    raise AssertionError


def remove_leftovers() -> None:
    """Remove what racks of killed processes left; those of living ones are let alone."""
    for folder in TEMPORARY.glob(f"{PREFIX}.*"):
        owner, started = folder.name.removeprefix(f"{PREFIX}.").split(".", 1)
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"{psutil.Process(int(owner)).create_time():.2f}" == started.rpartition(".")[0]:
                continue
        for process in _started_for(folder):
            process.send_signal(signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder)


def _started_for(folder: Path) -> Iterator[psutil.Process]:
    """The processes that a rack recorded in its folder and that are still what they were."""
    for record in (folder / "pids").glob("*"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(record.name))
            if str(folder) in process.cmdline():
                yield process
