"""What is deployed: that each file is one its program takes, and that all of them agree with the server."""

import ast
import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry

from mlops import cli, credentials
from mlops.config import check, config_folder
from mlops.entrypoint import composer, normalise
from mlops.serving import admin, supervisor, worker
from mlops.serving.metrics import Metrics
from mlops.serving.settings import Limits, Settings, _Loader, read_settings
from samples import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
CLOUD_RUN = yaml.safe_load((DEPLOY / "cloudrun/service.yaml").read_text(encoding="utf-8"))
VERTEX = yaml.safe_load((DEPLOY / "vertex/training_job.yaml").read_text(encoding="utf-8"))
CLOUD_BUILD = yaml.safe_load((DEPLOY / "cloudbuild.yaml").read_text(encoding="utf-8"))
KUBERNETES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (DEPLOY / "kubernetes").glob("*.yaml")
}
POD = KUBERNETES["deployment"]["spec"]["template"]["spec"]
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/mlops.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/cloud.md").read_text(encoding="utf-8")

# Of the page, in the files that `envsubst` fills in. Any values will do.
FILLED = {
    "PROJECT_ID": "my-project",
    "PROJECT_NUMBER": "1234567890",
    "REGION": "europe-west1",
    "BUCKET": "my-bucket",
    "SERVING_BUCKET": "my-serving-bucket",
    "COMMIT": "0123456789" * 4,
    "VERSION": "0123456789ab",
    "KEYS_VERSION": "1",
    "RUN_ID": "signs-1",
}
TEMPLATES = [
    DEPLOY / "cloudrun/service.yaml",
    DEPLOY / "vertex/training_job.yaml",
    *sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml")),
]
LIMITS = Limits()


def fill(path: Path) -> str:
    """A file as `envsubst` makes it; KeyError for a name that is none."""
    return string.Template(path.read_text(encoding="utf-8")).substitute(FILLED)


def program(name: str) -> str:
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def seconds(text: str) -> float:
    amount, unit = re.fullmatch(r"([\d.]+)(ms|s|m|h)", text).groups()
    return float(amount) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def size(text: str) -> int:
    amount, unit = re.fullmatch(r"(\d+)([kKmMgG]?)i?[bB]?", text).groups()
    return int(amount) * 1024 ** " kmg".index(unit.lower() or " ")


def directive(name: str) -> str:
    (found,) = re.findall(rf"^ *{name} ([^;]+);", NGINX, re.MULTILINE)
    return found


# Every file is one that its program takes.


@pytest.mark.parametrize(
    ("schema", "file"), [("vendor.compose-spec", "compose.yaml"), ("vendor.cloudbuild", "deploy/cloudbuild.yaml")]
)
def test_compose_and_cloud_build_follow_their_schema(schema: str, file: str):
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, file)


@pytest.mark.parametrize("path", [ROOT / "compose.yaml", *sorted(DEPLOY.rglob("*.y*ml"))], ids=lambda path: path.name)
def test_no_key_stands_twice_in_a_map(path: Path):
    yaml.load(path.read_text(encoding="utf-8"), _Loader)  # it raises where one does


def test_docker_compose_takes_its_file():
    # Docker's plugin, or Debian's program of the same name.
    with_plugin = [docker, "compose"] if (docker := shutil.which("docker")) else []
    if not with_plugin or subprocess.run([*with_plugin, "version"], capture_output=True, check=False).returncode:
        with_plugin = [program("docker-compose")]
    text = run(*with_plugin, "--file", "compose.yaml", "--profile", "monitoring", "config", "--format", "json")
    told = json.loads(text[text.index("{") :])
    assert set(told["services"]) == set(SERVICES)
    # Not there, and not empty either: empty, the server would take it for a mistake.
    assert told["services"]["api"]["environment"]["MLOPS_API_KEYS"] is None


