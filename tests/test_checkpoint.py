import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlops import checkpoint
from mlops.envelope import STORAGES
from mlops.errors import MlopsError
from mlops.models.build import build_model
from mlops.targets import MODELS, OPTIMIZERS
from samples import position, rewrite, story

NODE = {"_target_": "mlops.models.SignNet", "width": 8}
ALLOWED = MODELS | OPTIMIZERS


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(NODE, MODELS, num_classes=2, image_size=16, channels_last=True).eval()


@pytest.fixture
def path(tmp_path: Path, model: torch.nn.Module) -> Path:
    checkpoint.save(tmp_path / "best_model.pth", model.state_dict(), story())
    return tmp_path / "best_model.pth"


def test_what_is_saved_is_read_and_rebuilt_bit_for_bit(path: Path, model: torch.nn.Module):
    loaded = checkpoint.read(path)
    assert loaded.classes == ["cat", "dög"]
    assert loaded.config.model == NODE
    images = torch.randn(8, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(checkpoint.rebuild(loaded, ALLOWED)(images), model(images))


def test_metadata_is_plain_json_in_the_file_equal_to_the_pickled_copy(path: Path):
    with zipfile.ZipFile(path) as archive:
        as_json = json.loads(archive.read("archive/metadata.json"))
    pickled = torch.load(path, weights_only=True)
    del pickled["state_dict"]
    assert as_json == pickled == checkpoint.read_metadata(path)
    assert as_json["format"] == 1
    assert len(as_json["digest"]) == 64


def test_the_digests_are_those_that_the_documentation_describes(path: Path):
    """Made here from the words of docs/checkpoint.md, with nothing of ours but the file."""
    with zipfile.ZipFile(path) as archive:
        told = json.loads(archive.read("archive/metadata.json"))
    total = hashlib.sha256()
    for name, tensor in sorted(torch.load(path, weights_only=True)["state_dict"].items()):
        total.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert told["weights_digest"] == total.hexdigest()
    rest = {key: value for key, value in told.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert told["digest"] == hashlib.sha256(text.encode()).hexdigest()


def test_reading_metadata_imports_no_torch(path: Path):
    code = f"import sys; from mlops.checkpoint import read_metadata; from pathlib import Path; read_metadata(Path({str(path)!r})); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path: Path):
    kinds = [kind for kind, _ in STORAGES.values()]
    assert len(kinds) == 12
    whole = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {kind: torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds} | {
        "number": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
        "last axis first": whole.to(memory_format=torch.channels_last),
        "a part": whole[:, 1],
        "the whole twice": whole.view(-1),
        "one value, wide": torch.ones(1).expand(5),
        "conjugate": torch.ones(2, dtype=torch.complex64).mul(1j).conj(),
    }
    checkpoint.save(tmp_path / "x.pth", tensors, story(resume=position()), {"whole": whole, "negative": -whole})
    found = checkpoint.read(tmp_path / "x.pth")
    assert found.state_dict.keys() == tensors.keys()
    assert found.resume_tensors.keys() == {"whole", "negative"}
    for name, tensor in tensors.items():
        assert torch.equal(found.state_dict[name], tensor), name
        assert found.state_dict[name].dtype == tensor.dtype
    assert found.state_dict["last axis first"].stride() == tensors["last axis first"].stride()
    assert torch.equal(found.resume_tensors["negative"], -whole)


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.uint16)], ids=["sparse", "uint16"]
)
def test_a_tensor_that_cannot_be_kept_is_named_before_anything_is_written(tmp_path: Path, tensor: torch.Tensor):
    with pytest.raises(MlopsError, match=r"cannot keep the tensor mask: it is torch\."):
        checkpoint.save(tmp_path / "x.pth", {"mask": tensor}, story())
    assert list(tmp_path.iterdir()) == []


def test_a_last_pth_before_its_first_step_holds_nothing_to_go_on_from_but_its_place(
    tmp_path: Path, model: torch.nn.Module
):
    told = story(resume=position(), metrics={}, history=[], epoch_digests=[], epoch=0, step=0)
    checkpoint.save(tmp_path / "last.pth", model.state_dict(), told)
    found = checkpoint.read(tmp_path / "last.pth")
    assert found.metadata["resume"] == position()
    assert found.resume_tensors == {}


def test_a_state_to_go_on_from_without_what_was_found_is_named(tmp_path: Path, model: torch.nn.Module):
    told, found = story(resume=position(step=2)), {"epoch.losses": torch.zeros(2)}
    checkpoint.save(tmp_path / "last.pth", model.state_dict(), told, found)
    with pytest.raises(MlopsError, match=r"its state to go on from lacks epoch\.predictions, epoch\.labels$"):
        checkpoint.read(tmp_path / "last.pth")


