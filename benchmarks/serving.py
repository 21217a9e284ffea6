"""How many requests a second `mlops serve` answers, beside other servers of the same network, in one run.

python benchmarks/serving.py --model model.onnx --checkpoint best_model.pth [--root PATH]

Two cores, two workers each, one server running at a time, in turns. The clients (rivals/load.py) share these two
cores; what they cost is said. Each picture is checked first: every server must name the class that onnxruntime names.

The rivals are in rivals/: forty plain lines of FastAPI with onnxruntime or torch, LitServe and BentoML. `uv` makes the
latter's own environments on the first run. Whatever could be turned in a rival's favour by a line is: onnxruntime with
one thread a worker in all of them, no log of requests in the plain ones. `-tuned` goes further than their defaults do.
Ours has its defaults, its log of requests among them.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
from PIL import Image
from rivals import load

RIVALS = Path(__file__).parent / "rivals"
BIN = Path(sys.executable).parent
WORKERS = 2
# From the sides of the pictures, in pixels, to how many of them.
SIDES, PICTURES = (40, 60), 300


@dataclass(frozen=True)
class Server:
    """How one is started, and how its answers name the class. `{port}` and `{admin}` stand for free ports."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)  # name in the table -> path
    name_class: Callable[[Any], str] = lambda answer: str(answer["class"])


def servers(model: Path, checkpoint: Path | None) -> dict[str, Server]:
    """All that can be measured, in the order of a round."""
    plain = [str(BIN / "uvicorn"), "--app-dir", str(RIVALS), "--workers", str(WORKERS), "--no-access-log"]
    plain += ["--loop", "uvloop", "--http", "httptools", "--port", "{port}"]
    onnx = {"MODEL": str(model), "PORT": "{port}", "WORKERS": str(WORKERS)}
    found = {
        "ours": Server(
            [
                str(BIN / "mlops"),
                "serve",
                str(model),
                *f"--workers {WORKERS} --port {{port}} --admin-port {{admin}}".split(),
            ],
            {"MLOPS_SERVE_NOOP": "1"},
            {"ours": "/predict", "no-op": "/noop"},
            lambda answer: str(answer["predictions"][0]["class"]),
        ),
        "plain-onnx": Server([*plain, "plain_onnx:app"], onnx),
    }
    if checkpoint is not None:
        torch = {"MODEL": str(checkpoint)}
        found["plain-torch"] = Server([*plain, "plain_torch:app"], torch)
        found["plain-torch-1"] = Server([*plain, "plain_torch:app"], {**torch, "TORCH_THREADS": "1"})
    for name, file in (("litserve", "litserve_server.py"), ("bentoml", "bentoml_service.py")):
        command = ["{python}", str(RIVALS / file)]
        found[name] = Server(command, onnx)
        found[f"{name}-tuned"] = Server(command, {**onnx, "TUNED": "1"})
    return found


