"""Images built and run for real without a Docker engine: by buildah, and by runc or crun with what Docker would enforce.

A base is made by debootstrap, of this machine's own Debian and this Python, and tagged with the name that the
dockerfiles ask for: no registry of images is needed. All of it is kept in `STORE` for the next time.
"""

import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from samples import ROOT

STORE = Path(os.environ.get("MLOPS_CONTAINERS", "/var/tmp/mlops-containers"))
MIRROR = "http://deb.debian.org/debian"
GIGABYTE = 10**9
DOCKERFILES = {name: ROOT / "dockerfiles" / f"{name}.dockerfile" for name in ("api", "train")}
BASE = re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILES["api"].read_text(encoding="utf-8"), re.MULTILINE)[0]
# What the images are told to be made of.
COMMIT = "0123456789" * 4
# crun takes no cgroups of both versions side by side.
RUNTIME = shutil.which("runc") or shutil.which("crun")
# Of the host, where pip finds what it is told to use.
_PIP = [Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"]


def missing() -> str:
    """Why nothing can be built and run here; empty where it can."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "needs Linux, and root: debootstrap, buildah and the runtime make devices, mounts and cgroups"
    if lacking := [name for name in ("buildah", "debootstrap", "dpkg") if shutil.which(name) is None]:
        return f"not installed: {', '.join(lacking)} (apt-get install buildah debootstrap)"
    if RUNTIME is None:
        return "neither runc nor crun is installed (apt-get install runc)"
    if _release().get("ID") != "debian":
        return "the base is made of this machine's own Debian, and it has none"
    return ""


def buildah(*words: str | Path, memory: int | None = None) -> str:
    """What a command of buildah prints; in at most so many bytes of memory, where it is given."""
    STORE.mkdir(parents=True, exist_ok=True)
    driver = "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text() else "vfs"
    common = ["--root", STORE / "root", "--runroot", STORE / "run", "--storage-driver", driver]
    command = [str(word) for word in ("buildah", *common, *words)]
    if memory is not None:
        command = ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(memory_group("build", memory)), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def build(
    context: Path, name: str, *arguments: str, tag: str | None = None, commit: str = COMMIT, memory: int | None = None
) -> str:
    """An image of one of our dockerfiles, from a context; layers that were built before are taken from the store."""
    make_base()
    tag = tag or f"localhost/mlops-{name}"
    started = time.monotonic()
    words = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--layers", "--tag", tag)
    file = context / "dockerfiles" / DOCKERFILES[name].name
    buildah(
        "bud",
        *words,
        *_pips_settings(),
        "--build-arg",
        f"COMMIT={commit}",
        *arguments,
        "--file",
        file,
        context,
        memory=memory,
    )
    peak = f", at most {peak_of('build') / 1e6:,.0f} MB with its files in memory" if memory else ""
    print(f"{tag}: built in {time.monotonic() - started:.0f} s{peak}, {size_of(tag) / 1e6:,.0f} MB")
    return tag


def is_built(name: str) -> bool:
    """Whether the store has an image of this name, of whatever code."""
    return f"localhost/mlops-{name}" in buildah("images", "--format", "{{.Name}}").split()


def size_of(image: str) -> int:
    """Bytes, unpacked, of all its layers: what `docker images` shows."""
    (told,) = json.loads(buildah("images", "--json", image))
    amount, unit = told["size"].split()
    return int(float(amount) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


def config_of(image: str) -> dict[str, Any]:
    """What Docker calls `.Config`: Entrypoint, Cmd, Env, User and the like."""
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


def layers(image: str, folder: Path) -> Iterator[tarfile.TarFile]:
    """Every layer of an image, as it would be pushed."""
    buildah("push", "--disable-compression", image, f"dir:{folder}")
    manifest = json.loads((folder / "manifest.json").read_text())
    for layer in manifest["layers"]:
        with tarfile.open(folder / layer["digest"].removeprefix("sha256:")) as tar:
            yield tar


def make_base() -> None:
    """The image that the dockerfiles start from: this Debian, this Python, its pip, and nothing else."""
    full = f"docker.io/library/{BASE}"
    if full in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    folder = STORE / "base"
    shutil.rmtree(folder, ignore_errors=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = Path(sys.base_prefix)
    include = ",".join(["ca-certificates", *_packages_of(prefix / "lib" / python / "lib-dynload")])
    suite = _release()["VERSION_CODENAME"]
    command = ["debootstrap", "--variant=minbase", f"--include={include}", suite, str(folder), MIRROR]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    for left in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(folder / left)
        (folder / left).mkdir()

    def unneeded(where: str, names: list[str]) -> set[str]:
        heavy = {"site-packages", "test", "tests", "idlelib", "tkinter", "__pycache__"}
        return {name for name in names if name in heavy or name.startswith("config-")}

    local = folder / "usr/local"
    shutil.copytree(prefix / "lib" / python, local / "lib" / python, ignore=unneeded, symlinks=True)
    packages = Path("lib") / python / "site-packages"
    for path in (prefix / packages).glob("pip*"):
        shutil.copytree(path, local / packages / path.name)
    for path in (prefix / "lib").glob("libpython3*.so*"):
        shutil.copy2(path, local / "lib", follow_symlinks=False)
    shutil.copy2(prefix / "bin" / python, local / "bin")
    for link in ("python3", "python"):
        (local / "bin" / link).symlink_to(python)
    if strip := shutil.which("strip"):
        # As the Python of the base's makers is.
        found = [path for path in local.rglob("*") if ".so" in path.name or path.parent.name == "bin"]
        subprocess.run([strip, "--strip-unneeded", *(path for path in found if path.is_file())], check=False)
    subprocess.run(["chroot", folder, "ldconfig"], check=True)
    container = buildah("from", "scratch").strip()
    buildah("copy", "--quiet", container, folder, "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "--cmd", "python", container)
    buildah("commit", "--rm", "--quiet", container, full)
    shutil.rmtree(folder)


def memory_group(name: str, limit: int) -> Path:
    """A cgroup of ours in which processes get at most so many bytes, files that they have read or written included."""
    root = _memory_root()
    group = root / f"mlops-{name}"
    if group.exists():
        group.rmdir()
    group.mkdir()
    if (group / "memory.limit_in_bytes").exists():
        (group / "memory.limit_in_bytes").write_text(str(limit))
    else:
        (group / "memory.max").write_text(str(limit))
    return group


def peak_of(name: str) -> int:
    """The most bytes that were in use in a cgroup of ours."""
    group = _memory_root() / f"mlops-{name}"
    file = group / "memory.max_usage_in_bytes"
    return int((file if file.exists() else group / "memory.peak").read_text())


@dataclass
class Container:
    """An image that runs as in production: its user, no capabilities, a read-only root, a limit of memory.

    `words` follow the image's name. On the host's network, unless `alone`. `mounts` are (source, target, writable).
    """

    image: str
    words: Sequence[str] = ()
    memory: int = GIGABYTE
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[tuple[Path, str, bool]] = ()
    user: int | None = None
    alone: bool = False
    entrypoint: Sequence[str] | None = None

    def __enter__(self) -> Self:
        self.id = f"mlops-{uuid.uuid4().hex[:8]}"
        self.folder = STORE / "bundles" / self.id
        self.folder.mkdir(parents=True)
        self._container = buildah("from", "--pull-never", self.image).strip()
        root = buildah("mount", self._container).strip()
        (self.folder / "config.json").write_text(json.dumps(self._spec(root)))
        self.out, self.err = self.folder / "out", self.folder / "err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                self._runtime("run", "--bundle", self.folder, self.id), stdout=out, stderr=err
            )
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(self._runtime("delete", "--force", self.id), capture_output=True, check=False)
        self.process.wait(30)
        buildah("rm", self._container)
        shutil.rmtree(self.folder)

    def wait(self, seconds: float = 600) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def kill(self, number: str) -> None:
        """Send a signal, as `docker stop` and clusters do."""
        subprocess.run(self._runtime("kill", self.id, number), check=True)

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What `docker exec` would do."""
        return subprocess.run(self._runtime("exec", self.id, *words), capture_output=True, text=True, check=False)

    @property
    def pid(self) -> int:
        """Of its first process, as the host counts."""
        state = subprocess.run(self._runtime("state", self.id), capture_output=True, text=True, check=True)
        return int(json.loads(state.stdout)["pid"])

    @property
    def used(self) -> dict[str, int]:
        """Bytes of memory: of its processes now (`rss`), and at most, with files that they have read (`peak`)."""
        group = _memory_root() / self.id
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        peak = group / "memory.max_usage_in_bytes"
        return {
            "rss": int(told.get("total_rss") or told["anon"]),
            "peak": int((peak if peak.exists() else group / "memory.peak").read_text()),
        }

    def _runtime(self, *words: str | Path) -> list[str]:
        assert RUNTIME is not None
        return [RUNTIME, "--root", str(STORE / "runtime"), *map(str, words)]

    def _spec(self, root: str) -> dict[str, Any]:
        told = config_of(self.image)
        environment = dict(line.split("=", 1) for line in told["Env"]) | dict(self.environment)
        user, group = map(int, told["User"].split(":"))
        start = self.entrypoint if self.entrypoint is not None else told["Entrypoint"]
        words = self.words or (told.get("Cmd") or [] if self.entrypoint is None else [])

        def tmpfs(where: str, *options: str) -> dict[str, Any]:
            return {"destination": where, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", *options]}

        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            tmpfs("/dev", "strictatime", "mode=755", "size=65536k"),
            tmpfs("/dev/shm", "nodev", "noexec", "mode=1777", "size=65536k"),
            tmpfs("/tmp", "nodev", "noexec", "mode=1777", "size=268435456"),
            *(
                {"destination": to, "type": "bind", "source": str(path), "options": ["rbind", "rw" if write else "ro"]}
                for path, to, write in self.mounts
            ),
        ]
        if not self.alone:
            resolver = {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf"}
            mounts.append({**resolver, "options": ["bind", "ro"]})
        return {
            "ociVersion": "1.0.2",
            "root": {"path": root, "readonly": True},
            "hostname": "container",
            "process": {
                "user": {
                    "uid": user if self.user is None else self.user,
                    "gid": group if self.user is None else self.user,
                },
                "args": [*start, *words],
                "env": [f"{name}={value}" for name, value in environment.items()],
                "cwd": told["WorkingDir"],
                "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
                "noNewPrivileges": True,
            },
            "mounts": mounts,
            "linux": {
                "cgroupsPath": f"/{self.id}",
                "namespaces": [
                    {"type": kind} for kind in ("pid", "ipc", "uts", "mount", *(["network"] if self.alone else []))
                ],
                "resources": {"memory": {"limit": self.memory, "swap": self.memory}, "pids": {"limit": 512}},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }


def _memory_root() -> Path:
    old = Path("/sys/fs/cgroup/memory")
    return old if old.is_dir() else Path("/sys/fs/cgroup")


def _release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {name: value.strip('"') for name, value in (line.split("=", 1) for line in lines if "=" in line)}


def _packages_of(extensions: Path) -> list[str]:
    """The Debian packages with the libraries that Python's own extension modules load, but for its windows."""
    files = [path for path in extensions.glob("*.so") if "tkinter" not in path.name]
    told = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False).stdout
    names = sorted(set(re.findall(r"(lib\S+) => /", told)))
    # By name, not by path: /lib is a link to /usr/lib, and dpkg knows only one of both.
    owners = subprocess.run(
        ["dpkg", "-S", *(f"*/{name}" for name in names)], capture_output=True, text=True, check=False
    ).stdout
    found = {line.split(":")[0] for line in owners.splitlines() if ": /" in line and "diversion" not in line}
    return sorted(package for package in found if package.startswith("lib") and not package.endswith("-dev"))


def _pips_settings() -> list[str]:
    """pip's settings on this machine and what they name, as volumes of a build: an index may be a folder here."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(path for path in _PIP if path.is_file())
    volumes = ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    text = "\n".join(value for section in settings.sections() for value in settings[section].values())
    for found in sorted(set(re.findall(r"(?:file://)?(/[\w./-]+)", text))):
        path = Path(found)
        path = path.parent if path.name == "simple" else path
        if path.is_dir():
            volumes += ["--volume", f"{path}:{path}:ro"]
    file = STORE / "pip.conf"
    with file.open("w") as written:
        settings.write(written)
    return [*volumes, "--volume", f"{file}:/etc/pip.conf:ro"]