def manifests() -> list[dict[str, Any]]:
    """What is applied: with the ConfigMap that kustomize makes, where that is installed."""
    if kubectl := shutil.which("kubectl"):
        text = run(kubectl, "kustomize", DEPLOY / "kubernetes")
        return list(yaml.safe_load_all(string.Template(text).substitute(FILLED)))
    files = KUBERNETES["kustomization"]["resources"]
    return [yaml.safe_load(fill(DEPLOY / "kubernetes" / file)) for file in files]


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_takes_every_manifest_and_knows_every_field(version: str):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = manifests()
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)
    kinds = {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
    assert kinds <= {manifest["kind"] for manifest in found}


def test_kustomize_names_the_settings_by_their_content_and_leaves_no_file_out():
    text = run(program("kubectl"), "kustomize", DEPLOY / "kubernetes")
    found = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}
    (volume,) = [v for v in found["Deployment"]["spec"]["template"]["spec"]["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert re.fullmatch(r"mlops-api-\w{10}", volume["configMap"]["name"])
    assert yaml.safe_load(found["ConfigMap"]["data"]["serve.yaml"]) == KUBERNETES["serve"]
    selected = found["Deployment"]["spec"]["selector"]["matchLabels"].items()
    for kind, where in {
        "Service": "selector",
        "PodDisruptionBudget": "selector",
        "NetworkPolicy": "podSelector",
    }.items():
        selector = found[kind]["spec"][where]
        assert selector.get("matchLabels", selector).items() == selected
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert files - {"kustomization.yaml", "serve.yaml"} == set(KUBERNETES["kustomization"]["resources"])


VENDOR = """
import json, sys
root = sys.argv[1]
sys.path[:0] = [root + "/lib", root + "/lib/third_party"]
try:
    from apitools.base.py import encoding
    from googlecloudsdk.generated_clients.apis.aiplatform.v1 import aiplatform_v1_messages as ai
    from googlecloudsdk.generated_clients.apis.cloudbuild.v1 import cloudbuild_v1_messages as build
    from googlecloudsdk.generated_clients.apis.run.v1 import run_v1_messages as run
except ImportError as error:
    print(error)
    sys.exit(77)
kinds = {"run": run.Service, "vertex": ai.GoogleCloudAiplatformV1CustomJobSpec, "build": build.Build}
for name, told in json.load(sys.stdin).items():
    message = encoding.PyValueToMessage(kinds[name], told)
    unknown = [f"{name}: {edge}.{field}" for edge, field in encoding.UnrecognizedFieldIter(message)]
    assert not unknown, unknown
"""


def test_googles_own_client_knows_every_field_of_what_it_is_sent():
    # bin/gcloud of the Cloud SDK, which has the messages of every Google API.
    root = Path(program("gcloud")).resolve().parents[1]
    python = root / "platform/bundledpythonunix/bin/python3"
    if not python.exists():
        pytest.skip(f"{root} has no Python of its own")
    told = {
        "run": yaml.safe_load(fill(DEPLOY / "cloudrun/service.yaml")),
        "vertex": yaml.safe_load(fill(DEPLOY / "vertex/training_job.yaml")),
        "build": CLOUD_BUILD,
    }
    command = [python, "-c", VENDOR, str(root)]
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(f"this Cloud SDK is arranged in another way: {done.stdout}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_gcloud_knows_every_command_and_flag_of_the_page(tmp_path: Path):
    commands = [{"command_string": command} for command in gcloud_commands()]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    command = [program("gcloud"), "meta", "lint-gcloud-commands", "--commands-file", tmp_path / "commands.json"]
    environment = {**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert len(found) == len(commands) > 40
    assert not {one["command_string"]: one["error_message"] for one in found if not one["success"]}


def gcloud_commands() -> list[str]:
    """Those of the page, with something in the place of each variable."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    inline = re.findall(r"(?<!`)`(gcloud [^`\n]+)`", PAGE)
    found = []
    for line in [*blocks.splitlines(), *inline]:
        # Of `export NAME=$(gcloud ...)` what is inside.
        command = re.search(r"\bgcloud .*", line.partition(" #")[0])
        if command is None:
            continue
        inner = re.search(r"\$\((gcloud .*?)\)(?=[\s\"]|$)", line)
        text = inner[1] if inner else command[0]
        text = re.sub(r"\$\(account (\w+)\)", r"serviceAccount:mlops-\1@my-project.iam.gserviceaccount.com", text)
        found.append(re.sub(r"\$(\w+)", lambda name: FILLED.get(name[1], "something-1"), text).strip())
    return found


def test_prometheus_takes_its_settings_and_rules(tmp_path: Path):
    promtool = program("promtool")
    shutil.copy(DEPLOY / "prometheus/alerts.yaml", tmp_path)
    settings = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert "/etc/prometheus/alerts.yaml" in settings
    (tmp_path / "prometheus.yml").write_text(settings.replace("/etc/prometheus/", f"{tmp_path}/"))
    said = run(promtool, "check", "config", "prometheus.yml", cwd=tmp_path)
    assert f"{len(ALERTS['groups'][0]['rules'])} rules found" in said


REQUESTS = 'mlops_requests_total{job="mlops", instance="a", route="%s", model="m", status="%s"}'
# Series, alert, minutes, and whether it speaks up then. A value every 15 s: `0+6x40` is 6 more each time, 40 times.
ALERTED = [
    ({'up{job="mlops", instance="a"}': "1 1 1 0x40"}, "MlopsDown", 5, True),
    ({'up{job="mlops", instance="a"}': "1x40"}, "MlopsDown", 5, False),
    ({'up{job="other"}': "1x40"}, "MlopsGone", 5, True),
    ({REQUESTS % ("/predict", "200"): "0+98x80", REQUESTS % ("/predict", "500"): "0+2x80"}, "MlopsErrors", 15, True),
    ({REQUESTS % ("/predict", "200"): "0+999x80", REQUESTS % ("/predict", "500"): "0+1x80"}, "MlopsErrors", 15, False),
    # Probes of a server that has no model yet.
    ({REQUESTS % ("/health/ready", "503"): "0+3x80"}, "MlopsErrors", 15, False),
    ({REQUESTS % ("/health/ready", "503"): "0+3x80"}, "MlopsNotReady", 10, True),
    ({REQUESTS % ("/health/ready", "503"): "0+3x8 24x72", REQUESTS % ("/health/ready", "200"): "0x8 0+3x72"},
     "MlopsNotReady", 15, False),
    ({REQUESTS % ("/predict", "200"): "0+90x80", REQUESTS % ("/predict", "429"): "0+10x80"}, "MlopsQueueFull", 15, True),
    # The first refusal is the first that is heard of that counter.
    ({'mlops_model_loads_total{instance="a", model="m", result="refused", pid="1"}': "_x10 1x40"},
     "MlopsModelRefused", 5, True),
    ({'mlops_model_loads_total{instance="a", model="m", result="refused", pid="1"}': "1x100 2x40"},
     "MlopsModelRefused", 28, True),
    ({'mlops_model_loads_total{instance="a", model="m", result="refused", pid="1"}': "_x10 1x200"},
     "MlopsModelRefused", 40, False),
    ({'process_start_time_seconds{job="mlops", instance="a", process="worker-0"}': "1x4 2x4 3x4 4x40"},
     "MlopsRestarts", 5, True),
    ({'process_start_time_seconds{job="mlops", instance="a", process="worker-0"}': "1x80"}, "MlopsRestarts", 15, False),
    ({'process_resident_memory_bytes{job="mlops", instance="a", process="supervisor"}': "5e8x80",
      'process_resident_memory_bytes{job="mlops", instance="a", process="worker-0"}': "5e8x80"}, "MlopsMemory", 15, True),
    ({'process_resident_memory_bytes{job="mlops", instance="a", process="worker-0"}': "5e8x80"}, "MlopsMemory", 15, False),
    ({'mlops_request_seconds_bucket{route="/predict", model="m", le="1"}': "0+9x80",
      'mlops_request_seconds_bucket{route="/predict", model="m", le="2.5"}': "0+10x80",
      'mlops_request_seconds_bucket{route="/predict", model="m", le="+Inf"}': "0+10x80"}, "MlopsSlow", 18, True),
]  # fmt: skip


def test_an_alert_speaks_up_when_it_should_and_only_then(tmp_path: Path):
    shutil.copy(DEPLOY / "prometheus/alerts.yaml", tmp_path)
    rules = {rule["alert"]: rule for rule in ALERTS["groups"][0]["rules"]}
    assert {alert for _, alert, _, _ in ALERTED} == set(rules)
    # promtool wants to be told every label and text of what fires, so it is asked for the alerts' own series.
    tests = [
        {
            "interval": "15s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                    "eval_time": f"{minutes}m",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for series, alert, minutes, fires in ALERTED
    ]
    told = {"rule_files": ["alerts.yaml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(told))
    run(program("promtool"), "test", "rules", "tests.yaml", cwd=tmp_path)


def test_nginx_takes_its_settings(tmp_path: Path):
    nginx = program("nginx")
    text = NGINX.replace("/tmp/", f"{tmp_path}/")
    version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", run(nginx, "-v"))
    if tuple(map(int, version.groups())) < (1, 27, 3):
        # Debian's own knows no `resolve`, and would look the name up now.
        text = text.replace("server api:8000 resolve", "server 127.0.0.1:8000")
    (tmp_path / "nginx.conf").write_text(text)
    run(nginx, "-t", "-e", "/dev/stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf")


# They agree with the server.

SERVE = {
    "compose": SERVICES["api"]["command"],
    "Cloud Run": CLOUD_RUN["spec"]["template"]["spec"]["containers"][0]["args"],
    "Kubernetes": POD["containers"][0]["args"],
}


def options(words: list[str]) -> dict[str, Any]:
    """What `mlops serve` makes of words."""
    command = typer.main.get_command(cli.app).commands["serve"]
    return command.make_context("mlops serve", list(words)).params


@pytest.mark.parametrize("where", SERVE)
def test_mlops_serve_takes_its_words_and_listens_where_it_is_looked_for(where: str):
    told = options(SERVE[where])
    (model,) = told["models"]
    assert model.endswith(".onnx")
    assert (told["host"], told["port"]) == ("0.0.0.0", 8000)
    # Administration asks for no key: it leaves a container only where a network keeps others out.
    assert told["admin_host"] == {"Cloud Run": "127.0.0.1"}.get(where, "0.0.0.0")
    assert told["admin_port"] in {None, 8001}


def test_every_port_is_that_of_the_server():
    assert "server api:8000 " in NGINX
    (jobs,) = [job for job in prometheus()["scrape_configs"] if job["job_name"] == "mlops"]
    assert jobs["dns_sd_configs"][0]["port"] == 8001
    (container,) = CLOUD_RUN["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http1", "containerPort": 8000}]
    ports = {port["name"]: port["containerPort"] for port in POD["containers"][0]["ports"]}
    assert ports == {"http": 8000, "admin": 8001}
    assert [port["targetPort"] for port in KUBERNETES["service"]["spec"]["ports"]] == ["http"]
    annotations = KUBERNETES["deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8001"
    # Of the container's ports only nginx's is published, and what has no keys or TLS on this machine only.
    assert "ports" not in SERVICES["api"]
    for name in ("nginx", "prometheus", "grafana"):
        for port in SERVICES[name]["ports"]:
            assert re.match(r"(\$\{MLOPS_ADDRESS:-)?127\.0\.0\.1:", port), name


def prometheus() -> Any:
    return yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))


def test_nginx_holds_to_the_limits_of_the_server():
    assert int(directive("client_max_body_size")) == LIMITS.body_bytes
    assert f"{LIMITS.body_bytes:,} bytes" in NGINX
    # The server's own answer to what takes too long comes first.
    assert LIMITS.seconds < seconds(directive("proxy_read_timeout")) <= 2 * LIMITS.seconds
    # Another replica is asked where one cannot be reached, and not where one is slow.
    assert directive("proxy_next_upstream").startswith("error timeout ")
    again = seconds(directive("proxy_next_upstream_timeout"))
    assert seconds(directive("proxy_connect_timeout")) < again < seconds(directive("proxy_send_timeout"))
    assert seconds(directive("client_body_timeout")) <= LIMITS.seconds
    # Else requests are sent into connections that the server is about to close.
    upstream = NGINX[NGINX.index("upstream api") : NGINX.index("server {")]
    assert seconds(re.search(r"keepalive_timeout (\w+);", upstream)[1]) < worker._KEEP_ALIVE
    assert 'proxy_set_header Connection "";' in NGINX
    # One form of id, ours: another would be replaced, and stand in one log only.
    assert re.search(r'"~\^(\S+)\$" \$http_x_request_id', NGINX)[1] == "[A-Za-z0-9._-]{1,64}"
    assert "proxy_set_header X-Request-ID $id;" in NGINX
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in NGINX
    assert "location = /metrics" in NGINX


def test_what_nginx_itself_refuses_has_the_form_of_the_servers_refusals():
    found = re.findall(r"return (\d+) '(.*)\\n';", NGINX)
    assert {int(status) for status, _ in found} == {400, 404, 408, 413, 503, 504}
    for status, body in found:
        told = json.loads(body)
        assert told["status"] == int(status)
        assert list(told) == ["type", "title", "status", "detail", "request_id"]


def ending(settings: Settings) -> float:
    """Seconds that the server may take to end: those of `Supervisor._drain`, read there."""
    source = Path(supervisor.__file__).read_text(encoding="utf-8")
    (extra,) = re.findall(r"self\._settings\.drain_seconds \+ 2 \* self\._settings\.limits\.seconds \+ (\d+)", source)
    return settings.drain_seconds + 2 * settings.limits.seconds + float(extra)


def test_everybody_waits_for_the_server_to_end():
    settings = read_settings(DEPLOY / "kubernetes/serve.yaml")
    assert settings.drain_seconds > Settings().drain_seconds
    assert POD["terminationGracePeriodSeconds"] > ending(settings)
    assert "lifecycle" not in POD["containers"][0]
    assert seconds(SERVICES["api"]["stop_grace_period"]) > ending(Settings())
    assert seconds(SERVICES["nginx"]["stop_grace_period"]) > seconds(directive("proxy_read_timeout"))
    # Uploading may take as long as answering.
    assert CLOUD_RUN["spec"]["template"]["spec"]["timeoutSeconds"] > 2 * LIMITS.seconds


def test_a_server_has_as_many_workers_as_processors_and_the_memory_that_the_alert_knows():
    limits = {
        "compose": SERVICES["api"]["deploy"]["resources"]["limits"],
        "Cloud Run": CLOUD_RUN["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"],
        "Kubernetes": POD["containers"][0]["resources"]["limits"],
    }
    (alert,) = [rule for rule in ALERTS["groups"][0]["rules"] if rule["alert"] == "MlopsMemory"]
    warned = int(alert["expr"].rpartition(">")[2])
    for where, told in limits.items():
        # Not told, a server takes one for each processor of the machine that its container is on.
        assert options(SERVE[where])["workers"] == float(told["cpu" if "cpu" in told else "cpus"]), where
        assert LIMITS.waiting_bytes + 256 * 1024**2 < warned < size(told["memory"]) <= 1024**3, where
    assert POD["containers"][0]["resources"]["requests"]["cpu"]  # else the autoscaler has nothing to compare with
    (board,) = [panel for panel in DASHBOARD["panels"] if panel["title"] == "Memory"]
    assert board["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == warned


@pytest.mark.parametrize(
    "container",
    [POD["containers"][0], CLOUD_RUN["spec"]["template"]["spec"]["containers"][0]],
    ids=["pod", "Cloud Run"],
)
def test_probes_ask_for_what_they_mean_and_give_time(container: dict[str, Any]):
    assert container["startupProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container.get("readinessProbe", container["startupProbe"])["httpGet"]["path"] == "/health/ready"
    starting = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert 60 <= starting <= 240  # Cloud Run allows no more
    dying = container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"]
    assert dying > LIMITS.seconds
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe := container.get(kind):
            assert probe["timeoutSeconds"] <= probe["periodSeconds"]


def test_the_health_check_of_compose_is_python_that_asks_whether_the_server_is_ready():
    *words, code = SERVICES["api"]["healthcheck"]["test"]
    assert words == ["CMD", "python", "-c"]
    ast.parse(code)
    assert "http://127.0.0.1:8000/health/ready" in code


def test_the_training_takes_its_words():
    (pool,) = yaml.safe_load(fill(DEPLOY / "vertex/training_job.yaml"))["workerPoolSpecs"]
    folders = [config_folder()]
    composed = composer("config", folders)([normalise(word, folders) for word in pool["containerSpec"]["args"]])
    assert isinstance(composed, dict), composed
    assert check(composed) == []
    assert composed["run"]["mirror"] == "gs://my-bucket/runs"
    environment = {entry["name"]: entry["value"] for entry in pool["containerSpec"]["env"]}
    assert environment["WANDB_RUN_ID"] == "signs-1"  # by which the next machine finds the run in the mirror
    assert composed["tracking"]["mode"] != "off"
    assert all(isinstance(value, str) for value in environment.values())
    assert seconds(VERTEX["scheduling"]["timeout"]) <= 4 * 3600


# What is looked at.


def counted() -> dict[str, set[str]]:
    """The series that a server shows, and the labels of each."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.began()
    metrics.ended("/predict", "m", 200, 0.01)
    metrics.predicted("m", ["Stop"])
    metrics.computed("m", 1, 0.01, 0)
    metrics.loaded("m", "0123456789ab", None)

    class Supervised:
        def pids(self) -> dict[str, int]:
            return {"supervisor": os.getpid()}

    families = [*registry.collect(), *admin._Processes(Supervised()).collect()]
    found: dict[str, set[str]] = {"up": set()}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def asked() -> list[str]:
    """Every question that the dashboard and the rules put to Prometheus."""
    rules = [rule["expr"] for rule in ALERTS["groups"][0]["rules"]]
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [*rules, *panels]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of processes")
def test_dashboard_and_rules_ask_for_what_the_server_counts():
    known, used = counted(), set()
    for expression in asked():
        bare = re.sub(r'"[^"]*"', '""', expression)
        for name, selector in re.findall(r"\b((?:mlops|process)_\w+|up)\b(?:\{([^}]*)\})?", bare):
            assert name in known, f"{name}: no such metric: {expression}"
            used.add(name)
            labels = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", selector))
            assert labels <= known[name] | {"job", "instance"}, expression
        grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", bare) for label in re.split(r", *", by)}
        assert grouped <= {"job", "instance"}.union(*known.values()), expression
    # Everything of ours is shown somewhere.
    base = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in known if name.startswith("mlops_")}
    shown = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in used}
    assert {name for name in base if not name.endswith("_created")} <= shown | {
        name.removesuffix("_total") for name in shown
    }


def test_docs_name_the_metrics_that_are_there():
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    known = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in counted()}
    assert set(re.findall(r"`(mlops_\w+)`", page)) <= known


def test_every_panel_has_a_number_and_a_place_of_its_own_and_any_prometheus_as_its_source():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
        if panel["type"] != "row":
            for source in (panel, *panel["targets"]):
                assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(DASHBOARD)))
    assert used == defined


