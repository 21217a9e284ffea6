"""Versions of `data/` by a real DVC over a real GCS emulator: sent, fetched, damaged, cut off, gone back to."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Command
from integration.bucket import BUCKET, Emulator
from mlops.data.versioning import dvc, remote, versions
from mlops.data.versioning.pointer import read_pointer
from mlops.errors import MlopsError
from samples import QUICK, ROOT, write_pictures

SETTINGS = ("data=folder", "data.root=data/pictures", "data.image_size=8", "data.split.val=0.2", "data.split.test=0.2")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("bucket")) as running:
        yield running
        if running._process is None:
            running.start()


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def set_up(folder: Path, emulator: Emulator, url: str) -> None:
    """What is in a clone, and what each person sets for themselves."""
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config.local").write_text(
        f"['remote \"gcs\"']\n    endpointurl = {emulator.url}\n    allow_anonymous_login = true\n"
    )
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
        shutil.copy(ROOT / ".dvc" / ".gitignore", folder / ".dvc")
        shutil.copy(ROOT / ".dvcignore", folder)
        text = (ROOT / ".dvc" / "config").read_text()
        (folder / ".dvc" / "config").write_text(text.replace("gs://YOUR-BUCKET/YOUR-PROJECT", url))
        (folder / ".gitignore").write_text("/data\n/processed\n/outputs\n/models\n")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "a project")


@pytest.fixture
def project(
    emulator: Emulator, workplace: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """A git repository with a bucket of its own, the current folder, and 60 pictures in `data/pictures`."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    set_up(workplace, emulator, f"gs://{BUCKET}/{request.node.name[:40].strip('[]')}")
    write_pictures(workplace / "data" / "pictures")
    return workplace