def say(text: str) -> None:
    """A line of progress: the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def own_python(script: Path) -> str:
    """The interpreter of a script's own environment, which is made if need be. The same Python as ours."""
    if (uv := shutil.which("uv")) is None:
        raise SystemExit("uv is not installed; or leave out LitServe and BentoML by --only")
    for command in (["sync", "--quiet", "--python", sys.executable], ["python", "find"]):
        done = subprocess.run([uv, *command, "--script", str(script)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
    return done.stdout.strip()


def pictures(root: str | None, folder: Path) -> list[Path]:
    """PNG files of about 50 px: from GTSRB (a folder, .tar or .zip), or generated."""
    if root is None:
        for number in range(PICTURES):
            random = np.random.default_rng(number)
            small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            width, height = (int(side) for side in random.integers(*SIDES, 2, endpoint=True))
            smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
            noisy = (smooth + random.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{number:03}.png")
        return sorted(folder.glob("*.png"))
    from mlops.data.tree import open_tree

    tree, least, most = open_tree(Path(root), "--root"), *SIDES
    names = [name for name in tree.names if name.startswith("Train/") and name.endswith(".png")]
    random = np.random.default_rng(0)
    for row in random.permutation(len(names)):
        content = tree.read(names[row])
        with Image.open(io.BytesIO(content)) as image:
            if least <= min(image.size) and max(image.size) <= most:
                (folder / Path(names[row]).name).write_bytes(content)
        if len(found := list(folder.glob("*.png"))) == PICTURES:
            break
    return sorted(found)


class Running:
    """A server that answers, with all its processes."""

    def __init__(self, name: str, server: Server, log: Path) -> None:
        self.name, self.server, self.log = name, server, log
        self.port, self.admin = free_port(), free_port()
        ports = {"{port}": str(self.port), "{admin}": str(self.admin)}
        environment = {key: ports.get(value, value) for key, value in server.environment.items()}
        command = [ports.get(part, part) for part in server.command]
        with log.open("wb") as out:
            self.process = psutil.Popen(
                command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent
            )
        self.started = time.perf_counter()

    def tree(self) -> list[psutil.Process]:
        """The started process and all below it."""
        return [self.process, *self.process.children(recursive=True)]

    def wait(self, content: bytes) -> float:
        """Seconds from its start to the first answer of status 200 to a request.

        Raises:
            SystemExit: it ended, or did not answer for three minutes.
        """
        while time.perf_counter() - self.started < 180:
            with contextlib.suppress(OSError, ValueError):
                if load.ask(self.port, content)[0] == 200:
                    return time.perf_counter() - self.started
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        raise SystemExit(f"{self.name} does not answer: {self.log.read_text(errors='replace')[-3000:]}")

    def settle(self) -> float:
        """Wait until all its workers have started, and say what share of a core it takes when idle."""
        idle = float("inf")
        for _ in range(20):
            before, last = self.cpu(), idle
            time.sleep(1)
            idle = self.cpu() - before
            # Some poll when idle, but evenly.
            if idle < 0.05 or abs(idle - last) < 0.03:
                break
        return idle

    def cpus(self) -> dict[int, float]:
        """Processor seconds of each of its processes so far."""
        found = {}
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
        return found

    def cpu(self) -> float:
        """Processor seconds of all its processes so far."""
        return sum(self.cpus().values())

    def memory(self) -> dict[str, float]:
        """MB of its largest worker, with and without its part of what is shared, and of all processes together."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                one = process.memory_full_info()
                found.append((process.pid, one.rss / 1e6, getattr(one, "pss", one.uss) / 1e6))
        workers = [one for one in found if one[0] != self.process.pid] or found
        _, rss, pss = max(workers, key=lambda one: one[1])
        return {"worker_rss": rss, "worker_pss": pss, "all_pss": sum(one[2] for one in found)}

    def stop(self) -> None:
        """End all its processes."""
        tree = self.tree() if self.process.is_running() else []
        with contextlib.suppress(psutil.Error):
            self.process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=15)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=5)


@contextlib.contextmanager
def running(name: str, server: Server, folder: Path) -> Iterator[Running]:
    """A server that is stopped again, whatever happens."""
    one = Running(name, server, folder / f"{name}.log")
    try:
        yield one
    finally:
        one.stop()


def send(one: Running, path: str, folder: Path, clients: int, seconds: float) -> dict[str, Any]:
    """What rivals/load.py measured, and what the server's processes took meanwhile."""
    before = one.cpus()
    command = [sys.executable, str(RIVALS / "load.py"), str(one.port), path, str(folder)]
    done = subprocess.run(
        [*command, "--clients", str(clients), "--seconds", str(seconds)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{one.name}: {done.stderr}{one.log.read_text(errors='replace')[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    took = sorted((seconds - before.get(pid, 0) for pid, seconds in one.cpus().items()), reverse=True)
    answers = sum(found["statuses"].values())
    good = found["statuses"].get("200", 0)
    return {
        **found,
        "rate": good / found["seconds"],
        "errors": answers - good,
        "load_us": 1e6 * found["cpu"] / max(answers, 1),
        "server_us": 1e6 * sum(took) / max(answers, 1),
        "server_cpus": took,  # of each process: unlike where the connections fell on the workers unevenly
    }


def agreement(one: Running, path: str, files: Sequence[Path], expected: Sequence[str]) -> float:
    """The share of pictures whose class is the expected one.

    Raises:
        SystemExit: fewer than 99 %; resizing by other libraries may turn a picture or two.
    """
    same = 0
    for file, name in zip(files, expected, strict=True):
        status, body = load.ask(one.port, load.request(path, file.name, file.read_bytes()))
        if status != 200:
            raise SystemExit(f"{one.name}: {file.name}: status {status}: {body[:500]!r}")
        same += one.server.name_class(json.loads(body)) == name
    share = same / len(files)
    if share < 0.99:
        raise SystemExit(f"{one.name}: only {share:.1%} of the pictures get the class that onnxruntime gives")
    return share


def classes_of(model: Path, files: Sequence[Path]) -> list[str]:
    """What onnxruntime itself says of each picture."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    found = []
    for file in files:
        with Image.open(file) as image:
            (probabilities,) = session.run(["probabilities"], {"images": np.asarray(image.convert("RGB"))[None]})
        found.append(names[int(probabilities[0].argmax())])
    return found


def measure_one(
    one: Running, folder: Path, expected: Sequence[str], asked: argparse.Namespace, *, check: bool
) -> dict[str, Any]:
    """All that is measured of one server in one round."""
    files = sorted(folder.glob("*.png"))
    paths = one.server.paths or {one.name: "/predict"}
    first = one.wait(load.request(next(iter(paths.values())), files[0].name, files[0].read_bytes()))
    idle = one.settle()
    found: dict[str, Any] = {"first_answer": first, "idle": idle, "runs": {}}
    if check:
        found["agreement"] = agreement(one, next(iter(paths.values())), files, expected)
    for path in paths.values():
        send(one, path, folder, max(asked.clients), asked.warm_up)
    for clients in asked.clients:
        for name, path in paths.items():
            run = send(one, path, folder, clients, asked.seconds)
            found["runs"].setdefault(name, {})[clients] = run
            say(f"  {name:<14} {_clients(clients):>10}: {run['rate']:>7,.0f} requests/s, p50 {run['p50']:.1f}, "
                f"p99 {run['p99']:.1f} ms, {run['errors']} errors; a request cost the server "
                f"{run['server_us']:.0f} us, the clients {run['load_us']:.0f} us")  # fmt: skip
    found["memory"] = one.memory()
    return found


def overload(server: Server, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """200 clients against a queue of 8 a worker, and how long /health takes on connections of its own meanwhile."""
    config = folder / "serve.yaml"
    config.write_text("limits: {queue: 8}\n")
    told = replace(server, command=[*server.command, "--config", str(config)])
    probe = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    times, statuses, over = list[float](), Counter[int](), threading.Event()

    with running("overload", told, folder) as one:
        file = next(folder.glob("*.png"))
        one.wait(load.request("/predict", file.name, file.read_bytes()))
        one.settle()

        def watch() -> None:
            while not over.wait(0.1):
                started = time.perf_counter()
                try:
                    statuses[load.ask(one.port, probe)[0]] += 1
                except (OSError, ValueError):
                    statuses[0] += 1
                times.append(time.perf_counter() - started)

        watcher = threading.Thread(target=watch)
        watcher.start()
        found = send(one, "/predict", folder, 200, asked.overload_seconds)
        over.set()
        watcher.join()
    found |= {"health_worst": max(times), "health_statuses": dict(statuses), "health_polls": len(times)}
    say(f"  overload: {found['statuses']}, {found['rate']:,.0f} answered with 200 a second; /health "
        f"{dict(statuses)}, {1000 * max(times):.0f} ms at worst")  # fmt: skip
    return found


def cold_start(server: Server, folder: Path, repeats: int) -> list[float]:
    """Seconds from starting the process to the first 200 of /health/ready."""
    probe = b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    found = []
    for _ in range(repeats):
        with running("start", server, folder) as one:
            found.append(one.wait(probe))
            one.settle()
    say(f"  start to ready: {', '.join(f'{seconds:.2f}' for seconds in found)} s")
    return found


@dataclass(frozen=True)
class Verdict:
    """One promise, what was found, and whether it is kept; None where nothing was promised."""

    what: str
    reach: str
    found: str
    kept: bool | None


def _clients(number: int) -> str:
    return f"{number} client{'s' * (number > 1)}"


def middle(rounds: Sequence[Mapping[str, Any]], name: str, clients: int, key: str) -> float:
    """The median over the rounds."""
    return float(statistics.median(one["runs"][name][clients][key] for one in rounds))


def compare(
    results: Mapping[str, Sequence[Mapping[str, Any]]], rivals: Sequence[str], clients: int, least: float | None, *,
    p99: bool,
) -> Verdict | None:  # fmt: skip
    """Ours against the best of some rivals, round by round."""
    rivals = [name for name in rivals if name in results]
    if not rivals:
        return None
    ratios = []
    for number, own in enumerate(results["ours"]):
        best = max(results[name][number]["runs"][name][clients]["rate"] for name in rivals)
        ratios.append(own["runs"]["ours"][clients]["rate"] / best)
    ratio = statistics.median(ratios)
    own_p99 = middle(results["ours"], "ours", clients, "p99")
    rival_p99 = min(middle(results[name], name, clients, "p99") for name in rivals)
    kept = None if least is None else ratio >= least and (own_p99 <= rival_p99 or not p99)
    return Verdict(
        f"against {' and '.join(rivals)}, {_clients(clients)}",
        "-" if least is None else f"{least} times{', p99 no worse' if p99 else ''}",
        f"{ratio:.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); p99 {own_p99:.1f} ms, theirs {rival_p99:.1f} ms",
        kept,
    )


def judge(
    results: Mapping[str, Sequence[Mapping[str, Any]]], clients: Sequence[int], more: Mapping[str, Any]
) -> list[Verdict]:
    """All that is promised of `mlops serve`, as far as it was measured."""
    found: list[Verdict | None] = []
    if own := results.get("ours"):
        promises: list[tuple[list[str], float | None, bool]] = [
            (["plain-torch", "plain-torch-1"], 1.5, False),
            (["plain-onnx"], 1.4, True),
            (["litserve", "bentoml"], 1.5, True),
            (["litserve-tuned", "bentoml-tuned"], None, True),
        ]
        for rivals, least, no_slower in promises:
            found += [compare(results, rivals, number, least, p99=no_slower) for number in clients]
        for number in clients:
            shares = [one["runs"]["ours"][number]["rate"] / one["runs"]["no-op"][number]["rate"] for one in own]
            share = statistics.median(shares)
            found.append(Verdict(f"against the no-op route, {_clients(number)}", "65 %",
                                 f"{share:.0%} ({min(shares):.0%} to {max(shares):.0%})", share >= 0.65))  # fmt: skip
        if 50 in clients:
            p99 = middle(own, "ours", 50, "p99")
            found.append(Verdict("p99 with 50 clients", "50 ms at most", f"{p99:.1f} ms", p99 <= 50))
        errors = sum(run["errors"] for one in own for run in one["runs"]["ours"].values())
        found.append(Verdict("answers other than 200", "none", str(errors), errors == 0))
        memory = {key: max(one["memory"][key] for one in own) for key in own[0]["memory"]}
        found.append(Verdict("memory of a worker", "under 150 MB",
                             f"RSS {memory['worker_rss']:.0f}, PSS {memory['worker_pss']:.0f} MB; all processes "
                             f"together {memory['all_pss']:.0f} MB", memory["worker_rss"] < 150))  # fmt: skip
    if over := more.get("overload"):
        kept = set(over["statuses"]) <= {"200", "429"} and set(over["health_statuses"]) == {200}
        found.append(Verdict("200 clients, queue of 8", "only 200 and 429; /health under 1 s",
                             f"{over['statuses']}; /health {1000 * over['health_worst']:.0f} ms at worst",
                             kept and over["health_worst"] < 1))  # fmt: skip
    if starts := more.get("start"):
        found.append(Verdict("start to ready", "under 2 s", f"{statistics.median(starts):.2f} s "
                             f"({min(starts):.2f} to {max(starts):.2f})", statistics.median(starts) < 2))  # fmt: skip
    return [one for one in found if one is not None]


def show(results: Mapping[str, Sequence[Mapping[str, Any]]], verdicts: Sequence[Verdict], told: str) -> None:
    """Print all tables."""
    print(told)
    print(f"\n{'':<14} {'clients':>7} {'requests/s (spread)':>24} {'p50':>7} {'p95':>7} {'p99':>7} {'errors':>7} "
          f"{'server us':>10} {'load us':>8}")  # fmt: skip
    for rounds in results.values():
        for name, by_clients in rounds[0]["runs"].items():
            for clients in by_clients:
                rates = [one["runs"][name][clients]["rate"] for one in rounds]
                of = {key: middle(rounds, name, clients, key) for key in ("p50", "p95", "p99", "server_us", "load_us")}
                errors = sum(one["runs"][name][clients]["errors"] for one in rounds)
                spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"
                print(f"{name:<14} {clients:>7} {spread:>24} {of['p50']:>7.1f} {of['p95']:>7.1f} {of['p99']:>7.1f} "
                      f"{errors:>7} {of['server_us']:>10.0f} {of['load_us']:>8.0f}")  # fmt: skip
    print(
        f"\n{'':<14} {'worker RSS':>11} {'PSS':>7} {'all PSS':>8} {'first answer':>13} {'idle':>6} {'same class':>11}"
    )
    for name, rounds in results.items():
        rss, pss, together = (max(one["memory"][key] for one in rounds) for key in rounds[0]["memory"])
        first = statistics.median(one["first_answer"] for one in rounds)
        idle = statistics.median(one["idle"] for one in rounds)
        print(f"{name:<14} {rss:>8.0f} MB {pss:>4.0f} MB {together:>5.0f} MB {first:>11.2f} s {idle:>6.1%} "
              f"{rounds[0]['agreement']:>11.1%}")  # fmt: skip
    if verdicts:
        widths = [max(len(str(getattr(one, key))) for one in verdicts) for key in ("what", "reach", "found")]
        print()
    for one in verdicts:
        kept = {True: "reached", False: "NOT reached", None: ""}[one.kept]
        print(f"{one.what:<{widths[0]}}  {one.reach:<{widths[1]}}  {one.found:<{widths[2]}}  {kept}".rstrip())


def measure(known: Mapping[str, Server], only: list[str], folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all servers by name, and "overload" and "start". A server that fails is taken out of `only`."""
    expected = classes_of(asked.model, sorted(folder.glob("*.png")))
    found: dict[str, Any] = {"servers": {}}
    for number in range(asked.rounds):
        say(f"round {number + 1} of {asked.rounds}")
        for title in [title for title in known if title in only]:
            try:
                with running(title, known[title], folder) as one:
                    row = measure_one(one, folder, expected, asked, check=number == 0)
                found["servers"].setdefault(title, []).append(row)
            except SystemExit as error:
                # The other servers' rounds are not lost for it.
                say(f"left out from here on: {error}")
                only.remove(title)
                found["servers"].pop(title, None)
    if "overload" in only:
        found["overload"] = overload(known["ours"], folder, asked)
    if "start" in only:
        found["start"] = cold_start(known["ours"], folder, asked.starts)
    return found


def describe(files: Sequence[Path], asked: argparse.Namespace) -> str:
    """What was measured on what, in a sentence."""
    busy = psutil.cpu_percent(interval=2)
    size = statistics.fmean(file.stat().st_size for file in files)
    return (
        f"{platform.machine()}, 2 of {os.cpu_count()} cores, Python {platform.python_version()}, onnxruntime "
        f"{version('onnxruntime')}; {WORKERS} workers each; {len(files)} {'GTSRB' if asked.root else 'generated'} PNG "
        f"files of {size:,.0f} bytes; medians of {asked.rounds} rounds, {asked.seconds:g} s each; before, other "
        f"programs took {busy:.0f} % of the machine"
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model.onnx"))
    parser.add_argument("--checkpoint", type=Path, help="the same network, for the plain torch servers")
    parser.add_argument("--root", help="GTSRB: a folder, .tar or .zip; generated pictures when left out")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 10, 50])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=2)
    parser.add_argument("--overload-seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--only", help="names with commas between: ours, plain-onnx, ..., overload, start")
    parser.add_argument("--json", action="store_true", help="all single measurements instead of the tables")
    asked = parser.parse_args()

    known = servers(asked.model.resolve(), asked.checkpoint.resolve() if asked.checkpoint else None)
    only = asked.only.split(",") if asked.only else [*known, "overload", "start"]
    if unknown := [name for name in only if name not in (*known, "overload", "start")]:
        raise SystemExit(f"--only: {', '.join(unknown)}: known: {', '.join(known)}, overload, start")
    for title, server in known.items():
        if title in only and server.command[0] == "{python}":
            known[title] = replace(server, command=[own_python(Path(server.command[1])), *server.command[1:]])

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # and all that is started from here
    wanted = list(only)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = describe(pictures(asked.root, folder), asked)
        say(told)
        found = measure(known, only, folder, asked)
    verdicts = judge(found["servers"], asked.clients, found)
    if asked.json:
        print(json.dumps({"about": told, **found, "verdicts": [vars(one) for one in verdicts]}))
    else:
        show(found["servers"], verdicts, told)
    if lost := [name for name in wanted if name not in only]:
        raise SystemExit(f"not measured: {', '.join(lost)}")


if __name__ == "__main__":
    main()