def test_grafana_finds_its_dashboard_and_its_source():
    provisioning = DEPLOY / "grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/mlops.yaml").read_text(encoding="utf-8"))["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/mlops.json"
    assert source["url"] == "http://prometheus:9090"
    for service in SERVICES.values():
        for volume in service["volumes"]:
            if isinstance(volume, str) and (path := volume.split(":")[0]).startswith("./"):
                assert (ROOT / path).exists(), path


# Nobody gets more than is needed.


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_of_compose_is_nobody_and_may_nothing(name: str):
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    for volume in service["volumes"]:
        if isinstance(volume, dict):
            assert (volume["type"], volume["read_only"]) == ("bind", True)
        else:  # what is not read-only is no folder of this machine
            assert volume.endswith(":ro") or not volume.startswith((".", "/", "$")), volume
    for mount in service.get("tmpfs", []):  # without an end it may take half of the machine's memory
        assert size(re.search(r"size=(\w+)", mount)[1]) < size(limits["memory"])
    assert service["healthcheck"]["test"]


def test_the_api_of_compose_reaches_nobody():
    assert SERVICES["api"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_a_pod_is_nobody_and_may_nothing():
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    (container,) = POD["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    written = {volume["name"] for volume in POD["volumes"] if "emptyDir" in volume}
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] not in written)
    enforced = KUBERNETES["namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"
    rules = KUBERNETES["networkpolicy"]["spec"]["ingress"]
    (administration,) = [rule for rule in rules if {"protocol": "TCP", "port": "admin"} in rule["ports"]]
    assert administration["from"]


def test_each_part_runs_as_an_account_of_its_own():
    used = [
        CLOUD_RUN["spec"]["template"]["spec"]["serviceAccountName"],
        KUBERNETES["serviceaccount"]["metadata"]["annotations"]["iam.gke.io/gcp-service-account"],
        VERTEX["serviceAccount"],
        CLOUD_BUILD["serviceAccount"].rpartition("/")[2],
    ]
    assert [account.partition("@")[0] for account in used] == ["mlops-api", "mlops-api", "mlops-train", "mlops-build"]
    # The roles are those of the page: none of a whole project, but to write logs and what a cluster's nodes report.
    roles = re.findall(r"projects add-iam-policy-binding .*--role (\S+)", PAGE.replace("\\\n", " "))
    assert roles == ["roles/logging.logWriter", "roles/container.defaultNodeServiceAccount"]
    assert not re.findall(r"roles/(?:owner|editor|viewer|\S*\.admin)\b", PAGE)
    assert "keys create" not in PAGE


def test_a_secret_stands_nowhere_but_by_its_name():
    (container,) = CLOUD_RUN["spec"]["template"]["spec"]["containers"]
    reference = {"secretKeyRef": {"name": "mlops-api-keys", "key": "${KEYS_VERSION}"}}
    assert container["env"] == [{"name": "MLOPS_API_KEYS", "valueFrom": reference}]
    (keys,) = [volume for volume in POD["volumes"] if volume["name"] == "keys"]
    assert keys["secret"]["secretName"] == "mlops-api-keys"
    (mount,) = [mount for mount in POD["containers"][0]["volumeMounts"] if mount["name"] == "keys"]
    assert options(SERVE["Kubernetes"])["keys"] == Path(mount["mountPath"]) / "keys.txt"
    assert "env" not in POD["containers"][0]
    assert SERVICES["api"]["environment"]["MLOPS_API_KEYS"] is None  # passed on, where it is set
    assert {"secretEnv", "availableSecrets"}.isdisjoint(CLOUD_BUILD)
    files = [ROOT / "compose.yaml", ROOT / "docs/cloud.md", *(path for path in DEPLOY.rglob("*") if path.is_file())]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert credentials.key_in(path) is None, path
        assert not re.search(
            r"(?i)(password|token|secret|api_?keys?)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{8,}", text
        ), path
        assert not re.search(r"AIza[\w-]{30}|\b[0-9a-f]{64}\b|kind: Secret", text), path


# Nothing is forgotten.


def test_every_name_to_fill_in_is_one_that_the_page_sets():
    exported = set(re.findall(r"(?:^export|(?<=\S)) (\w+)=", "\n".join(
        line for line in PAGE.splitlines() if line.startswith("export ")
    ), re.MULTILINE))  # fmt: skip
    used = set()
    for path in TEMPLATES:
        names = set(re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8")))
        assert names <= exported, path
        assert "$" not in fill(path), path  # neither $NAME nor anything else that envsubst would empty
        used |= names
    assert used | {"PROJECT_NUMBER"} == set(FILLED)
    # One style: no other word looks like something that is to be replaced.
    for path in [*TEMPLATES, DEPLOY / "cloudbuild.yaml"]:
        assert not re.search(r"\b(YOUR|MY)[-_]|<[a-z-]+>|\bPROJECT_ID\b(?!\})", path.read_text(encoding="utf-8")), path
    known = exported | {"name", "nodes", "pool"}
    in_shell = re.findall(r"\$(\w+)", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)))
    assert set(in_shell) - {"1"} <= known


def test_cloud_build_uses_every_substitution_and_has_every_one():
    text = (DEPLOY / "cloudbuild.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)\}", text))
    assert used == {*CLOUD_BUILD["substitutions"], "PROJECT_ID"}
    without = {name for name, value in CLOUD_BUILD["substitutions"].items() if not value}
    (told,) = re.findall(r"builds submit .*--substitutions (\S+)", PAGE.replace("\\\n", " "))
    assert without <= {pair.partition("=")[0] for pair in told.split(",")}
    named = [word for step in CLOUD_BUILD["steps"] for word in step["args"] if word.startswith("--tag=")]
    for image in ("api", "train"):
        assert any(word.endswith(f"/{image}:${{_COMMIT}}") for word in named)
    deployed = {
        CLOUD_RUN["spec"]["template"]["spec"]["containers"][0]["image"],
        POD["containers"][0]["image"],
        VERTEX["workerPoolSpecs"][0]["containerSpec"]["imageUri"],
    }
    registry = CLOUD_BUILD["substitutions"]["_REPOSITORY"]
    for image in deployed:
        assert re.fullmatch(rf"\$\{{REGION\}}-docker\.pkg\.dev/\$\{{PROJECT_ID\}}/{registry}/\w+:\$\{{COMMIT\}}", image)


