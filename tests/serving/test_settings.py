"""serve.yaml: every mistake in one line that names the key, the value and what to do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops.errors import MlopsError
from mlops.serving.settings import Settings, read_settings


def write(folder: Path, text: str) -> Path:
    file = folder / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(folder: Path, text: str) -> list[str]:
    """What is said of a file, without its path."""
    file = write(folder, text)
    with pytest.raises(MlopsError) as caught:
        read_settings(file).check_links()
    assert not any("\n" in problem for problem in caught.value.problems)
    return [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("limts: {}", "limts: no such setting"),
        ("limits: {bodybytes: 5}", "limits.bodybytes: no such setting"),
        ("keys: {secret: x}", "keys.secret: no such setting"),
        ("limits: 5", "limits=5: must be a map of settings"),
        ("models: [a.onnx]", "models: must be a map of settings"),
        ("- models", "must be a map of settings"),
        ("limits: {body_bytes: 1023}", "limits.body_bytes=1023: input should be greater than or equal to 1024"),
        ("limits: {pixels: 0}", "limits.pixels=0: input should be greater than or equal to 1"),
        ("limits: {files: 1001}", "limits.files=1001: input should be less than or equal to 1000"),
        ("limits: {queue: 1.5}", "limits.queue=1.5: input should be a valid integer"),
        ("limits: {seconds: .nan}", "limits.seconds=nan: input should be less than or equal to 3600"),
        ("limits: {seconds: 0}", "limits.seconds=0: input should be greater than 0"),
        (
            "limits: {body_bytes: 3000, waiting_bytes: 2000}",
            "limits: waiting_bytes=2000: must be at least body_bytes=3000",
        ),
        ("limits: {formats: [SVG]}", "limits.formats: must be some of PNG, JPEG, PPM, BMP, GIF, TIFF, WEBP"),
        ("limits: {formats: []}", "limits.formats: must be some of PNG, JPEG, PPM, BMP, GIF, TIFF, WEBP"),
        ("limits: {formats: [[PNG]]}", "limits.formats: must be some of PNG, JPEG, PPM, BMP, GIF, TIFF, WEBP"),
        ("batch: true", "batch=True: input should be a valid integer"),
        ("batch: 0", "batch=0: input should be greater than or equal to 1"),
        ("drain_seconds: '1'", "drain_seconds='1': input should be a valid number"),
        ("drain_seconds: -1", "drain_seconds=-1: input should be greater than or equal to 0"),
        ("reload_seconds: .inf", "reload_seconds=inf: input should be less than or equal to 3600"),
        ("log: all", "log='all': input should be 'requests' or 'problems'"),
        ("keys: {rate: 0}", "keys.rate=0: input should be greater than 0"),
        ("keys: {rate: 5, burst: 0.5}", "keys.burst=0.5: input should be greater than or equal to 1"),
        ("keys: {burst: 5}", "keys: burst=5: limits nothing without rate; add one"),
        ("keys: {file: 5}", "keys.file=5: input should be a valid string"),
        (
            "cors: ['*']",
            "cors: '*': must be an origin, such as https://example.org, without a path or a *",
        ),
        (
            "cors: ['https://*.example.org']",
            "cors: 'https://*.example.org': must be an origin, such as https://example.org, without a path or a *",
        ),
        (
            "cors: ['https://example.org/']",
            "cors: 'https://example.org/': must be an origin, such as https://example.org, without a path or a *",
        ),
        ("cors: ['null']", "cors: 'null': must be an origin, such as https://example.org, without a path or a *"),
        ("cors: 'https://example.org'", "must be a list of origins, such as https://example.org"),
        ("models: {../x: a.onnx}", "'../x': must be 1 to 64 letters of A-Z a-z 0-9 . _ -, and begin with none of . -"),
        ("models: {'': a.onnx}", "'': must be 1 to 64 letters of A-Z a-z 0-9 . _ -, and begin with none of . -"),
        ("models: {1: a.onnx}", "models.1.[key]=1: input should be a valid string"),
        ("models: {a: 1}", "models.a=1: input should be a valid string"),
        ("models: {a: a.onnx, b: b.onnx}\nensembles: {a: [a, b]}", "a: is a model and an ensemble; rename one"),
        (
            "ensembles: {x: [a]}",
            "ensembles.x.members: must be two or more models: a list, or a map of names to weights",
        ),
        ("ensembles: {x: [a, a]}", "ensembles.x.members: names a model twice; give it a weight instead"),
        ("ensembles: {x: [[a], [b]]}", "ensembles.x.members: must be a list of names, or a map of names to weights"),
        ("ensembles: {x: {members: {a: 0, b: 1}}}", "ensembles.x.members.a=0.0: input should be greater than 0"),
        ("ensembles: {x: {members: {a: .inf, b: 1}}}", "ensembles.x.members.a=inf: input should be a finite number"),
        ("ensembles: {x: {members: {a: true, b: 1}}}", "ensembles.x.members.a=True: input should be a valid number"),
        ("models: {m: m}\nensembles: {x: [m, n]}", "ensembles.x.members: n: is no model; known: m, x"),
        ("models: {m: m}\ndefault: n", "default: n: is no model or ensemble; known: m"),
        ("models: {m: m}\naliases: {/a: n}", "aliases./a: n: is no model or ensemble; known: m"),
        ("aliases: {a: m}", "aliases: 'a': must be a path such as /image_classify"),
        ("aliases: {/: m}", "aliases: '/': must be a path such as /image_classify"),
        ("aliases: {/a b: m}", "aliases: '/a b': must be a path such as /image_classify"),
        ("aliases: {'/a{b}': m}", "aliases: '/a{b}': must be a path such as /image_classify"),
        ("aliases: {/a/../b: m}", "aliases: '/a/../b': must be a path such as /image_classify"),
        ("aliases: {/a: {to: m, field: ''}}", "aliases: /a: field: must not be empty"),
        ("aliases: {/a: {to: m, fild: x}}", "aliases./a.fild: no such setting"),
        ("aliases: {/a: {}}", "aliases./a.to: field required"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_to_do(tmp_path: Path, text: str, problem: str):
    (told,) = problems(tmp_path, text)
    assert told.endswith(problem)


@pytest.mark.parametrize(
    "path",
    ["/predict", "/predict/", "/health", "/health/x", "/models/a/predict", "/v2/models", "/docs", "/openapi.json"],
)
def test_an_alias_cannot_take_a_route_of_the_server(tmp_path: Path, path: str):
    (told,) = problems(tmp_path, f"models: {{m: m}}\naliases: {{{path}: m}}")
    assert told == f"aliases: {path}: is a route of this server already; choose another"


@pytest.mark.parametrize("text", ["models: {a: x, b: y, a: z}", "aliases:\n  /a: b\n  /a: c\n", "batch: 1\nbatch: 2"])
def test_a_key_that_is_there_twice_is_refused_instead_of_half_forgotten(tmp_path: Path, text: str):
    (told,) = problems(tmp_path, text)
    assert "is there twice" in told


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "x: 2026-99-99",
        "!!timestamp x",
        "x: !!int abc",
        "!!python/object/apply:os.system ['true']",
        "? [a]\n: b",
        "<<: 5",
        "x: \x00",
        "a: 1\n---\nb: 2",
        "[" * 5000,
    ],
)
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path: Path, text: str):
    (told,) = problems(tmp_path, text)
    assert told.startswith("cannot be read as YAML: ")


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    assert len(problems(tmp_path, "batch: 0\nlog: x\nlimits: {pixels: 0, files: 0}\nmore: 1")) == 5


def test_a_file_that_is_missing_or_none_is_told(tmp_path: Path):
    with pytest.raises(MlopsError, match="no such file"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(MlopsError):
        read_settings(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"models: {\xe9: a}")
    with pytest.raises(MlopsError, match=r"latin\.yaml: cannot be read as YAML"):
        read_settings(tmp_path / "latin.yaml")


def test_short_forms_mean_the_long_ones(tmp_path: Path):
    text = """
    models: {a: a.onnx, b: b.onnx}
    ensembles: {both: [a, b], more: {members: {a: 3, b: 1}}}
    aliases: {/short: both, /long/: {to: a, field: data}}
    cors: ["https://example.org", "http://localhost:3000"]
    """
    found = read_settings(write(tmp_path, text))
    found.check_links()
    assert found.ensembles["both"].members == {"a": 1.0, "b": 1.0}
    assert found.ensembles["more"].members == {"a": 3.0, "b": 1.0}
    assert (found.aliases["/short"].to, found.aliases["/short"].field) == ("both", "file")
    assert (found.aliases["/long/"].to, found.aliases["/long/"].field) == ("a", "data")
    assert found.cors == ("https://example.org", "http://localhost:3000")


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str):
    assert read_settings(write(tmp_path, text)) == Settings() == read_settings(None)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    assert read_settings(write(tmp_path, "\ufeffbatch: 4")).batch == 4


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_no_value_of_any_key_gets_past_as_anything_but_settings_or_a_problem(value: object):
    from pydantic import ValidationError

    for key in Settings.model_fields:
        for told in ({key: value}, {key: {"a": value}}, {key: {"a": {"members": value}}}, {key: {"/a": {"to": value}}}):
            try:
                found = Settings.model_validate(told)
            except ValidationError:
                continue
            assert isinstance(found, Settings)
