"""What the routes answer."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlops.client import Client, Prediction, Refused, ServerError
from mlops.image import decode
from mlops.inference import OnnxModel
from mlops.serving.keys import new_key
from samples import png
from serving.models import COLOURS, write_features, write_model
from serving.server import Answer, Server

# Probabilities are told with six decimals.
TOLD = pytest.approx
BLUE, GREEN, RED = (
    png(seed, colour=colour) for seed, colour in enumerate([(20, 30, 220), (30, 220, 20), (220, 30, 20)])
)
# Between two classes, so that no probability is 0 or 1.
MIXED = png(4, colour=(110, 90, 130))


def close(value: float) -> object:
    return TOLD(value, abs=2e-6)


def image(server: Server, path: str, content: bytes = BLUE, kind: str = "image/png", **headers: str) -> Answer:
    return server.ask("POST", path, content, {"Content-Type": kind, **headers})


def chances(answer: Answer, index: int = 0) -> dict[str, float]:
    """Class -> probability, of an answer with all classes."""
    assert answer.status == 200, answer.body
    return {one["class"]: one["probability"] for one in answer.json["predictions"][index]["top"]}


def problem(answer: Answer, status: int) -> str:
    """The detail of a refusal, whose form is always the same."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json
    assert [*told] == ["type", "title", "status", "detail", "request_id"]
    assert (told["type"], told["status"]) == ("about:blank", status)
    assert told["request_id"] == answer.headers["X-Request-ID"]
    return str(told["detail"])


# Predictions.


def test_a_form_with_one_file_is_answered_with_its_class(served: Server):
    answer = served.send("/predict?top=2", ("a.png", BLUE))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    (found,) = answer.json["predictions"]
    assert (found["file"], found["class"]) == ("a.png", "blue")
    assert [one["class"] for one in found["top"]][:1] == ["blue"]
    assert len(found["top"]) == 2
    assert answer.json["model"] == "colours"
    assert 0 < answer.json["milliseconds"] < 30_000


def test_several_files_are_answered_in_their_order_with_their_names(served: Server):
    files = [("b.png", BLUE), ("größe 日本.png", RED), ("b.png", GREEN), ("", RED)]
    predictions = served.send("/predict", *files).json["predictions"]
    assert [(one["file"], one["class"]) for one in predictions] == [
        ("b.png", "blue"),
        ("größe 日本.png", "red"),
        ("b.png", "green"),
        ("", "red"),
    ]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; q=1"])
def test_the_bytes_of_one_image_are_answered_without_a_name(served: Server, kind: str):
    (found,) = image(served, "/predict", RED, kind).json["predictions"]
    assert (found["file"], found["class"]) == (None, "red")
    assert found["top"] == [{"class": "red", "probability": found["probability"]}]


def test_a_body_in_chunks_is_read_like_any_other(served: Server):
    parts = iter([RED[:10], RED[10:50], RED[50:]])
    found = served.http.request("POST", f"{served.url}/predict", body=parts, headers={"Content-Type": "image/png"})
    assert Answer(found.status, found.headers, found.data).json["predictions"][0]["class"] == "red"


def test_probabilities_are_those_of_the_model_asked_directly(served: Server):
    for name, size in (("colours", 8), ("others", 8), ("digits", 12)):
        model = OnnxModel.read(served.folder / f"{name}.onnx", threads=1)
        pixels = np.stack([decode(content, (size, size), "squash", "bilinear").pixels for content in (MIXED, BLUE)])
        wanted = model.predict(pixels)
        answer = served.send(f"/models/{name}/predict?top=1000", ("m", MIXED), ("b", BLUE))
        for index, row in enumerate(wanted):
            found = chances(answer, index)
            assert [found[label] for label in model.classes] == [close(float(value)) for value in row]


def test_top_tells_the_likeliest_first_and_no_more_than_there_are(served: Server):
    for count in (1, 2, 3, 4, 1000):
        (found,) = image(served, f"/predict?top={count}", MIXED).json["predictions"]
        values = [one["probability"] for one in found["top"]]
        assert len(values) == min(count, 3)
        assert values == sorted(values, reverse=True)
        assert (found["class"], found["probability"]) == (found["top"][0]["class"], values[0])
    assert sum(values) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("told", ["0", "-1", "1001", "1.5", "", "a", "+1", "%201", "1e2", "%D9%A3", "1,2", "9" * 5000])
def test_a_top_that_is_no_number_of_classes_is_refused(served: Server, told: str):
    assert problem(image(served, f"/predict?top={told}"), 422).endswith("must be a whole number from 1 to 1,000")


def test_equal_probabilities_are_told_in_the_order_of_the_classes(served: Server):
    grey = png(0, size=(1, 1), colour=(100, 100, 100))
    black = chances(image(served, "/predict?top=9", png(0, (8, 8), (-99, -99, -99))))
    assert [*black] == list(COLOURS)
    assert set(black.values()) == {0.333333}
    assert image(served, "/predict", grey).status == 200


