import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mlops.errors import MlopsError
from mlops.models import SignNet
from mlops.targets import MODELS
from mlops.training.start import Start, check_weights, load_start, read_start

SMALL = "torchvision.models.squeezenet1_1"
IMAGENET_MEAN = [0.485, 0.456, 0.406]


def node(weights: str | None, target: str = SMALL, **parameters: Any) -> dict[str, Any]:
    return {"_target_": target, "weights": weights, **parameters}


def save(path: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of the files in `folder`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """squeezenet1_1's published file, served from here in the place of its home."""
    torch.manual_seed(1)
    (tmp_path / "server").mkdir()
    file = save(tmp_path / "server" / "made", torchvision.models.squeezenet1_1())
    file = file.rename(file.with_name(f"squeezenet1_1-{sha256(file)[:8]}.pth"))
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    with serving(file.parent) as address:
        before = weights.url
        object.__setattr__(weights, "url", f"{address}/{file.name}")
        yield file
        object.__setattr__(weights, "url", before)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_published_weights_are_downloaded_once_and_the_head_is_replaced(name: str, published: Path, cache: Path):
    start = read_start(node(name), MODELS)
    assert start is not None
    assert start.describe() == {"weights": "SqueezeNet1_1_Weights.IMAGENET1K_V1", "sha256": sha256(published)}
    assert start.mean == IMAGENET_MEAN
    torch.manual_seed(2)
    model = torchvision.models.squeezenet1_1(num_classes=5)
    head = model.classifier[1].weight.clone()
    load_start(model, start, ["a", "b", "c", "d", "e"])
    assert torch.equal(model.classifier[1].weight, head)
    backbone = [name for name in model.state_dict() if not name.startswith("classifier.1.")]
    assert all(torch.equal(model.state_dict()[name], start.state_dict[name]) for name in backbone)
    published.unlink()
    assert read_start(node(name), MODELS) is not None  # out of the cache
    assert [path.name for path in cache.iterdir()] == [published.name]


def test_a_download_that_is_not_what_its_name_says_is_refused_and_not_kept(published: Path, cache: Path):
    published.write_bytes(published.read_bytes()[:-1] + b"?")
    with pytest.raises(MlopsError, match=r"model\.weights=DEFAULT: cannot be downloaded .* invalid hash value"):
        read_start(node("DEFAULT"), MODELS)
    assert list(cache.iterdir()) == []


def test_without_a_network_one_line_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch):
    weights = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    before = weights.url
    object.__setattr__(weights, "url", "http://127.0.0.1:9/squeezenet1_1-b8a52dc0.pth")  # nobody listens there
    with pytest.raises(MlopsError) as caught:
        read_start(node("DEFAULT"), MODELS)
    object.__setattr__(weights, "url", before)
    (line,) = caught.value.problems
    assert line.startswith("model.weights=DEFAULT: cannot be downloaded from http://127.0.0.1:9/")
    assert "bring the file squeezenet1_1-b8a52dc0.pth and set model.weights=PATH" in line


def test_a_file_brought_by_hand_is_scaled_as_the_published_one(tmp_path: Path):
    file = save(tmp_path / "brought.pth", torchvision.models.squeezenet1_1())
    start = read_start(node(str(file)), MODELS)
    assert start is not None
    assert start.mean == IMAGENET_MEAN
    assert start.sha256 == sha256(file)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_the_wrappings_of_other_trainers_are_taken_off(key: str, tmp_path: Path):
    model = SignNet(num_classes=3, width=4)
    torch.save({key: {f"module.{n}": t for n, t in model.state_dict().items()}, "epoch": 3}, tmp_path / "other.pth")
    start = read_start(node(str(tmp_path / "other.pth"), "mlops.models.SignNet"), MODELS)
    assert start is not None
    assert set(start.state_dict) == set(model.state_dict())
    assert start.mean is None


def test_safetensors_are_read(tmp_path: Path):
    from safetensors.torch import save_file

    model = SignNet(num_classes=3, width=4)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    start = read_start(node(str(tmp_path / "w.safetensors"), "mlops.models.SignNet"), MODELS)
    assert start is not None
    assert torch.equal(start.state_dict["head.weight"], model.head.weight)


def test_old_names_in_the_published_densenets_are_understood(tmp_path: Path):
    model = torchvision.models.densenet121()
    old = {n.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): t for n, t in model.state_dict().items()}
    assert set(old) != set(model.state_dict())
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    start = read_start(node(str(tmp_path / "densenet121-a639ec97.pth"), "torchvision.models.densenet121"), MODELS)
    assert start is not None
    load_start(torchvision.models.densenet121(num_classes=2), start, ["a", "b"])


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path):
    file = save(tmp_path / "wide.pth", SignNet(num_classes=3, width=8))
    start = read_start(node(str(file), "mlops.models.SignNet"), MODELS)
    assert start is not None
    with pytest.raises(MlopsError) as caught:
        load_start(SignNet(num_classes=3, width=4), start, ["a", "b", "c"])
    (line,) = caught.value.problems
    assert line.startswith(f"model.weights={file}: do not fit SignNet: stem.0.weight is [8, 3, 3, 3], not [4, 3, 3, 3]")
    assert "and 4" in line or "more" in line


