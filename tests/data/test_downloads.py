"""Public data sets, for real through torchvision: tiny archives in the layouts of the real ones, from a server here."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as library
from PIL import Image

from conftest import Command
from mlops.config import DATASETS, DataConfig, SplitConfig
from mlops.data import downloads as downloading
from mlops.data.decode import Geometry, decode_all
from mlops.data.downloads import SETS, torchvision
from mlops.data.listing import Listing
from mlops.data.prepare import build_index, prepare
from mlops.errors import MlopsError
from mlops.image import decode
from samples import png

RNG = np.random.default_rng(0)
COLOUR = {size: RNG.integers(0, 256, (9, size, size, 3), dtype=np.uint8) for size in (32, 96)}
GREY = RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8)
TRAIN, TEST = [0, 1, 2, 0, 1, 2], [2, 1, 0]

Archives = dict[str, bytes]
Where = Callable[[str], tuple[str, str]]


def encoded(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(seed, (8, 6)))).save(buffer, kind)
    return buffer.getvalue()


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def mat(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays)
    return buffer.getvalue()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def cifar(name: str) -> tuple[Archives, dict[str, Any]]:
    hundred = name == "CIFAR100"
    flat = COLOUR[32].transpose(0, 3, 1, 2).reshape(9, -1)
    label = "fine_labels" if hundred else "labels"
    batches = [slice(0, 6)] if hundred else [slice(n, n + 1) for n in range(4)] + [slice(4, 6)]
    files = {
        entry[0]: pickle.dumps({"data": flat[part], label: TRAIN[part]})
        for entry, part in zip(getattr(library, name).train_list, batches, strict=True)
    }
    test = "test" if hundred else "test_batch"
    meta = "meta" if hundred else "batches.meta"
    files[test] = pickle.dumps({"data": flat[6:], label: TEST})
    files[meta] = pickle.dumps({"fine_label_names" if hundred else "label_names": ["ant", "bee", "cow"]})
    base = getattr(library, name).base_folder
    archive = packed({f"{base}/{file}": data for file, data in files.items()})
    (path,) = SETS[name].archives
    sums = {file: md5(data) for file, data in files.items()}
    return {path: archive}, {
        "train_list": [[entry[0], sums[entry[0]]] for entry in getattr(library, name).train_list],
        "test_list": [[test, sums[test]]],
        "meta": {**getattr(library, name).meta, "md5": sums[meta]},
        "url": f"SERVER/{path}",
        "tgz_md5": md5(archive),
    }


def mnist(name: str) -> tuple[Archives, dict[str, Any]]:
    def idx(array: Any) -> bytes:
        array = np.asarray(array, dtype=np.uint8)
        head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        return gzip.compress(head + array.tobytes())

    archives = dict(zip(SETS[name].archives, (idx(GREY[:6]), idx(TRAIN), idx(GREY[6:]), idx(TEST)), strict=True))
    resources = [(Path(path).name, md5(data)) for path, data in archives.items()]
    return archives, {"mirrors": [f"SERVER/{name}/raw/"], "resources": resources}


def svhn(name: str) -> tuple[Archives, dict[str, Any]]:
    # "10" stands for the digit 0 in these files.
    ids = {0: 10, 1: 1, 2: 2}
    archives = {
        f"{split}_32x32.mat": mat(X=COLOUR[32][part].transpose(1, 2, 3, 0), y=np.array([[ids[n]] for n in labels]))
        for split, part, labels in (("train", slice(0, 6), TRAIN), ("test", slice(6, 9), TEST))
    }
    split_list = {path.split("_")[0]: [f"SERVER/{path}", path, md5(data)] for path, data in archives.items()}
    return archives, {"split_list": split_list}


def stl10(name: str) -> tuple[Archives, dict[str, Any]]:
    def images(part: slice) -> bytes:
        return COLOUR[96][part].transpose(0, 3, 2, 1).tobytes()

    files = {
        "train_X.bin": images(slice(0, 6)),
        "train_y.bin": bytes(n + 1 for n in TRAIN),
        "unlabeled_X.bin": b"",
        "test_X.bin": images(slice(6, 9)),
        "test_y.bin": bytes(n + 1 for n in TEST),
        "class_names.txt": b"ant\nbee\ncow\n",
    }
    archive = packed({f"stl10_binary/{file}": data for file, data in files.items()})
    lists = {
        "train_list": [[n, md5(files[n])] for n in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")],
        "test_list": [[n, md5(files[n])] for n in ("test_X.bin", "test_y.bin")],
    }
    path = "stl10_binary.tar.gz"
    return {path: archive}, {"url": f"SERVER/{path}", "tgz_md5": md5(archive), **lists}


def dtd(name: str) -> tuple[Archives, dict[str, Any]]:
    files = {f"dtd/images/{c}/{c}_{n}.jpg": encoded(n, "JPEG") for c in ("banded", "dotted") for n in range(3)}
    for number, split in enumerate(("train", "val", "test")):
        files[f"dtd/labels/{split}1.txt"] = f"banded/banded_{number}.jpg\ndotted/dotted_{number}.jpg\n".encode()
    archive = packed(files)
    return {"dtd/dtd-r1.0.1.tar.gz": archive}, {"_URL": "SERVER/dtd/dtd-r1.0.1.tar.gz", "_MD5": md5(archive)}


def food(name: str) -> tuple[Archives, dict[str, Any]]:
    files = {f"food-101/images/{c}/{n}.jpg": encoded(n, "JPEG") for c in ("pie", "ramen") for n in range(2)}
    for number, split in enumerate(("train", "test")):
        files[f"food-101/meta/{split}.json"] = json.dumps({c: [f"{c}/{number}"] for c in ("pie", "ramen")}).encode()
    archive = packed(files)
    return {"food-101.tar.gz": archive}, {"_URL": "SERVER/food-101.tar.gz", "_MD5": md5(archive)}


def flowers(name: str) -> tuple[Archives, dict[str, Any]]:
    archives = {
        "flowers-102/102flowers.tgz": packed({f"jpg/image_{n:05}.jpg": encoded(n, "JPEG") for n in range(1, 7)}),
        "flowers-102/imagelabels.mat": mat(labels=[[1, 2, 1, 2, 1, 2]]),
        "flowers-102/setid.mat": mat(trnid=[[1, 2]], valid=[[3, 4]], tstid=[[5, 6]]),
    }
    keys = ("image", "label", "setid")
    names = {key: (Path(path).name, md5(data)) for key, (path, data) in zip(keys, archives.items(), strict=True)}
    return archives, {"_file_dict": names, "_download_url_prefix": "SERVER/flowers-102/"}


def pets(name: str) -> tuple[Archives, dict[str, Any]]:
    names = [f"{breed}_{n}" for breed in ("Abyssinian", "american_bulldog") for n in range(3)]
    lines = [f"{n} {1 + n.startswith('american')} {1 + n.startswith('american')} 1\n" for n in names]
    archives = {
        "oxford-iiit-pet/images.tar.gz": packed({f"images/{n}.jpg": encoded(i, "JPEG") for i, n in enumerate(names)}),
        "oxford-iiit-pet/annotations.tar.gz": packed(
            {
                "annotations/trainval.txt": "".join(lines[:2] + lines[3:5]).encode(),
                "annotations/test.txt": "".join([lines[2], lines[5]]).encode(),
            }
        ),
    }
    return archives, {"_RESOURCES": tuple((f"SERVER/{path}", md5(data)) for path, data in archives.items())}


def eurosat(name: str) -> tuple[Archives, dict[str, Any]]:
    files = {f"2750/{c}/{c}_{n}.jpg": encoded(n, "JPEG") for c in ("Forest", "River") for n in range(3)}
    return {"eurosat/EuroSAT.zip": zipped(files)}, {}


def signs(name: str) -> tuple[Archives, dict[str, Any]]:
    frames = [(c, t, f) for c in range(2) for t in range(2) for f in range(2)]
    training = {f"GTSRB/Training/{c:05}/{t:05}_{f:05}.ppm": encoded(100 * c + 10 * t + f, "PPM") for c, t, f in frames}
    for c in range(2):
        training[f"GTSRB/Training/{c:05}/GT-{c:05}.csv"] = b"Filename;ClassId\n"
    images = {f"GTSRB/Final_Test/Images/{n:05}.ppm": encoded(900 + n, "PPM") for n in range(2)}
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    table += "".join(f"{n:05}.ppm;8;6;0;0;8;6;{1 - n}\n" for n in range(2))
    return {
        "gtsrb/GTSRB-Training_fixed.zip": zipped(training),
        "gtsrb/GTSRB_Final_Test_Images.zip": zipped(images),
        "gtsrb/GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": table.encode()}),
    }, {}


MAKERS = {
    "CIFAR10": cifar,
    "CIFAR100": cifar,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "FashionMNIST": mnist,
    "Flowers102": flowers,
    "Food101": food,
    "GTSRB": signs,
    "KMNIST": mnist,
    "MNIST": mnist,
    "OxfordIIITPet": pets,
    "STL10": stl10,
    "SVHN": svhn,
}
ARRAYS = {"train": TRAIN, "test": TEST}
TWO = {"train": [0, 1], "test": [0, 1]}
LABELS: dict[str, dict[str | None, list[int]]] = {
    "DTD": {**TWO, "val": [0, 1]},
    "EuroSAT": {None: [0, 0, 0, 1, 1, 1]},
    "Flowers102": {**TWO, "val": [0, 1]},
    "Food101": {**TWO},
    "GTSRB": {"train": [0, 0, 0, 0, 1, 1, 1, 1], "test": [1, 0]},
    "OxfordIIITPet": {"train": [0, 0, 1, 1], "test": [0, 1]},
}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `cut` halves every answer, as a connection that breaks does."""

    files: Archives
    cut = False
    asked: set[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        data = self.server.files.get(self.path.lstrip("/"))
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if data is not None:
            self.server.asked.add(self.path)
            # torchvision asks once more beforehand, to follow redirections, and hangs up.
            with contextlib.suppress(OSError):
                self.wfile.write(data[: len(data) // 2] if self.server.cut else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server(("127.0.0.1", 0), Handler)
    served.asked = set()
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Archives]:
    """Have torchvision fetch a tiny data set of that name from the server here."""

    def point(name: str) -> Archives:
        archives, attributes = MAKERS[name](name)
        base = f"http://127.0.0.1:{server.server_port}"
        server.files = archives
        here = json.loads(json.dumps(attributes).replace("SERVER", base))
        for key, value in here.items():
            monkeypatch.setattr(getattr(library, name), key, value)
        if not here:  # its addresses stand in the code of torchvision

            def redirect(url: str, download_root: str, md5: str) -> None:
                path = next(path for path in archives if Path(path).name == Path(url).name)
                real(f"{base}/{path}", download_root, md5=hashlib.md5(archives[path]).hexdigest())

            module = sys.modules[f"torchvision.datasets.{name.lower()}"]
            real = library.utils.download_and_extract_archive
            monkeypatch.setattr(module, "download_and_extract_archive", redirect)
        return archives

    return point


def labels_of(listing: Listing) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for entry in listing.entries:
        found.setdefault(entry.split, []).append(entry.label)
    return found


def test_every_data_set_the_config_may_name_is_known_and_tried_here():
    assert set(DATASETS) == set(SETS) == set(MAKERS)


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_fetched_once_and_keeps_its_official_splits(
    name: str, offer: Callable[[str], Archives], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archives = offer(name)
    listing = torchvision(name, tmp_path)
    assert labels_of(listing) == LABELS.get(name, ARRAYS)
    assert server.asked == {f"/{path}" for path in archives}
    assert max(entry.label for entry in listing.entries) < len(listing.classes)
    images = [decode(listing.tree.read(entry.path), (6, 8)) for entry in listing.entries]
    assert len(images) == len(listing.entries)
    assert not (tmp_path / name / ".unfinished").exists()
    monkeypatch.setattr(downloading, "_fetch", lambda *_: pytest.fail("fetched twice"))
    assert torchvision(name, tmp_path).entries == listing.entries


@pytest.mark.parametrize("name", DATASETS)
def test_without_network_the_archives_may_be_put_there_by_hand(
    name: str, offer: Callable[[str], Archives], server: Server, tmp_path: Path
):
    for path, data in offer(name).items():
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / path).write_bytes(data)
    server.files = {}
    assert labels_of(torchvision(name, tmp_path)) == LABELS.get(name, ARRAYS)
    assert server.asked == set()


@pytest.mark.parametrize(("name", "pixels"), [("CIFAR10", COLOUR[32]), ("SVHN", COLOUR[32]), ("STL10", COLOUR[96])])
def test_arrays_come_out_as_the_pixels_they_hold(
    name: str, pixels: Any, offer: Callable[[str], Archives], tmp_path: Path
):
    offer(name)
    listing = torchvision(name, tmp_path)
    side = pixels.shape[1]
    # Sent to spawned processes, which read row by row and need neither torch nor torchvision.
    paths = [f"train/{n:06}.ppm" for n in range(6)] + [f"test/{n:06}.ppm" for n in range(3)]
    decoded = decode_all(listing.tree, paths, Geometry(side, side, "squash", "bilinear"), workers=2)
    np.testing.assert_array_equal(np.stack([image.pixels for image in decoded]), pixels)
    assert len(pickle.dumps(listing.tree)) < 1000


def test_grey_arrays_come_out_as_the_pixels_they_hold(offer: Callable[[str], Archives], tmp_path: Path):
    offer("MNIST")
    listing = torchvision("MNIST", tmp_path)
    assert listing.classes[0] == "0 - zero"
    for position in range(6):
        image = decode(listing.tree.read(f"train/{position:06}.pgm"), (28, 28)).pixels
        np.testing.assert_array_equal(image, GREY[position][..., None].repeat(3, axis=2))


def test_the_tracks_of_gtsrb_are_its_groups(offer: Callable[[str], Archives], tmp_path: Path):
    offer("GTSRB")
    entries = torchvision("GTSRB", tmp_path).entries
    training = [entry for entry in entries if entry.split == "train"]
    assert [entry.group for entry in training] == ["0/00000"] * 2 + ["0/00001"] * 2 + ["1/00000"] * 2 + ["1/00001"] * 2
    assert all(entry.group == entry.path for entry in entries if entry.split == "test")


@pytest.mark.parametrize("name", ["CIFAR10", "GTSRB"])
def test_a_fetched_data_set_is_prepared_with_val_drawn_from_train_and_test_whole(
    name: str, offer: Callable[[str], Archives], tmp_path: Path
):
    offer(name)
    config = DataConfig(
        source="torchvision",
        dataset=name,
        downloads=str(tmp_path / "downloads"),
        image_size=8,
        split=SplitConfig(0.3, 0.3),
    )
    prepared = prepare(build_index(config), tmp_path / "processed")
    assert prepared.folder.name.startswith(f"{name.lower()}-")
    counts = {split: sum(prepared.manifest["counts"][split].values()) for split in ("train", "val", "test")}
    assert counts == ({"train": 3, "val": 3, "test": 3} if name == "CIFAR10" else {"train": 4, "val": 4, "test": 2})
    assert prepared.manifest["source"] == {"kind": "torchvision", "root": name, "dvc_md5": None, "dvc_rev": None}


def test_a_broken_download_leaves_nothing_that_breaks_the_next_try(
    offer: Callable[[str], Archives], server: Server, tmp_path: Path
):
    for name in ("CIFAR10", "GTSRB"):
        offer(name)
        server.cut = True
        with pytest.raises(MlopsError, match=f"data.dataset={name}: cannot be fetched .*; without network, put "):
            torchvision(name, tmp_path)
        assert [path for path in (tmp_path / name).rglob("*") if path.is_file()] == []
        server.cut = False
        assert labels_of(torchvision(name, tmp_path)) == LABELS.get(name, ARRAYS)


def test_what_was_unpacked_by_a_killed_run_is_unpacked_again_and_what_lay_there_before_stays(
    offer: Callable[[str], Archives], server: Server, tmp_path: Path
):
    archives = offer("GTSRB")
    folder = tmp_path / "GTSRB"
    folder.mkdir()
    (folder / "mine.txt").write_text("not yours")
    (folder / ".unfinished").write_text(json.dumps(["mine.txt"]))
    # Killed in the middle of unpacking the first archive: torchvision takes the folder as whole.
    (folder / "gtsrb/GTSRB/Training/00000").mkdir(parents=True)
    (folder / "gtsrb/GTSRB/Training/00000/00000_00000.ppm").write_bytes(b"P6 8")
    assert labels_of(torchvision("GTSRB", tmp_path)) == LABELS["GTSRB"]
    assert server.asked == {f"/{path}" for path in archives}
    assert (folder / "mine.txt").read_text() == "not yours"


def test_an_archive_of_another_version_is_named_and_kept(
    offer: Callable[[str], Archives], server: Server, tmp_path: Path
):
    offer("CIFAR10")
    server.files = {}
    (tmp_path / "CIFAR10").mkdir()
    (tmp_path / "CIFAR10" / "cifar-10-python.tar.gz").write_bytes(b"old")
    with pytest.raises(MlopsError, match=r"HTTP Error 404.*the archives in .* are damaged or of another version"):
        torchvision("CIFAR10", tmp_path)
    assert (tmp_path / "CIFAR10" / "cifar-10-python.tar.gz").read_bytes() == b"old"


def test_a_damaged_listing_says_what_to_remove(offer: Callable[[str], Archives], tmp_path: Path):
    offer("CIFAR10")
    torchvision("CIFAR10", tmp_path)
    listing = tmp_path / "CIFAR10" / "listing.json"
    listing.write_text("{}")
    with pytest.raises(MlopsError, match=r"listing\.json: is damaged or of another version .*; remove it"):
        torchvision("CIFAR10", tmp_path)
    listing.unlink()
    assert labels_of(torchvision("CIFAR10", tmp_path)) == ARRAYS


def test_a_listing_that_leads_out_of_its_folder_is_refused(offer: Callable[[str], Archives], tmp_path: Path):
    offer("GTSRB")
    torchvision("GTSRB", tmp_path)
    listing = tmp_path / "GTSRB" / "listing.json"
    content = json.loads(listing.read_text())
    content["images"][0][0] = "../../secret.png"
    listing.write_text(json.dumps(content))
    with pytest.raises(MlopsError, match=r"the path '\.\./\.\./secret\.png' leaves its root"):
        torchvision("GTSRB", tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
def test_offline_it_is_one_line_with_what_to_do(
    name: str, hydra_command: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    # A port that nobody listens on: refused at once, on every machine.
    closed = "http://127.0.0.1:9/x.tar.gz"
    monkeypatch.setattr(library.CIFAR10, "url", closed)
    monkeypatch.setattr(library.MNIST, "mirrors", [closed])
    done = hydra_command("preprocess", "data=torchvision", f"data.dataset={name}")
    assert done.code == 2
    (line,) = done.errors
    assert f"data.dataset={name}: cannot be fetched" in line
    assert "Connection refused" in line
    assert f"put {SETS[name].archives[0]}" in line
    assert "data/downloads" in line
    assert [path.name for path in (workplace / "data/downloads" / name).rglob("*")] == []


def test_the_progress_of_a_download_is_plain_lines_without_a_terminal(
    offer: Callable[[str], Archives],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("mlops.progress.SECONDS_BETWEEN_LINES", 0.0)
    archives = offer("CIFAR10")
    # Noise does not compress: more than a megabyte, so that there is progress to show.
    (name,) = archives
    files = {f"cifar-10-batches-py/noise{n}": os.urandom(700_000) for n in range(3)}
    with tarfile.open(fileobj=io.BytesIO(archives[name])) as archive:
        files |= {member.name: archive.extractfile(member).read() for member in archive}
    server.files[name] = packed(files)
    monkeypatch.setattr(library.CIFAR10, "tgz_md5", md5(server.files[name]))
    with caplog.at_level("INFO"):
        torchvision("CIFAR10", tmp_path)
    assert any("downloading: 1 of 2 MB" in line for line in caplog.messages)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.slow
def test_a_run_stopped_while_it_fetches_cleans_up(tmp_path: Path):
    # A server that never answers to the end.
    script = f"""
import http.server, signal, sys, threading, time
from pathlib import Path
from mlops.data.downloads import torchvision
import torchvision.datasets as library

class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "9000000"); self.end_headers()
        self.wfile.write(bytes(100000)); self.wfile.flush(); time.sleep(60)
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
library.CIFAR10.url = f"http://127.0.0.1:{{server.server_port}}/x.tar.gz"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
torchvision("CIFAR10", Path({str(tmp_path)!r}))
"""
    run = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    archive = tmp_path / "CIFAR10" / "cifar-10-python.tar.gz"
    deadline = time.monotonic() + 60
    while not archive.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert archive.exists()
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 143, said
    assert list((tmp_path / "CIFAR10").iterdir()) == []