def test_changed_weights_are_found(path: Path):
    def flip(name: str, data: bytes) -> bytes:
        return data[:9] + bytes([data[9] ^ 1]) + data[10:] if name == "archive/data/0" else data

    rewrite(path, flip)
    checkpoint.read_metadata(path)  # which does not read the weights
    with pytest.raises(MlopsError, match="does not match its digest"):
        checkpoint.read(path)


def test_changed_tensors_to_go_on_from_are_found(tmp_path: Path, model: torch.nn.Module):
    path = tmp_path / "last.pth"
    more = {"optimizer.0.exp_avg": torch.full((5,), 77.0)}
    checkpoint.save(path, model.state_dict(), story(resume=position()), more)
    momentum = torch.full((5,), 77.0).numpy().tobytes()
    rewrite(path, lambda name, data: data[:19] + b"\0" if data == momentum else data)
    with pytest.raises(MlopsError, match="does not match its digest"):
        checkpoint.read(path)


@pytest.mark.parametrize("open_it", [checkpoint.read, checkpoint.read_metadata])
def test_changed_metadata_is_found_with_or_without_torch(path: Path, open_it: Any):
    rewrite(path, lambda name, data: data.replace(b'"cat"', b'"cow"') if name.endswith("metadata.json") else data)
    with pytest.raises(MlopsError, match="does not match its digest"):
        open_it(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"epoch":1,', b'"epoch":1.0,'), (b'"threads":1,', b'"threads":true,'), (b'"step":7,', b'"step":7,"step":7,')],
)
def test_metadata_of_other_types_is_not_the_same(path: Path, before: bytes, after: bytes):
    """1, true and 1.0 are equal to Python."""

    def other(name: str, data: bytes) -> bytes:
        if not name.endswith("metadata.json"):
            return data
        assert before in data
        told = json.loads(data.replace(before, after))
        return data.replace(before, after).replace(told["digest"].encode(), checkpoint.digest(told).encode())

    rewrite(path, other)
    with pytest.raises(MlopsError):
        checkpoint.read(path)


def test_a_later_format_is_refused_with_the_version_that_reads_it(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    checkpoint.save(tmp_path / "later.pth", model.state_dict(), story(code={"version": "9.9.0"}))
    monkeypatch.undo()
    for open_it in (checkpoint.read, checkpoint.read_metadata):
        with pytest.raises(MlopsError, match=r"format 2 is later than 1, .* read it with mlops 9\.9\.0"):
            open_it(tmp_path / "later.pth")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_cut_short_is_one_line(path: Path, share: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MlopsError, match="is not a checkpoint of this project"):
        checkpoint.read(path)


def test_what_is_no_checkpoint_is_one_line(tmp_path: Path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pth")
    for name in ("text.pth", "plain.pth"):
        with pytest.raises(MlopsError, match="is not a checkpoint of this project"):
            checkpoint.read(tmp_path / name)
        assert not checkpoint.is_checkpoint(tmp_path / name)
    with pytest.raises(MlopsError, match="no such file; train first"):
        checkpoint.read(tmp_path / "none.pth")
    with pytest.raises(MlopsError, match="is a folder, not a checkpoint; name the file in it"):
        checkpoint.read(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(MlopsError, match="is a device or a pipe, not a file"):
        checkpoint.read_metadata(tmp_path / "pipe.pth")
    assert not checkpoint.is_checkpoint(tmp_path / "pipe.pth")


def test_a_target_that_is_not_allowed_is_not_built(tmp_path: Path, model: torch.nn.Module):
    values = story()
    values["config"]["model"] = {"_target_": "builtins.open", "file": str(tmp_path / "planted"), "mode": "w"}
    checkpoint.save(tmp_path / "bad.pth", model.state_dict(), values)
    with pytest.raises(MlopsError, match=r"model\._target_=builtins\.open: is not an allowed name"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "bad.pth"), ALLOWED)
    assert not (tmp_path / "planted").exists()


def test_rebuilding_imports_no_optimizer(tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\nclass Optimizer: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    values = story()
    values["config"]["training"]["optimizer"] = {"_target_": "theirs.Optimizer"}
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), values)
    loaded = checkpoint.read(tmp_path / "x.pth")
    with pytest.raises(MlopsError, match=r"training\.optimizer\._target_=theirs\.Optimizer: is not an allowed name"):
        checkpoint.rebuild(loaded, ALLOWED)
    checkpoint.rebuild(loaded, {*ALLOWED, "theirs.Optimizer"})
    assert not (tmp_path / "planted").exists()


def test_a_loaded_config_is_never_resolved_again(
    tmp_path: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "hunter2")
    values = story()
    values["config"]["tracking"]["project"] = "${oc.env:SECRET}"
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), values)
    assert checkpoint.read(tmp_path / "x.pth").config.tracking.project == "${oc.env:SECRET}"