def test_a_model_is_asked_by_name(served: Server):
    answer = image(served, "/models/digits/predict", RED)
    assert answer.json["model"] == "digits"
    assert answer.json["predictions"][0]["class"] in "0123456789"
    versions = {one["name"]: one["version"] for one in served.get("/models").json["models"]}
    assert answer.json["version"] == versions["digits"]


def test_an_ensemble_answers_with_the_weighted_mean_of_its_members(served: Server):
    for content in (MIXED, BLUE):
        sure, doubting = (
            chances(image(served, f"/models/{name}/predict?top=3", content)) for name in ("colours", "others")
        )
        mean = chances(image(served, "/ensembles/mean/predict?top=3", content))
        weighted = chances(image(served, "/ensembles/weighted/predict?top=3", content))
        assert mean != sure
        for label in COLOURS:
            assert mean[label] == close((sure[label] + doubting[label]) / 2)
            assert weighted[label] == close((3 * sure[label] + doubting[label]) / 4)


def test_an_ensemble_names_its_members_and_their_versions(served: Server):
    answer = served.send("/ensembles/weighted/predict", ("a.png", BLUE), ("b.png", RED)).json
    versions = {one["name"]: one["version"] for one in served.get("/models").json["models"]}
    assert answer["ensemble"] == "weighted"
    assert answer["models"] == [{"model": name, "version": versions[name]} for name in ("colours", "others")]
    assert [(one["file"], one["class"]) for one in answer["predictions"]] == [("a.png", "blue"), ("b.png", "red")]
    assert "model" not in answer


def test_an_alias_asks_its_model_through_its_own_field(served: Server):
    answer = served.send("/cv_model/", ("a.png", GREEN), field="data")
    assert (answer.json["model"], answer.json["predictions"][0]["class"]) == ("colours", "green")
    assert problem(served.send("/cv_model/", ("a.png", GREEN)), 422) == "the form has no field data; it has file"
    assert image(served, "/cv_model/", RED).json["predictions"][0]["class"] == "red"
    assert served.send("/image_classify", ("a.png", RED)).json["ensemble"] == "mean"


def test_a_model_of_features_takes_rows_of_numbers(served: Server):
    body = b'{"features": [[1, 1, 1, 1], [-1.5, 0, 0, 0], [0, 0, 0, 0]]}'
    for path in ("/models/numbers/predict?top=2", "/predict_clip?top=2"):
        answer = image(served, path, body, "application/json")
        found = answer.json["predictions"]
        assert [(one["file"], one["class"]) for one in found] == [(None, "yes"), (None, "no"), (None, "no")]
        for index, total in enumerate((4, -1.5, 0)):
            assert chances(answer, index)["yes"] == close(1 / (1 + np.exp(-total)))


def test_a_model_that_takes_the_other_kind_says_what_it_takes(served: Server):
    told = problem(served.send("/models/numbers/predict", ("a.png", BLUE)), 415)
    assert told == 'this model takes application/json: {"features": [[4 numbers], ...]}'
    told = problem(image(served, "/predict", b'{"features": [[1, 1, 1, 1]]}', "application/json"), 415)
    assert "send multipart/form-data with the field file" in told


def test_one_bad_file_of_several_refuses_all_and_is_named(served: Server):
    told = problem(served.send("/predict", ("a.png", BLUE), ("b.svg", b"<svg/>"), ("c.png", RED)), 415)
    assert told == "b.svg: not an image of a known format; send PNG, JPEG, PPM, BMP, GIF, TIFF, WEBP"
    told = problem(served.send("/predict", ("a.png", BLUE), ("b.png", BLUE[:60])), 422)
    assert told.startswith("b.png: ")


# What there is.


def test_models_and_ensembles_are_listed_with_what_they_are(served: Server):
    told = served.get("/models").json
    assert told["default"] == "colours"
    models = {one["name"]: one for one in told["models"]}
    assert [*models] == ["digits", "colours", "others", "numbers"]
    colours = models["colours"]
    assert colours["classes"] == list(COLOURS)
    assert (colours["kind"], models["numbers"]["kind"]) == ("images", "features")
    assert (colours["ready"], colours["refused"]) == (True, None)
    assert colours["sha256"].startswith(colours["version"])
    assert len(colours["version"]) == 12
    assert (colours["input"]["height"], colours["input"]["width"]) == (8, 8)
    assert models["numbers"]["input"] == {"features": 4, "names": None}
    assert colours["metrics"] == {"val_Accuracy": 1.0}
    assert told["ensembles"] == [
        {"name": "mean", "members": {"colours": 0.5, "others": 0.5}},
        {"name": "weighted", "members": {"colours": 0.75, "others": 0.25}},
    ]
    one = served.get("/models/colours").json
    assert {**one, "waiting": 0} == {**colours, "waiting": 0}


