"""A W&B server in one process, for tests: it speaks enough of the HTTP that wandb 0.31 sends, and keeps what it was told.

`wandb` and `wandb-core` talk to it as to the real one (`WANDB_BASE_URL`). To answer one more GraphQL operation, add a
method of its name to `Server`: it takes the variables and returns what stands under `data`.
"""

import base64
import gzip
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

from integration.bucket import a_port

KEY = "k" * 40
USER = {"id": "user", "entity": "team", "username": "person", "email": "", "flags": "{}", "teams": {"edges": []}}


@dataclass
class Run:
    """What one run has sent."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    display_name: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `wandb-history.jsonl`."""
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False
    ended: bool = False
    upserts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history by `_step`: `wandb sync` sends what has arrived already once more, as further lines."""
        return list({row["_step"]: row for row in self.history}.values())

    @property
    def state(self) -> str:
        """As W&B shows it: a run that said it is preempting and then fails was preempted, and its sweep starts it again."""
        if not self.ended:
            return "preempting" if self.preempting else "running"
        if self.exit_codes[-1] == 0:
            return "finished"
        return "preempted" if self.preempting else "failed"


@dataclass
class Artifact:
    """A version of an artifact: the files that its manifest names."""

    type: str
    name: str
    run: str
    aliases: list[str]
    metadata: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Sweep:
    """A search over what `wandb sweep` has sent: a grid over lists of values, with the middle of each range."""

    name: str
    text: str
    """The file, as it arrived: YAML."""
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each parameter is set to, by the id of the run."""
    queue: list[str] = field(default_factory=list)
    """The trials that wait for an agent."""

    def __post_init__(self) -> None:
        spaces: dict[str, dict[str, Any]] = yaml.safe_load(self.text)["parameters"]
        choices = [
            space.get("values") or [space["value"] if "value" in space else (space["min"] + space["max"]) / 2]
            for space in spaces.values()
        ]
        for number, chosen in enumerate(itertools.product(*choices), start=1):
            self.trials[f"{self.name}-trial{number}"] = dict(zip(spaces, chosen, strict=True))
        self.queue += self.trials