def test_all_in_which_weights_do_not_fit_the_model_is_listed(tmp_path: Path, model: torch.nn.Module):
    weights = dict(model.state_dict())
    weights["stem.0.weight"] = torch.zeros(4, 3, 3, 3)
    weights["extra"] = torch.zeros(1)
    weights["head.bias"] = weights["head.bias"].double()
    del weights["stem.1.bias"]
    checkpoint.save(tmp_path / "x.pth", weights, story(classes=["one", "two", "three"]))
    with pytest.raises(MlopsError) as caught:
        checkpoint.rebuild(checkpoint.read(tmp_path / "x.pth"), ALLOWED)
    assert caught.value.problems == [
        "checkpoint: its weights lack stem.1.bias",
        "checkpoint: its weights hold extra, which its model does not have",
        "checkpoint: its weights do not fit its model: stem.0.weight is [4, 3, 3, 3], not [8, 3, 3, 3], "
        "head.weight is [2, 32], not [3, 32], head.bias is [2], not [3]",
        "checkpoint: it names 3 classes, but its head head.weight gives 2",
    ]


def test_a_network_that_names_its_own_number_of_classes_is_held_against_the_names(
    tmp_path: Path, model: torch.nn.Module
):
    values = story(classes=["one", "two", "three"])
    values["config"]["model"]["num_classes"] = 2
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), values)
    with pytest.raises(MlopsError, match=r"gives \(2, 2\) for 2 images, but there are 3 classes"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "x.pth"), ALLOWED)


def test_a_config_that_asks_for_more_memory_than_there_is_takes_none(tmp_path: Path, model: torch.nn.Module):
    values = story()
    values["config"]["model"]["width"] = 2**20  # some 10**14 weights
    checkpoint.save(tmp_path / "x.pth", model.state_dict(), values)
    with pytest.raises(MlopsError, match="its weights do not fit its model"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "x.pth"), ALLOWED)


def test_weights_that_are_not_finite_are_named(tmp_path: Path, model: torch.nn.Module):
    weights = dict(model.state_dict())
    weights["head.bias"] = torch.tensor([1.0, float("nan")])
    weights["stem.1.weight"] = torch.full((8,), float("nan"))
    checkpoint.save(tmp_path / "nan.pth", weights, story())
    with pytest.raises(MlopsError, match=r"not finite \(NaN\) in stem\.1\.weight, head\.bias"):
        checkpoint.read(tmp_path / "nan.pth")
    weights = dict(model.state_dict()) | {"head.bias": torch.tensor([1.0, float("inf")])}
    checkpoint.save(tmp_path / "inf.pth", weights, story())
    with pytest.raises(MlopsError, match=r"not finite in head\.bias"):
        checkpoint.rebuild(checkpoint.read(tmp_path / "inf.pth"), ALLOWED)


def test_a_file_that_is_replaced_again_and_again_is_whole_at_every_read(path: Path, model: torch.nn.Module):
    ended = threading.Event()

    def replace() -> None:
        while not ended.is_set():
            checkpoint.save(path, model.state_dict(), story())

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        digests = {checkpoint.read(path).metadata["digest"] for _ in range(30)}
    finally:
        ended.set()
        writer.join()
    assert len(digests) == 1