def forget(project: Path) -> None:
    """A machine that has the repository and none of the data."""
    for folder in ("data", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project / folder, ignore_errors=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_one_person_sends_another_one_has(
    project: Path, emulator: Emulator, tmp_path: Path, mlops_command: Command
):
    sent = mlops_command("data", "push")
    assert sent.code == 0, sent.err
    assert "git commit data.dvc" in sent.out
    git(project, "add", "data.dvc")
    git(project, "commit", "--quiet", "--message", "data")
    before = content(project / "data")
    assert len(before) == 61  # and the manifest

    clone = tmp_path / "clone"
    git(project, "clone", "--quiet", str(project), str(clone))
    set_up(clone, emulator, "")
    os.chdir(clone)
    pulled = mlops_command("data", "pull")
    assert pulled.code == 0, pulled.err
    assert "60, each as its SHA-256 says" in pulled.out
    assert content(clone / "data") == before
    state = mlops_command("data", "status")
    assert (state.code, state.err) == (0, "")
    assert "as recorded, every file" in state.out
    assert "all of it" in state.out


@pytest.mark.slow
def test_two_versions_and_back_and_the_one_of_a_checkpoint(
    project: Path, emulator: Emulator, hydra_command: Command, mlops_command: Command
):
    assert mlops_command("data", "push").code == 0
    git(project, "add", "data.dvc")
    git(project, "commit", "--quiet", "--message", "one")
    first, commit = content(project / "data"), git(project, "rev-parse", "HEAD").strip()
    done = hydra_command("train", *QUICK, "data.root=data/pictures", "training.epochs=1")
    assert done.code == 0, done.err
    assert "data: data/pictures, as version" in done.err
    story = json.loads(mlops_command("info", "models/latest/best_model.pth", "--json").out)
    pointer = read_pointer(project / "data.dvc")
    assert (story["data"]["dvc_md5"], story["data"]["dvc_rev"]) == (pointer.md5, commit)
    assert f"invoke data-pull --for {Path('models/latest/best_model.pth')}" in mlops_command("info").out

    (project / "data" / "pictures" / "red" / "99.png").write_bytes(first["pictures/red/01.png"] + b" ")
    (project / "data" / "pictures" / "blue" / "00.png").unlink()
    assert mlops_command("data", "push").code == 0
    second = content(project / "data")
    refused = mlops_command("data", "pull", "--for", "models/latest/best_model.pth")
    assert refused.code == 2
    assert "has changes that are in no commit; commit it first" in refused.errors[0]
    git(project, "commit", "--quiet", "--all", "--message", "two")

    back = mlops_command("data", "pull", "--for", "models/latest/best_model.pth")
    assert back.code == 0, back.err
    data = content(project / "data")
    assert {name: data[name] for name in data if not name.startswith("processed/")} == {
        name: first[name] for name in first if not name.startswith("processed/")
    }
    assert read_pointer(project / "data.dvc").md5 == pointer.md5
    # The history is gone, the bucket is not: the MD5 is enough.
    git(project, "checkout", "--quiet", "data.dvc")
    shutil.rmtree(project / ".git")
    git(project, "init", "--quiet")
    git(project, "add", "data.dvc")
    git(project, "commit", "--quiet", "--message", "squashed")
    assert mlops_command("data", "pull").code == 0
    assert {n: v for n, v in content(project / "data").items() if n in second} == second
    assert mlops_command("data", "pull", "--for", "models/latest/best_model.pth").code == 0
    assert {n: v for n, v in content(project / "data").items() if n in first} == first
    assert read_pointer(project / "data.dvc") == pointer


@pytest.mark.slow
def test_a_fresh_clone_fetches_what_was_prepared_and_trains_without_the_images(
    project: Path, emulator: Emulator, hydra_command: Command, mlops_command: Command
):
    assert mlops_command("data", "push").code == 0
    nothing = mlops_command("data", "push", "--processed")
    assert nothing.code == 2
    assert "holds nothing that was prepared from version" in nothing.errors[0]
    quick = (*QUICK, "data.root=data/pictures", "training.epochs=1")
    assert hydra_command("train", *quick).code == 0
    fingerprint = json.loads(mlops_command("info", "--json").out)["data"]["fingerprint"]
    precious = project / "processed" / "mine"
    precious.mkdir(parents=True)
    refused = mlops_command("data", "push", "--processed")
    assert refused.code == 2
    assert "processed: holds mine, which is no prepared data" in refused.errors[0]
    precious.rmdir()
    sent = mlops_command("data", "push", "--processed")
    assert sent.code == 0, sent.err
    assert f"pictures-{fingerprint}" in sent.out

    # A later version with the same images: what was prepared is of that one too, and known as such elsewhere.
    (project / "data" / "notes.txt").write_text("looked at by anna")
    assert mlops_command("data", "push").code == 0
    assert hydra_command("preprocess", *SETTINGS).code == 0
    assert mlops_command("data", "push", "--processed").code == 0

    forget(project)
    shutil.rmtree(project / "processed")
    shutil.rmtree(project / "models")
    done = hydra_command("train", *quick)
    assert done.code == 2
    assert "is not here; `invoke data-pull` brings version" in done.errors[0]
    done = hydra_command("train", *quick, "data.pull=auto")
    assert done.code == 0, done.err
    assert "was prepared from it, version" in done.err
    assert not (project / "data" / "pictures").exists()
    story = json.loads(mlops_command("info", "--json").out)
    assert story["data"]["fingerprint"] == fingerprint
    assert story["data"]["dvc_md5"] == read_pointer(project / "data.dvc").md5
    # Other settings need the images themselves.
    done = hydra_command("preprocess", *SETTINGS, "data.image_size=12", "data.pull=auto")
    assert done.code == 0, done.err
    assert (project / "data" / "pictures" / "red").is_dir()


@pytest.mark.slow
def test_every_damaged_or_missing_object_is_named_and_mended_by_sending_again(
    project: Path, emulator: Emulator, mlops_command: Command, caplog: pytest.LogCaptureFixture
):
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    files = versions.listing(project, str(read_pointer(project / "data.dvc").md5))
    store = remote.reach(remote.need_remote(project))._fs
    url = remote.need_remote(project).url.removeprefix("gs://")
    for name, damage in (("01", "tampered"), ("02", "cut"), ("03", "missing")):
        place = f"{url}/files/md5/{files[f'pictures/red/{name}.png'][:2]}/{files[f'pictures/red/{name}.png'][2:]}"
        raw = store.cat_file(place)
        if damage == "missing":
            store.rm_file(place)
        else:
            store.pipe_file(place, raw[:-9] if damage == "cut" else raw[:20] + b"!" + raw[21:])
    kept = project / ".dvc" / "kept"
    shutil.move(project / ".dvc" / "cache", kept)
    forget(project)
    done = mlops_command("data", "pull")
    assert done.code == 2
    said = "\n".join(done.errors)
    for name, state in (("01", "there as it was sent"), ("02", "there as it was sent"), ("03", "there (object files")):
        assert f"data/pictures/red/{name}.png is not {state}" in said
    assert said.count("whoever has this version sends it again by `invoke data-push`") == 3

    # As they say, on a machine that has the data.
    forget(project)
    shutil.move(kept, project / ".dvc" / "cache")
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet"], cwd=project, check=True)
    sent = mlops_command("data", "push")
    assert sent.code == 0, sent.err
    assert "3 objects of this version were missing or changed there, and were sent again" in caplog.text
    forget(project)
    done = mlops_command("data", "pull")
    assert done.code == 0, done.err
    assert content(project / "data") == before


@pytest.mark.slow
def test_files_of_nobodys_version_are_never_overwritten(project: Path, emulator: Emulator, mlops_command: Command):
    assert mlops_command("data", "push").code == 0
    precious = project / "data" / "pictures" / "red" / "00.png"
    precious.write_bytes(b"corrected by hand")
    done = mlops_command("data", "pull")
    assert done.code == 2
    (line,) = done.errors
    assert "00.png: in the way, and in no version: `invoke data-push --replace` keeps what is here" in line
    assert precious.read_bytes() == b"corrected by hand"


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_costs_seconds_and_changes_nothing(
    project: Path, emulator: Emulator, mlops_command: Command
):
    before = read_pointer(project / "data.dvc")
    for state in ("hanging", "stopped"):
        if state == "hanging":
            if sys.platform == "win32":
                continue
            with emulator.hanging():
                started = time.monotonic()
                outcomes = [mlops_command("data", "push"), mlops_command("data", "push")]
        else:
            emulator.stop()
            started = time.monotonic()
            outcomes = [mlops_command("data", "push")]
            emulator.start()
        assert time.monotonic() - started < 30
        for done in outcomes:
            assert done.code == 2
            (line,) = done.errors
            assert line.startswith(f"gs://{BUCKET}/")
            assert "check the network and the credentials" in line or "cannot be reached" in line
    assert read_pointer(project / "data.dvc") == before
    assert not (project / "data" / "SHA256SUMS").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process for a while")
def test_a_bucket_that_falls_silent_in_the_middle_ends_the_pull_and_what_came_is_kept(
    project: Path, emulator: Emulator, mlops_command: Command, monkeypatch: pytest.MonkeyPatch
):
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    forget(project)
    monkeypatch.setattr(dvc, "STALL_TIMEOUT", 6.0)
    reached = versions.reach

    def reach_and_fall_silent(*arguments: object) -> object:
        bucket = reached(*arguments)  # type: ignore[arg-type]
        os.kill(emulator._process.pid, signal.SIGSTOP)
        return bucket

    monkeypatch.setattr(versions, "reach", reach_and_fall_silent)
    started = time.monotonic()
    try:
        done = mlops_command("data", "pull")
    finally:
        os.kill(emulator._process.pid, signal.SIGCONT)
    assert time.monotonic() - started < 40
    assert done.code == 2
    assert "nothing has moved for 6 s; check the network, and repeat the command: what has arrived is kept" in done.err
    monkeypatch.setattr(versions, "reach", reached)
    monkeypatch.setattr(dvc, "STALL_TIMEOUT", 90.0)
    assert mlops_command("data", "pull").code == 0
    assert content(project / "data") == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_pull_that_is_killed_half_way_is_simply_repeated(project: Path, emulator: Emulator, mlops_command: Command):
    (project / "data" / "large.bin").write_bytes(os.urandom(60_000_000))
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    for _ in range(2):
        forget(project)
        pull = subprocess.Popen([sys.executable, "-m", "mlops.cli", "data", "pull"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        # In the middle: something has arrived in the cache, and not all of it is in its place.
        while not list((project / ".dvc").glob("cache/files/md5/*/*")) and time.monotonic() < end:
            time.sleep(0.005)
        pull.kill()
        pull.wait()
        assert not (project / "data" / "large.bin").exists() or not (project / "data" / "SHA256SUMS").exists()
    done = mlops_command("data", "pull")
    assert done.code == 0, done.err
    assert content(project / "data") == before


def test_no_bucket_and_wrong_credentials_are_one_line_each(
    project: Path, emulator: Emulator, mlops_command: Command, tmp_path: Path
):
    def said() -> str:
        done = mlops_command("data", "push")
        assert done.code == 2
        (line,) = done.errors
        return line

    config = project / ".dvc" / "config"
    right = config.read_text()
    config.write_text(right.replace(f"gs://{BUCKET}/", "gs://no-such-bucket/"))
    assert said().endswith("there is no such bucket or folder")
    local = project / ".dvc" / "config.local"
    own = local.read_text()
    config.write_text("[core]\n    analytics = false\n")
    local.unlink()
    assert "names no default remote; set it with: invoke data-remote gs://bucket/path" in said()
    config.write_text((ROOT / ".dvc" / "config").read_text())
    assert said().startswith("gs://YOUR-BUCKET/YOUR-PROJECT: is a placeholder, not a bucket; set it with: invoke data-")
    key = tmp_path / "key.json"
    local.write_text(own.replace("allow_anonymous_login = true", f"credentialpath = {key.as_posix()}"))
    config.write_text(right)
    assert "key.json: named in .dvc/config.local, cannot be read" in said()
    key.write_text('{"type": "service_account"}')
    assert "key.json: named in .dvc/config.local, is no key file of Google's" in said()
    config.write_text(right + f"    credentialpath = {key.as_posix()}\n")
    assert "names a key file for everybody; remove it, and run `dvc remote modify --local gcs credentialpath" in said()


def test_a_remote_is_set_for_everybody_and_verifies(project: Path, emulator: Emulator, mlops_command: Command):
    done = mlops_command("data", "remote", f"gs://{BUCKET}/else/where/")
    assert done.code == 0, done.err
    assert "yes, with these credentials" in done.out
    text = (project / ".dvc" / "config").read_text()
    assert f"url = gs://{BUCKET}/else/where\n" in text
    assert "verify = true" in text
    for wrong in ("gs://", "s3://bucket/x", "gs://B/x", "nowhere", "gs://bucket/../x y"):
        refused = mlops_command("data", "remote", wrong)
        assert refused.code == 2, wrong
        assert "is no bucket; write gs://bucket/path" in refused.errors[0]
    assert (project / ".dvc" / "config").read_text() == text


@pytest.mark.slow
def test_a_network_share_is_a_remote_too(project: Path, tmp_path: Path, mlops_command: Command):
    share = tmp_path / "share"
    share.mkdir()
    assert mlops_command("data", "remote", share).code == 0
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    forget(project)
    assert mlops_command("data", "pull").code == 0
    assert content(project / "data") == before
    share.rename(tmp_path / "unmounted")
    forget(project)
    done = mlops_command("data", "pull")
    assert done.code == 2
    assert "no such folder; mount it or make it first" in done.errors[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no tmpfs")
def test_a_full_disk_during_a_pull_is_one_line_and_the_pull_can_be_repeated(
    project: Path, emulator: Emulator, mlops_command: Command
):
    (project / "data" / "large.bin").write_bytes(os.urandom(3_000_000))
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    forget(project)
    (project / ".dvc" / "cache").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", project / ".dvc" / "cache"], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        done = mlops_command("data", "pull")
    finally:
        subprocess.run(["umount", "--lazy", project / ".dvc" / "cache"], check=True)
    assert done.code == 2
    (line,) = done.errors
    assert line.endswith("the disk is full; free some space and repeat: what has arrived is kept")
    done = mlops_command("data", "pull")
    assert done.code == 0, done.err
    assert content(project / "data") == before


@pytest.mark.slow
def test_of_two_runs_that_start_at_once_one_fetches_for_both(project: Path, emulator: Emulator, mlops_command: Command):
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    forget(project)
    command = [sys.executable, "-m", "mlops.preprocess", *SETTINGS, "data.pull=auto"]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert sum("fetching it (data.pull=auto)" in err for err in told) == 1
    here = content(project / "data")
    assert {name: here[name] for name in before} == before


def forge(project: Path, files: dict[str, bytes]) -> str:
    """Put a version that somebody else has made into the bucket, and let `data.dvc` name it; returns its MD5."""
    place = remote.need_remote(project).url.removeprefix("gs://")
    store = remote.reach(remote.need_remote(project))._fs
    hashes = {name: hashlib.md5(raw).hexdigest() for name, raw in files.items()}
    listing = json.dumps([{"md5": hashed, "relpath": name} for name, hashed in hashes.items()]).encode()
    md5 = f"{hashlib.md5(listing).hexdigest()}.dir"
    for hashed, raw in ((md5, listing), *((hashes[name], raw) for name, raw in files.items())):
        store.pipe_file(f"{place}/files/md5/{hashed[:2]}/{hashed[2:]}", raw)
    (project / "data.dvc").write_text(f"outs:\n- md5: {md5}\n  hash: md5\n  path: data\n")
    return md5


def test_a_version_that_would_write_outside_of_its_folder_is_refused_before_anything_is_written(
    project: Path, emulator: Emulator, mlops_command: Command
):
    before = content(project / "data")
    shutil.rmtree(project / "data")
    forge(project, {"a.png": b"fine", "../../evil.txt": b"1", "../evil.py": b"2", "B.png": b"3", "b.png": b"4"})
    done = mlops_command("data", "pull")
    assert done.code == 2
    assert len(done.errors) == 3
    assert sum("leaves its root" in line for line in done.errors) == 2
    assert any("'B.png' and 'b.png', which some disks take for one" in line for line in done.errors)
    assert not list(project.parent.rglob("evil*"))
    assert not (project / "data").exists()
    assert before


@pytest.mark.slow
def test_a_version_that_nobody_sent_costs_nothing_of_what_is_here(
    project: Path, emulator: Emulator, mlops_command: Command
):
    (project / "data" / "processed" / "x").mkdir(parents=True)
    (project / "data" / "processed" / "x" / "arrays.npy").write_bytes(b"an hour of work")
    (project / "data" / "downloads").mkdir()
    (project / "data" / "downloads" / "set.tar").write_bytes(b"a day of downloading")
    assert mlops_command("data", "push").code == 0
    before = content(project / "data")
    # A colleague has committed data.dvc and forgotten to push.
    (project / "data.dvc").write_text(f"outs:\n- md5: {'1' * 32}.dir\n  hash: md5\n  path: data\n")
    done = mlops_command("data", "pull")
    assert done.code == 2
    assert "the list of files of data.dvc is not there" in done.errors[0]
    assert content(project / "data") == before
    # Or only a part has arrived.
    md5 = forge(project, {"new.png": b"new", "other.png": b"other"})
    place = remote.need_remote(project).url.removeprefix("gs://")
    other = hashlib.md5(b"other").hexdigest()
    remote.reach(remote.need_remote(project))._fs.rm_file(f"{place}/files/md5/{other[:2]}/{other[2:]}")
    done = mlops_command("data", "pull")
    assert done.code == 2, md5
    assert "data/other.png is not there" in done.errors[0]
    assert content(project / "data") == before
    with pytest.raises(MlopsError, match="names no version"):
        versions.pull_version(project, {"dvc_md5": other, "dvc_rev": None})
    assert content(project / "data") == before


@pytest.mark.slow
def test_recording_may_take_longer_than_a_standstill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # DVC says next to nothing while it hashes; that it computes is enough. A busy disk may hold up its start.
    monkeypatch.setattr(dvc, "_PROGRAM", "import time\nwhile time.process_time() < 7:\n    pass")
    monkeypatch.setattr(dvc, "STALL_TIMEOUT", 5.0)
    monkeypatch.setattr(dvc, "WORKED", 0.05)
    assert dvc.dvc(tmp_path, doing="recording").code == 0


def test_outside_of_git_and_through_a_link_nothing_is_recorded(project: Path, mlops_command: Command, tmp_path: Path):
    (project / "data").rename(tmp_path / "elsewhere")
    (project / "data").symlink_to(tmp_path / "elsewhere")
    done = mlops_command("data", "add")
    assert done.code == 2
    assert "data: is a link; move the folder itself here" in done.errors[0]
    assert not (tmp_path / "elsewhere" / "SHA256SUMS").exists()
    (project / "data").unlink()
    (tmp_path / "elsewhere").rename(project / "data")
    shutil.rmtree(project / ".git")
    done = mlops_command("data", "add")
    assert done.code == 2
    assert "cannot be recorded: " in done.errors[0]
    assert "git" in done.errors[0].split("cannot be recorded: ")[1]


@pytest.mark.slow
def test_who_has_not_pulled_does_not_push_a_version_without_the_others_images(
    project: Path, emulator: Emulator, mlops_command: Command
):
    assert mlops_command("data", "push").code == 0
    before, theirs = content(project / "data"), (project / "data.dvc").read_text()
    # Somebody else's clone: one new picture, and none of those that data.dvc names.
    forget(project)
    (project / "data" / "pictures" / "red").mkdir(parents=True)
    (project / "data" / "pictures" / "red" / "99.png").write_bytes(b"new")
    done = mlops_command("data", "push")
    assert done.code == 2
    assert (
        "the next one would lack what that holds; `invoke data-pull` first, or `invoke data-push --replace`"
        in (done.errors[0])
    )
    assert (project / "data.dvc").read_text() == theirs
    (project / "data" / "pictures" / "red" / "99.png").rename(project / "99.png")
    assert mlops_command("data", "pull").code == 0
    (project / "99.png").rename(project / "data" / "pictures" / "red" / "99.png")
    assert mlops_command("data", "add").code == 0
    here = content(project / "data")
    assert {name for name in before if name != "SHA256SUMS"} < here.keys()
    shutil.rmtree(project / "data" / "pictures" / "blue")
    (project / "data" / "SHA256SUMS").unlink()
    assert mlops_command("data", "add").code == 2
    assert mlops_command("data", "add", "--replace").code == 0
