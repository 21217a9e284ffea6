"""What can come into an image at all."""

import re
import shutil
import tarfile
from pathlib import Path

import pytest

from containers import engine
from containers.planted import PLANTED, SECRET
from samples import ROOT

DOCKERFILES = sorted((ROOT / "dockerfiles").glob("*.dockerfile"))


def files_with(what: bytes, image: str, folder: Path) -> list[str]:
    """The files in the layers of an image that hold it."""
    return [
        member.name
        for tar in engine.layers(image, folder)
        for member in tar
        if member.isfile() and holds(what, tar, member)
    ]


def holds(what: bytes, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    file, before = tar.extractfile(member), b""
    assert file is not None
    while part := file.read(2**20):
        if what in before + part:
            return True
        before = part[-len(what) :]
    return False


@pytest.mark.containers
def test_a_context_that_is_copied_whole_brings_no_key_into_a_layer(context: Path, tmp_path: Path):
    engine.make_base()
    file = tmp_path / "all.dockerfile"
    file.write_text(f"FROM {engine.BASE}\nCOPY . /all\n")

    def build() -> str:
        engine.buildah("bud", "--pull-never", "--tag", "localhost/mlops-all", "--file", file, context)
        return "localhost/mlops-all"

    assert files_with(SECRET.encode(), build(), tmp_path / "layers") == []
    # And it is found where it is: in a file that is let in.
    shutil.copy(context / PLANTED[0], context / "LICENSE")
    try:
        assert files_with(SECRET.encode(), build(), tmp_path / "with") == ["all/LICENSE"]
    finally:
        shutil.copy(ROOT / "LICENSE", context / "LICENSE")
        engine.buildah("rmi", "localhost/mlops-all")


@pytest.mark.containers
@pytest.mark.parametrize("name", ["api", "train"])
def test_no_layer_of_an_image_holds_a_key_that_lay_beside_the_code(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
):
    image = request.getfixturevalue(f"{name}_image")
    assert files_with(SECRET.encode(), image, tmp_path / "layers") == []
    shutil.rmtree(tmp_path / "layers")


@pytest.mark.containers
@pytest.mark.parametrize("name", ["api", "train"])
def test_an_image_names_the_commit_that_it_was_built_of_and_not_that_of_the_build_before(
    name: str, context: Path, request: pytest.FixtureRequest
):
    before = request.getfixturevalue(f"{name}_image")
    now = engine.build(context, name, tag=f"localhost/mlops-{name}-again", commit="f" * 40)
    for image, commit in ((before, engine.COMMIT), (now, "f" * 40)):
        config = engine.config_of(image)
        assert config["Labels"]["org.opencontainers.image.revision"] == commit
        assert (f"MLOPS_COMMIT={commit}" in config["Env"]) == (name == "train")
    engine.buildah("rmi", now)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_installs_by_hash_runs_as_nobody_and_copies_only_what_is_let_in(path: Path):
    text = path.read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 65534:65534$", last, re.MULTILINE)
    assert not re.search(r"^(ADD|VOLUME)\b|SECRET|TOKEN|PASSWORD|_KEY", text, re.MULTILINE)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert name == "${MODEL}" or any(one == name or one.startswith(f"{name}/") for one in let_in), name
    for install in re.findall(r"pip .*(?:install|wheel) .*", text):
        assert re.search("--require-hashes|--no-index|--no-build-isolation", install), install
    # After all that is copied, whose layers it would else spoil.
    assert last.rindex("\nCOPY ") < last.index("\nARG COMMIT=") < last.index("\nRUN ") < last.index("${COMMIT}")


@pytest.mark.parametrize("name", ["api", "train"])
def test_what_builds_the_package_is_found_with_its_hashes(name: str):
    text = engine.DOCKERFILES[name].read_text()
    (wanted,) = re.findall(r"^RUN for name in ([\w -]+);", text, re.MULTILINE)
    pinned = (ROOT / "requirements/dev.txt").read_text()
    for package in wanted.split():
        assert re.search(rf"^{package}==\S+ \\\n    --hash=sha256:[0-9a-f]{{64}}( \\)?$", pinned, re.MULTILINE), package