def test_of_any_flipped_bit_nothing_comes_but_one_line_or_the_very_same_values(path: Path):
    whole = path.read_bytes()
    wanted = checkpoint.read(path)
    rng = np.random.default_rng(0)
    # Anywhere, and, where there is structure, more often: the first and last bytes, and around each of the ZIP's marks.
    marks = [i for i in range(len(whole) - 1) if whole[i : i + 2] == b"PK"]
    places = {*rng.integers(0, len(whole), 250).tolist(), *range(40), *range(len(whole) - 30, len(whole))}
    places |= {min(mark + int(rng.integers(0, 46)), len(whole) - 1) for mark in rng.choice(marks, 200)}
    found = 0
    for place in sorted(places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(flipped)
        try:
            loaded = checkpoint.read(path)
        except MlopsError:
            found += 1
            continue
        assert checkpoint.digest(loaded.metadata) == wanted.metadata["digest"]
        assert checkpoint.tensors_digest(loaded.state_dict) == wanted.metadata["weights_digest"]
    assert found > len(places) / 2


class Forged(dict[str, Any]):
    """What `torch.save` is to write, beside a metadata.json that fits it."""

    def write(self, path: Path) -> Path:
        with path.open("wb") as file:
            torch.save(dict(self), file)
        told = {key: value for key, value in self.items() if key not in ("state_dict", "resume_tensors")}
        with zipfile.ZipFile(path, "a") as archive:
            text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            archive.writestr("archive/metadata.json", text)
        return path


def forged(state_dict: Any, **more: Any) -> Forged:
    told = {"format": 1, **story(), "weights_digest": "0" * 64, **more}
    told["digest"] = checkpoint.digest({key: value for key, value in told.items() if key != "resume_tensors"})
    return Forged(told, state_dict=state_dict)


@pytest.mark.filterwarnings("ignore:Sparse|.*quantiz.*|.*nested.*:UserWarning")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(1).expand(10**12), "no dense tensor|not a dense tensor with bytes of its own"),
        (torch.zeros(8)[::2], "not a dense tensor with bytes of its own"),
        (torch.zeros(8)[4:], "not a dense tensor with bytes of its own"),
        (torch.eye(3).to_sparse(), "its pickle names"),
        (torch.zeros(3, device="meta"), "its pickle names|CPU"),
        (torch.nn.Parameter(torch.zeros(3)), "its pickle names"),
        (torch.zeros(3, dtype=torch.uint16), "its pickle names"),
        (bytearray(10), "its pickle"),
        ({1, 2}, "its pickle"),
        (b"bytes", "its pickle"),
        (3, "not a dense tensor"),
    ],
    ids=[
        "expanded",
        "every second",
        "a part",
        "sparse",
        "meta",
        "parameter",
        "uint16",
        "bytearray",
        "set",
        "bytes",
        "3",
    ],
)
def test_what_is_no_plain_dense_tensor_is_refused_before_torch_reads_it(
    tmp_path: Path, value: Any, said: str, monkeypatch: pytest.MonkeyPatch
):
    path = forged({"w": value}).write(tmp_path / "x.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    with pytest.raises(MlopsError, match=said):
        checkpoint.read(path)


def test_tensors_that_share_their_bytes_are_refused(tmp_path: Path):
    tensor = torch.zeros(3)
    path = forged({"a": tensor, "b": tensor}).write(tmp_path / "x.pth")
    with pytest.raises(MlopsError, match="its weight 'b' is not a dense tensor with bytes of its own"):
        checkpoint.read(path)


def test_weights_that_nothing_names_are_refused(tmp_path: Path):
    path = forged({"a": torch.zeros(3)}).write(tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/7", b"1234")
    with pytest.raises(MlopsError, match="holds weights without a name"):
        checkpoint.read(path)


def test_tensors_to_go_on_from_that_the_metadata_does_not_name_are_refused(tmp_path: Path):
    file = forged({"a": torch.zeros(3)}, resume_tensors={"b": torch.zeros(3)})
    with pytest.raises(MlopsError, match="holds weights without a name"):
        checkpoint.read(file.write(tmp_path / "x.pth"))


def in_place_of_the_pickle(path: Path, data: bytes) -> Path:
    return rewrite(path, lambda name, old: data if name == "archive/data.pkl" else old)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02]q\x00" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02h\x05.",
        pickle.dumps({"state_dict": {}}, protocol=5),
        b"\x80\x02}X\x0a\x00\x00\x00state_dict}s.trailing",
    ],
    ids=[
        "empty",
        "cut",
        "lists",
        "deep",
        "memo",
        "bytearray",
        "no arguments",
        "unknown memo",
        "protocol 5",
        "trailing",
    ],
)
def test_a_pickle_that_was_made_up_is_one_line(path: Path, data: bytes):
    with pytest.raises(MlopsError) as caught:
        checkpoint.read(in_place_of_the_pickle(path, data))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("depth", [40, 100_000])
def test_metadata_that_is_nested_too_deep_is_one_line(path: Path, depth: int):
    def deep(name: str, data: bytes) -> bytes:
        if not name.endswith("metadata.json"):
            return data
        text = data.replace(b'"reference":null', b'"reference":{"a":' + b"[" * depth + b"]" * depth + b"}")
        try:
            told = json.loads(text)
            return text.replace(told["digest"].encode(), checkpoint.digest(told).encode())
        except RecursionError:
            return text

    with pytest.raises(MlopsError) as caught:
        checkpoint.read_metadata(rewrite(path, deep))
    assert len(caught.value.problems) == 1