def test_versions_and_health_are_told(served: Server):
    import onnxruntime

    import mlops

    assert served.get("/health").json == served.get("/health/live").json == {"status": "ok"}
    assert served.get("/health/ready").json == {"status": "ready"}
    told = served.get("/version").json
    assert (told["version"], told["onnxruntime"]) == (mlops.__version__, onnxruntime.__version__)
    assert [*told] == ["version", "onnxruntime", "python"]


# The project's own client.


def test_our_client_understands_what_this_server_answers(served: Server, tmp_path: Path):
    (tmp_path / "größe.png").write_bytes(GREEN)
    with Client(served.url) as client:
        assert client.health()
        assert client.ready()
        found = client.predict([BLUE, tmp_path / "größe.png"], top=2)
        assert [(one.label, len(one.top), one.model) for one in found] == [
            ("blue", 2, "colours"),
            ("green", 2, "colours"),
        ]
        assert [one.label for one in client.features([[1, 1, 1, 1], [-1, 0, 0, 0]], model="numbers")] == ["yes", "no"]
        told = client.models()
        assert [(one.name, one.ready, one.kind) for one in told.models] == [
            ("digits", True, "images"),
            ("colours", True, "images"),
            ("others", True, "images"),
            ("numbers", True, "features"),
        ]
        versions = {one.name: one.version for one in told.models}
        assert told.ensembles == {
            "mean": {"colours": 0.5, "others": 0.5},
            "weighted": {"colours": 0.75, "others": 0.25},
        }
        (mean,) = client.predict(RED, ensemble="mean")
        assert (mean.label, mean.version) == ("red", f"{versions['colours']}+{versions['others']}")
        good, bad = client.each([RED, b"no image"])
        assert isinstance(good, Prediction)
        assert isinstance(bad, Refused)
        assert bad.reason.startswith("not an image of a known format")
        # More than the eight files that this server takes in one request.
        assert [one.label for one in client.predict([RED, BLUE] * 9)] == ["red", "blue"] * 9


def test_our_client_is_told_why_a_model_is_not_there(tmp_path: Path):
    with Server(tmp_path, (), wait=False) as server, Client(server.url, retries=0) as client:
        server.until_it_answers()
        end = time.monotonic() + 20
        while (found := client.models()).models[0].refused is None:
            assert time.monotonic() < end
        (model,) = found.models
        assert (model.name, model.ready, model.version, model.kind, model.classes) == ("model", False, None, None, ())
        assert str(model.refused).startswith("models/latest/model.onnx: no such file")
        assert not client.ready()
        with pytest.raises(ServerError, match=r"503 .*no such file"):
            client.predict(RED)


# What there is not.


@pytest.mark.parametrize("path", ["/models/none/predict", "/ensembles/none/predict", "/ensembles/colours/predict"])
def test_an_unknown_model_is_told_where_to_look(served: Server, path: str):
    assert "GET /models lists" in problem(image(served, path), 404)


def test_an_ensemble_is_no_model(served: Server):
    problem(image(served, "/models/mean/predict"), 404)
    problem(served.get("/models/mean"), 404)
    problem(served.get("/models/none"), 404)


@pytest.mark.parametrize("path", ["/nowhere", "/predict/x", "/models/a/b/predict", "/metrics", "/redoc", "/noop"])
def test_an_unknown_route_is_a_problem_too(served: Server, path: str):
    assert problem(served.get(path), 404) == f"no route {path}; GET /docs shows them"
    problem(image(served, path), 404)


def test_a_method_that_a_route_does_not_take_is_told_which_it_does(served: Server):
    for method, path, allowed in (
        ("GET", "/predict", "POST"),
        ("PUT", "/models/colours/predict", "POST"),
        ("OPTIONS", "/predict", "POST"),
        ("DELETE", "/models", "GET"),
        ("POST", "/health", "GET"),
    ):
        answer = served.ask(method, path)
        assert problem(answer, 405) == f"{method} is not taken here; allowed: {allowed}"
        assert answer.headers["Allow"] == allowed