def test_weights_of_another_network_are_refused(tmp_path: Path):
    file = save(tmp_path / "squeezenet.pth", torchvision.models.squeezenet1_1())
    start = read_start(node(str(file), "mlops.models.SignNet"), MODELS)
    assert start is not None
    with pytest.raises(MlopsError, match=r"do not fit SignNet: no stem\.0\.weight"):
        load_start(SignNet(num_classes=3), start, ["a", "b", "c"])


@pytest.mark.parametrize("classes", [["a", "b"], ["b", "a"]])
def test_the_head_is_kept_only_where_a_checkpoint_was_trained_on_the_same_classes(classes: list[str]):
    donor, model = SignNet(num_classes=2, width=4), SignNet(num_classes=2, width=4)
    start = Start("x", "0", donor.state_dict(), classes=["a", "b"])
    load_start(model, start, classes)
    assert torch.equal(model.head.weight, donor.head.weight) == (classes == ["a", "b"])
    assert torch.equal(model.stem[0].weight, donor.stem[0].weight)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut", b"epoch,loss\n", b"running", bytes(100)])
def test_a_file_that_holds_no_weights_is_one_line(content: bytes, tmp_path: Path):
    (tmp_path / "w.pth").write_bytes(content)
    (tmp_path / "w.safetensors").write_bytes(content)
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(MlopsError, match="is no file of weights that can be read without running code"):
            read_start(node(str(tmp_path / name)), MODELS)


def test_a_file_that_would_run_code_does_not(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(MlopsError, match="without running code"):
        read_start(node(str(tmp_path / "trap.pth")), MODELS)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (node("IMAGENET1K_V7"), "nor published weights of this network (DEFAULT, IMAGENET1K_V1)"),
        (
            node("no/such/file.pth", "mlops.models.SignNet"),
            "is no file here, nor published weights of this network (none",
        ),
        (node("a9_in1k", "mlops.models.timm_model", model_name="resnet18"), "(DEFAULT, a1_in1k, a2_in1k"),
    ],
)
def test_unknown_weights_are_named_before_anything_is_downloaded(wrong: dict[str, Any], problem: str):
    (line,) = check_weights(wrong, MODELS)
    assert line.startswith(f"model.weights={wrong['weights']}: ")
    assert problem in line


def test_timms_weights_have_their_own_scaling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repo, name: asked.append((repo, name)) or str(tmp_path / "model.safetensors"),
    )
    target = node("DEFAULT", "mlops.models.timm_model", model_name="vit_tiny_patch16_224")
    start = read_start(target, MODELS)
    assert start is not None
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    assert start.mean == [0.5, 0.5, 0.5]
    assert start.weights == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    load_start(timm.create_model("vit_tiny_patch16_224", num_classes=3), start, ["a", "b", "c"])


def test_a_larger_network_of_the_same_family_is_refused(tmp_path: Path):
    # Everything that resnet18 has, resnet34 has as well, in the same shapes.
    file = save(tmp_path / "resnet34.pth", torchvision.models.resnet34())
    start = read_start(node(str(file), "torchvision.models.resnet18"), MODELS)
    assert start is not None
    with pytest.raises(MlopsError, match=r"do not fit ResNet: no layer1\.2\.conv1\.weight.* in the network"):
        load_start(torchvision.models.resnet18(num_classes=2), start, ["a", "b"])


def test_a_cached_file_that_is_not_what_its_name_says_is_refused(published: Path, cache: Path):
    assert read_start(node("DEFAULT"), MODELS) is not None
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes() + b"?")
    with pytest.raises(MlopsError, match=f"{file} is not what its name says; remove it"):
        read_start(node("DEFAULT"), MODELS)


def test_a_file_whose_scaling_cannot_be_known_takes_the_datas_own_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    import timm

    # timm publishes weights of this network that were trained with different scalings.
    name = "vit_base_patch16_224"
    target = node(str(tmp_path / "model.pth"), "mlops.models.timm_model", model_name=name)
    torch.save({"head.weight": torch.zeros(3, 768)}, tmp_path / "model.pth")
    assert len({timm.models.get_pretrained_cfg(full).mean for full in timm.list_pretrained(f"{name}.*")}) > 1
    start = read_start(target, MODELS)
    assert start is not None
    assert start.mean is None
    assert "your data's own mean and standard deviation are used" in caplog.text


def test_an_unknown_tag_in_the_name_of_a_network_is_one_line():
    (line,) = check_weights(node("DEFAULT", "mlops.models.timm_model", model_name="resnet18.a9"), MODELS)
    assert line.startswith("model.weights=DEFAULT: ")