class Server:
    """A context; `url` is where it listens. A server that is stopped refuses connections and can be started again."""

    def __init__(self) -> None:
        self.key = KEY
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, Sweep] = {}
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.received: list[bytes] = []
        """The body of every request, for what must never be sent."""
        self.stopped: set[str] = set()
        """Runs that their sweep has stopped: they and their agents are told so."""
        self.port = 0
        self._lock = threading.Lock()
        self._answering = threading.Event()
        self._answering.set()
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """For `WANDB_BASE_URL`."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        server = self

        class Handler(_Handler):
            def answer(self, path: str, body: bytes) -> dict[str, Any]:
                with server._lock:
                    return server._answer(self.command, path, body)

            def awake(self) -> bool:
                """At once as a rule; a request to a server that hangs is dropped when it wakes up."""
                was = server._answering.is_set()
                server._answering.wait()
                return was

            def allowed(self) -> bool:
                login = self.headers.get("Authorization", "")
                return login == "Basic " + base64.b64encode(f"api:{server.key}".encode()).decode()

        self.port = self.port or a_port()
        self._http = _HTTP(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.server_close()
            http.cut()

    def hang(self) -> None:
        """From here on, take requests and answer none."""
        self._answering.clear()

    def resume(self) -> None:
        """Answer again, after `stop` or `hang`; what was asked meanwhile is forgotten."""
        if not self._answering.is_set():
            self.stop()
            self._answering.set()
        if self._http is None:
            self.start()

    def _answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        self.received.append(body)
        parts = path.split("?", maxsplit=1)[0].strip("/").split("/")
        if path == "/graphql":
            request = json.loads(body)
            # `wandb sweep` and `wandb agent` send none beside the query.
            named = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
            name = request.get("operationName") or (named and named[1])
            variables = request.get("variables") or {}
            self.operations.append((name, variables))
            operation = getattr(self, name or "", None)
            if operation is None:
                return {"errors": [{"message": f"this server knows no {name}"}]}
            return {"data": operation(**variables)}
        if method == "PUT" and parts[0] == "run":  # run/<run>/<file>
            self.runs[parts[1]].files["/".join(parts[2:])] = body
        elif method == "PUT" and parts[0] == "artifact":  # artifact/<id>/<file>
            self.artifacts[parts[1]].files["/".join(parts[2:])] = body
        elif parts[0] == "manifest":
            self.artifacts[parts[1]].manifest = json.loads(body)
        elif parts[-1] == "file_stream":  # files/<entity>/<project>/<run>/file_stream
            self._stream(self.runs[parts[-2]], json.loads(body))
            return {"stopped": parts[-2] in self.stopped}
        return {}

    def _stream(self, run: Run, sent: dict[str, Any]) -> None:
        for name, chunk in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if name.endswith((".json", ".jsonl")) else []
            if name == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        run.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            run.ended = True
            run.exit_codes.append(sent["exitcode"])
            if run.state == "preempted":
                for sweep in self.sweeps.values():
                    sweep.queue += [name for name in sweep.trials if name == run.name]

    # GraphQL operations, by their names.

    def Viewer(self) -> dict[str, Any]:  # noqa: N802
        return {"viewer": USER}

    def ServerFeaturesQuery(self) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"organization": {"coreWeaveOrganizationId": ""}}}

    def RunResumeStatus(self, name: str, **_: Any) -> dict[str, Any]:  # noqa: N802
        bucket = None
        if run := self.runs.get(name):
            # What wandb goes on from: the next step follows the last line of the history.
            bucket = {"id": name, "name": name, "displayName": run.display_name, "tags": [], "notes": None}
            bucket |= {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
            bucket |= {"historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]), "eventsTail": "[]"}
            bucket |= {"summaryMetrics": json.dumps(run.summary), "wandbConfig": json.dumps({"t": 1})}
            bucket |= {"config": json.dumps({key: {"value": value} for key, value in run.config.items()})}
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}, "bucket": bucket}}

    def UpsertBucket(self, name: str, **sent: Any) -> dict[str, Any]:  # noqa: N802
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        run.upserts.append(sent)
        if run.ended:  # and goes on
            run.ended = run.preempting = False
        run.config |= {key: item["value"] for key, item in json.loads(sent.get("config") or "{}").items()}
        run.display_name = sent.get("displayName") or run.display_name
        run.summary |= json.loads(sent.get("summaryMetrics") or "{}")
        project = {"id": "p", "name": sent.get("project") or "p", "entity": {"id": "e", "name": "team"}}
        bucket = {"id": name, "name": name, "displayName": run.display_name, "description": "", "config": "{}"}
        bucket |= {"sweepName": sent.get("sweep"), "project": project, "historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:  # noqa: N802
        found = [{"name": file, "uploadUrl": f"{self.url}/run/{run}/{file}"} for file in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": found}}

    def XXHashDigestsEnabled(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"xxhashDigestsEnabled": False}}

    def FetchArtifactDigestAlgorithm(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifactType": None}}

    def CreateArtifact(self, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802, A002 - wandb's own name
        key = f"artifact{len(self.artifacts)}"
        self.artifacts[key] = Artifact(
            type=input["artifactTypeName"],
            name=input["artifactCollectionName"],
            run=input["runName"],
            aliases=[alias["alias"] for alias in input["aliases"]],
            metadata=json.loads(input["metadata"] or "{}"),
        )
        artifact = {"id": key, "state": "PENDING", "artifactSequence": {"id": "s", "latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def CreateArtifactManifest(self, artifactID: str, **_: Any) -> dict[str, Any]:  # noqa: N802, N803
        file = {"id": "f", "uploadUrl": f"{self.url}/manifest/{artifactID}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def UpdateArtifactManifest(self, artifactManifestID: str, **_: Any) -> dict[str, Any]:  # noqa: N802, N803
        answer = self.CreateArtifactManifest(artifactManifestID)
        return {"updateArtifactManifest": answer["createArtifactManifest"]}

    def CreateArtifactFiles(self, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802, A002
        nodes = []
        for file in input["artifactFiles"]:
            key, name = file["artifactID"], file["name"]
            node = {"storagePath": name, "uploadUrl": f"{self.url}/artifact/{key}/{name}", "uploadHeaders": []}
            nodes.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": key}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def CommitArtifact(self, artifactID: str) -> dict[str, Any]:  # noqa: N802, N803
        self.artifacts[artifactID].committed = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": ""}}}

    def MarkRunFilesUploaded(self, **_: Any) -> dict[str, Any]:  # noqa: N802
        return {"markRunFilesUploaded": {"success": True}}

    def UpsertSweep(self, config: str, projectName: str, **_: Any) -> dict[str, Any]:  # noqa: N802, N803
        sweep = Sweep(f"sweep{len(self.sweeps)}", config)
        self.sweeps[sweep.name] = sweep
        project = {"id": "p", "name": projectName, "entity": {"id": "e", "name": USER["entity"]}}
        return {"upsertSweep": {"sweep": {"name": sweep.name, "project": project}, "configValidationWarnings": []}}

    def SweepWithRuns(self, sweep: str, **_: Any) -> dict[str, Any]:  # noqa: N802
        found = {"id": sweep, "name": sweep, "state": "RUNNING", "config": self.sweeps[sweep].text}
        return {"project": {"sweep": found | {"runs": {"edges": []}}}}

    def CreateAgent(self, sweep: str, **_: Any) -> dict[str, Any]:  # noqa: N802
        key = f"agent{len(self.agents)}"
        self.agents[key] = self.sweeps[sweep]
        return {"createAgent": {"agent": {"id": key}}}

    def RunStopped(self, name: str, **_: Any) -> dict[str, Any]:  # noqa: N802
        return {"project": {"run": {"stopped": name in self.stopped}}}

    def Heartbeat(self, id: str, runState: str, **_: Any) -> dict[str, Any]:  # noqa: N802, N803, A002
        """An agent that runs nothing gets one trial, or is sent home."""
        sweep, commands = self.agents[id], list[dict[str, Any]]()
        if not json.loads(runState):
            command: dict[str, Any] = {"type": "exit"}
            if sweep.queue:
                name = sweep.queue.pop(0)
                arguments = {key: {"value": value} for key, value in sweep.trials[name].items()}
                program = yaml.safe_load(sweep.text)["program"]
                command = {"type": "run", "run_id": name, "program": program, "args": arguments}
            commands.append({"id": f"command{len(self.operations)}", **command})
        for name in self.stopped.intersection(json.loads(runState)):
            commands.append({"id": f"command{len(self.operations)}", "type": "stop", "run_id": name})
        return {"agentHeartbeat": {"agent": {"id": id}, "commands": json.dumps(commands)}}


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for request in list(self._open):
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def awake(self) -> bool:
        raise NotImplementedError

    def allowed(self) -> bool:
        raise NotImplementedError

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if not self.awake():
            self.close_connection = True
            return
        # Uploads go to signed addresses and carry no key; wandb's telemetry is nothing that we serve.
        signed = self.command == "PUT"
        if self.path.startswith("/sdk/"):
            self._reply(404, {})
        elif signed or self.allowed():
            self._reply(200, self.answer(self.path, body))
        else:
            self._reply(401, {"errors": [{"message": "unknown key"}]})

    do_GET = do_PUT = do_POST  # noqa: N815

    def _reply(self, code: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing on the terminal."""