def test_what_can_be_got_can_be_asked_for_its_head_alone(served: Server):
    for path in ("/", "/models", "/version", "/openapi.json"):
        head, whole = served.ask("HEAD", path), served.get(path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    answer = served.ask("HEAD", "/predict")
    assert (answer.status, answer.headers["Allow"], answer.body) == (405, "POST", b"")


def test_every_answer_has_an_id_and_the_callers_own_where_it_is_one(served: Server):
    for path in ("/health", "/predict", "/nowhere", "/models"):
        assert len(served.get(path).headers["X-Request-ID"]) == 32
        assert served.get(path, **{"X-Request-ID": "my-id.1"}).headers["X-Request-ID"] == "my-id.1"
        assert served.get(path, **{"X-Request-ID": "no id"}).headers["X-Request-ID"] != "no id"


# A server with keys, other sites' pages, members that disagree about the order of classes, and features asked by default.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that asks for the key that comes with it."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    key, line = new_key("alice")
    (folder / "keys").write_text(line)
    write_model(folder / "first.onnx", ("blue", "green", "red"))
    # The head stays: what it calls red is blue here, and so on.
    write_model(folder / "second.onnx", ("red", "blue", "green"), scale=2.0)
    write_features(folder / "one.onnx")
    write_features(folder / "two.onnx", ("yes", "no"))
    (folder / "serve.yaml").write_text(
        "models: {first: first.onnx, second: second.onnx, one: one.onnx, two: two.onnx}\n"
        "ensembles: {turned: {members: {first: 1, second: 4}}, rows: [one, two]}\n"
        "default: turned\naliases: {/alias: first}\nkeys: {file: keys}\ncors: ['https://page.example']\ndrain_seconds: 0\n"
    )
    with Server(folder, ("--config", "serve.yaml")) as server:
        yield server, key


def test_every_route_but_health_and_its_description_asks_for_the_key(guarded: tuple[Server, str]):
    server, key = guarded
    told = server.get("/openapi.json").json
    for path, operations in told["paths"].items():
        concrete = path.replace("{name}", "first").replace("{version}", "x")
        for method in operations:
            answer = server.ask(method.upper(), concrete)
            if "health" in path:
                assert answer.status == 200
                continue
            assert answer.status == 401, path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert server.ask(method.upper(), concrete, headers={"X-API-Key": key}).status != 401
            assert server.ask(method.upper(), concrete, headers={"X-API-Key": f"{key}x"}).status == 401
    assert server.get("/nowhere").status == 401
    assert image(server, "/alias").status == 401
    assert image(server, "/alias", Authorization=f"Bearer {key}").status == 200


def test_the_log_names_the_key_and_never_shows_it(guarded: tuple[Server, str]):
    server, key = guarded
    answer = server.send("/alias?top=2", ("secret-name.png", BLUE), Authorization=f"Bearer {key}")
    server.get("/models", **{"X-API-Key": "wrong-key"})
    request_id = answer.headers["X-Request-ID"]

    def found() -> list[dict[str, object]]:
        return [line for line in server.lines() if line.get("id") == request_id]

    for _ in range(200):
        if found():
            break
        server.get("/health")
    (line,) = found()
    assert (line["key"], line["route"], line["model"], line["images"]) == ("alice", "/alias", "first", 1)
    text = server.log.read_text()
    assert not any(word in text for word in (key, "wrong-key", "secret-name", "top=2"))


def test_members_with_other_orders_of_classes_are_added_up_by_name(guarded: tuple[Server, str]):
    server, key = guarded
    with_key = {"X-API-Key": key}
    first, second, turned = (
        chances(image(server, f"{path}?top=3", MIXED, **with_key))
        for path in ("/models/first/predict", "/models/second/predict", "/predict")
    )
    for label in COLOURS:
        assert turned[label] == close(0.2 * first[label] + 0.8 * second[label])
    assert max(first, key=first.__getitem__) != max(turned, key=turned.__getitem__)


def test_an_ensemble_of_features_is_asked_with_rows(guarded: tuple[Server, str]):
    server, key = guarded
    body = b'{"features": [[1, 0, 0, 0]]}'
    answer = image(server, "/ensembles/rows/predict?top=2", body, "application/json", **{"X-API-Key": key})
    assert chances(answer) == {"no": 0.5, "yes": 0.5}


def test_a_page_of_an_allowed_site_may_ask_and_read_refusals_too(guarded: tuple[Server, str]):
    server, _ = guarded
    origin = {"Origin": "https://page.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = server.ask("OPTIONS", "/predict", headers={**origin, **asks})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    answer = server.ask("POST", "/predict", BLUE, origin)
    assert problem(answer, 401)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://page.example.evil.example", "http://page.example", "null"]
)
def test_a_page_of_another_site_may_not(guarded: tuple[Server, str], origin: str):
    server, key = guarded
    headers = {"Origin": origin, "X-API-Key": key}
    answer = server.ask("OPTIONS", "/predict", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert answer.status == 400
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Access-Control-Allow-Origin" not in server.ask("GET", "/models", headers=headers).headers


def test_without_a_list_no_other_site_may_ask(served: Server):
    answer = served.ask(
        "OPTIONS", "/predict", headers={"Origin": "https://x.org", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status == 405
    assert "Access-Control-Allow-Origin" not in served.get("/health", Origin="https://x.org").headers
