"""The description of the API is true: schemathesis asks everything that it allows, and more, and checks every answer."""

import asyncio
import json
from pathlib import Path
from typing import Any

import hypothesis
import prometheus_client
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck

from mlops.serving.app import build
from mlops.serving.keys import Doorkeeper
from mlops.serving.metrics import Metrics
from mlops.serving.settings import Settings
from mlops.serving.shelf import Shelf
from serving.conftest import CONFIG
from serving.server import Server


def described() -> Any:
    """What GET /openapi.json says, without a server: schemathesis makes its tests of it while tests are collected."""
    settings = Settings.model_validate(yaml.safe_load(CONFIG))
    metrics = Metrics(prometheus_client.CollectorRegistry())
    app, _ = build(settings, Shelf(settings, metrics), Doorkeeper(None, None), metrics)
    told: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        told.append(message.get("body", b""))

    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "headers": [], "query_string": b""}
    asyncio.run(app({**scope, "client": None, "server": None}, receive, send))
    return json.loads(b"".join(told))


# A form's bytes may be no picture, a row may be of another length, and a model may take the one or the other: no schema
# says so, and what it allows is refused then. Nor can it say which tensors a model takes.
REFUSED = {"expected-statuses": ["2xx", "404", "413", "415", "422"]}
NO_TENSOR = {"expected-statuses": [*REFUSED["expected-statuses"], "400"]}
CONFIG_OF_CHECKS = {
    "checks": {"positive_data_acceptance": REFUSED},
    "operations": [{"include-path-regex": "/infer$", "checks": {"positive_data_acceptance": NO_TENSOR}}],
}
DESCRIBED = described()
schema = schemathesis.openapi.from_dict(DESCRIBED, config=schemathesis.Config.from_dict(CONFIG_OF_CHECKS))
ANY_SPEED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@schema.parametrize()
@hypothesis.settings(max_examples=1, derandomize=True, **ANY_SPEED)
def test_every_answer_is_as_described(case: schemathesis.Case, served: Server):
    case.call_and_validate(base_url=served.url)


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(max_examples=500, **ANY_SPEED)
def test_every_answer_is_as_described_whatever_is_asked(case: schemathesis.Case, served: Server):
    case.call_and_validate(base_url=served.url)


def test_what_is_described_is_what_the_server_says(served: Server):
    assert served.get("/openapi.json").json == DESCRIBED
    assert served.get("/docs").status == 200


def test_what_a_server_without_a_model_answers_is_described_too(tmp_path: Path):
    with Server(tmp_path, (), wait=False) as server:
        server.until_it_answers()
        told = server.get("/openapi.json").json
        found = set()
        for path, operations in told["paths"].items():
            if "get" not in operations:
                continue
            concrete = path.replace("{name}", "model").replace("{version}", "x")
            responses = operations["get"]["responses"]
            answer = server.get(concrete)
            response = responses[str(answer.status)]
            assert all(name in answer.headers for name in response["headers"]), path
            assert answer.headers["Content-Type"] in response["content"], path
            found.add(answer.status)
    assert found == {200, 503}


def test_routes_that_need_no_key_say_so_and_all_others_say_what_they_refuse_without():
    for path, operations in DESCRIBED["paths"].items():
        for operation in operations.values():
            is_open = "health" in path
            assert (operation.get("security") == []) == is_open, path
            assert ("401" in operation["responses"]) != is_open, path


def test_every_route_is_described_with_all_that_it_may_answer():
    paths = DESCRIBED["paths"]
    assert {"/predict", "/models/{name}/predict", "/ensembles/{name}/predict", "/cv_model/", "/image_classify"} <= {
        *paths
    }
    assert {"/v2/models/{name}", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"} <= {*paths}
    answers = paths["/predict"]["post"]["responses"]
    assert sorted(answers) == ["200", "400", "401", "404", "408", "413", "415", "422", "429", "503", "504"]
    for status, answer in answers.items():
        kind = "application/json" if status == "200" else "application/problem+json"
        assert list(answer["content"]) == [kind]
        assert answer["headers"]["X-Request-ID"]["required"]
    assert "Retry-After" in answers["429"]["headers"]
    assert "Retry-After" in answers["503"]["headers"]