def test_whoever_builds_an_image_says_of_which_commit_it_is():
    for step in CLOUD_BUILD["steps"]:
        assert ("--build-arg=COMMIT=${_COMMIT}" in step["args"]) == ("build" in step["args"])
    for name in ("images", "model"):
        workflow = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
        assert '--build-arg "COMMIT=$GITHUB_SHA"' in workflow
    images = (ROOT / ".github/workflows/images.yml").read_text(encoding="utf-8")
    assert '--tag "$IMAGE:$GITHUB_SHA"' in images  # the name by which the page deploys it


def test_every_image_of_others_has_an_exact_version():
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += [step["name"] for step in CLOUD_BUILD["steps"]]
    images += [re.search(r"image=(\S+)", word)[1] for word in CLOUD_BUILD["steps"][0]["args"] if "image=" in word]
    assert len(images) >= 5
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+(-[a-z-]+)?$", image), image


def test_the_page_uses_what_there_is():
    for path in sorted(DEPLOY.rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            # A file, or a folder that is applied or mounted as a whole.
            folders = [folder.relative_to(ROOT).as_posix() for folder in path.parents if DEPLOY in folder.parents]
            told = PAGE + (ROOT / "compose.yaml").read_text(encoding="utf-8")
            assert any(place in told for place in [name, *folders]), name
    for place in re.findall(r"deploy/[\w./-]*\w", PAGE):
        assert (ROOT / place).exists(), place
