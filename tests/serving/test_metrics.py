"""What Prometheus reads on the administration port, of all workers together."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from samples import png
from serving.models import write_features, write_model
from serving.server import Server

BLUE, RED = png(1, colour=(20, 30, 220)), png(2, colour=(220, 30, 20))
CONFIG = """
models: {colours: colours.onnx, others: others.onnx, numbers: numbers.onnx}
ensembles: {mean: [colours, others]}
aliases: {/cv_model/: {to: colours, field: data}}
drain_seconds: 0
"""
# Sent below: to each route so many, that are answered so.
SENT = {
    ("/predict", "colours", "200"): 14,
    ("/models/{name}/predict", "others", "200"): 3,
    ("/ensembles/{name}/predict", "mean", "200"): 5,
    ("/cv_model/", "colours", "200"): 2,
    ("/predict", "colours", "422"): 2,
    ("/models/{name}/predict", "numbers", "200"): 1,
    ("/models/{name}/predict", "", "404"): 40,
    ("unmatched", "", "404"): 40,
    ("unmatched", "", "405"): 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that have answered what `SENT` says."""
    folder: Path = tmp_path_factory.mktemp("metrics")
    write_model(folder / "colours.onnx")
    write_model(folder / "others.onnx", scale=1.0)
    write_features(folder / "numbers.onnx")
    (folder / "serve.yaml").write_text(CONFIG)
    with Server(folder, ("--config", "serve.yaml"), workers=2) as server:
        for _ in range(4):  # connections of their own, so that both workers are asked
            server.http.clear()
            for content in (BLUE, RED, RED):
                assert server.send("/predict", ("a.png", content)).status == 200
        for content in (BLUE, RED):
            assert server.send("/predict", *[(f"{n}.png", content) for n in range(3)]).status == 200
            assert server.send("/predict", ("a.png", b"none")).status in (415, 422)
        for _ in range(3):
            assert server.send("/models/others/predict", ("a.png", RED)).status == 200
        for _ in range(5):
            assert server.send("/ensembles/mean/predict", ("a.png", RED)).status == 200
        for _ in range(2):
            assert server.send("/cv_model/", ("a.png", BLUE), field="data").status == 200
        rows = b'{"features": [[1, 2, 3, 4], [-1, -2, -3, -4]]}'
        assert server.ask("POST", "/models/numbers/predict", rows, {"Content-Type": "application/json"}).status == 200
        for number in range(40):
            assert server.send(f"/models/unknown-{number}/predict", ("a.png", RED)).status == 404
            assert server.get(f"/nowhere-{number}").status == 404
        assert server.ask("DELETE", "/predict").status == 405
        yield server


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def read(server: Server) -> tuple[Samples, dict[str, str]]:
    """Name -> labels -> value, and the kind of each family."""
    answer = server.get(f"{server.admin}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = defaultdict(dict)
    kinds = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        kinds[family.name] = family.type
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found, kinds


def by(found: Samples, name: str, *labels: str) -> dict[Any, float]:
    """The samples of one name, added up by some of their labels."""
    summed: dict[Any, float] = defaultdict(float)
    for told, value in found[name].items():
        summed[tuple(dict(told)[label] for label in labels)] += value
    return dict(summed)


def test_requests_of_all_workers_are_added_up_by_route_model_and_status(server: Server):
    found, kinds = read(server)
    counted = by(found, "mlops_requests_total", "route", "model", "status")
    refused = counted.pop(("/predict", "colours", "415"), 0)
    counted["/predict", "colours", "422"] = counted.get(("/predict", "colours", "422"), 0) + refused
    assert {key: value for key, value in counted.items() if not key[0].startswith("/health")} == SENT
    assert kinds["mlops_requests"] == "counter"
    assert by(found, "mlops_requests_in_progress") == {(): 0}


def test_unknown_paths_and_models_make_no_labels(server: Server):
    found, _ = read(server)
    labels = {value for samples in found.values() for told in samples for _, value in told}
    assert not any("nowhere" in value or "unknown-" in value for value in labels)


def test_classes_are_counted_by_the_model_or_ensemble_that_was_asked(server: Server):
    counted = by(read(server)[0], "mlops_predictions_total", "model", "class")
    assert counted == {
        ("colours", "blue"): 4 + 3 + 2,
        ("colours", "red"): 8 + 3,
        ("others", "red"): 3,
        ("mean", "red"): 5,
        ("numbers", "yes"): 1,
        ("numbers", "no"): 1,
    }


def test_batches_tell_how_many_images_each_model_has_computed(server: Server):
    found, kinds = read(server)
    assert by(found, "mlops_batch_images_sum", "model") == {("colours",): 25, ("others",): 8, ("numbers",): 2}
    assert kinds["mlops_batch_images"] == "histogram"
    assert by(found, "mlops_batch_images_count", "model") == by(found, "mlops_batch_seconds_count", "model")
    assert set(by(found, "mlops_queue_images", "model").values()) == {0}
    assert by(found, "mlops_model_loads_total", "model", "result") == {
        (name, "loaded"): 2 for name in ("colours", "others", "numbers")
    }


@pytest.mark.parametrize("name", ["mlops_request_seconds", "mlops_batch_images", "mlops_batch_seconds"])
def test_buckets_of_a_histogram_only_grow_and_end_with_its_count(name: str, server: Server):
    found, _ = read(server)
    series: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for told, value in found[f"{name}_bucket"].items():
        labels = dict(told)
        bound = float(labels.pop("le"))
        series[tuple(sorted(labels.items()))].append((bound, value))
    assert series
    for labels, buckets in series.items():
        values = [value for _, value in sorted(buckets)]
        assert all(smaller <= larger for smaller, larger in pairwise(values))
        assert values[-1] == found[f"{name}_count"][labels]
        assert found[f"{name}_sum"][labels] >= 0


def test_each_process_has_its_own_metrics_and_is_small(server: Server):
    found, _ = read(server)
    memory = by(found, "process_resident_memory_bytes", "process")
    assert set(memory) == {("supervisor",), ("worker-0",), ("worker-1",)}
    assert max(memory.values()) < 150e6
    for name in ("process_cpu_seconds_total", "process_start_time_seconds", "process_open_fds", "process_max_fds"):
        assert len(by(found, name, "process")) == 3, name


def test_it_may_be_read_from_many_sides_at_once(server: Server):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.get(f"{server.admin}/metrics").status)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 8


def test_the_other_routes_of_the_administration(server: Server):
    health = server.get(f"{server.admin}/health")
    assert (health.status, health.json["ready"], health.json["reason"]) == (200, True, None)
    models = server.get(f"{server.admin}/models").json["models"]
    assert [(one["name"], one["file"], one["refused"]) for one in models] == [
        (name, f"{name}.onnx", None) for name in ("colours", "others", "numbers")
    ]
    for method, path in (("GET", "/"), ("POST", "/metrics"), ("GET", "/models/colours/reload"), ("POST", "/models")):
        answer = server.ask(method, server.admin + path)
        assert (answer.status, answer.json["status"]) == (404, 404)
        assert answer.headers["content-type"] == "application/problem+json"
    # Not on the public port.
    assert server.get("/metrics").status == 404
    assert server.ask("POST", "/models/colours/reload").status == 404
