"""What the workflow linters do not know of this repository: its pins, its floors, its tools."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from samples import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PYPROJECT["dependency-groups"]


# What a job may write; `id-token` is who it is, for a bucket that lets it in without a key.
WRITES = {
    ("pre-commit", "push"): {"contents"},
    ("data", "check"): {"id-token"},
    ("model", "verify"): {"id-token"},
    ("model", "image"): {"packages"},
    ("images", "image"): {"id-token"},
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def names(group: str) -> set[str]:
    return {re.split(r"[\[=<> ;]", spec)[0] for spec in GROUPS[group]}


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_a_commit_that_names_its_version(workflow: Path):
    used = re.findall(r"^ *(?:- )?uses: *(.*)$", workflow.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_one_action_has_one_version_and_uv_is_the_same_everywhere():
    used = {step["uses"] for workflow in WORKFLOWS for step in steps(workflow) if "uses" in step}
    assert len({action.split("@")[0] for action in used}) == len(used)
    uv = [step["with"]["version"] for path in WORKFLOWS for step in steps(path) if "setup-uv" in step.get("uses", "")]
    assert len(uv) >= len(WORKFLOWS)
    assert len(set(uv)) == 1


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_starts_without_rights_and_a_job_has_those_that_it_needs(workflow: Path):
    content = read(workflow)
    assert content["permissions"] == {}
    assert "pull_request_target" not in workflow.read_text(encoding="utf-8")
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 60
        writes = {what for what, right in job["permissions"].items() if right != "read"}
        assert writes == WRITES.get((workflow.stem, name), set())
        if "contents" in writes:
            # What may write runs no program of the pull request, only git and GitHub's own.
            said = " ".join(step.get("run", "") for step in job["steps"])
            assert not re.search(r"\b(uv|pip|python|pre-commit run|invoke|bash|sh)\b", said)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_others_may_write_reaches_no_shell_as_code(workflow: Path):
    # zizmor knows more such places; these are the ones that we use.
    for step in steps(workflow):
        assert not re.search(r"\$\{\{ *(github\.event|inputs)", step.get("run", "")), step


def test_a_key_never_stands_in_a_workflow():
    for workflow in WORKFLOWS:
        text = workflow.read_text(encoding="utf-8")
        assert "credentials_json" not in text
        assert set(re.findall(r"secrets\.(\w+)", text)) <= {"WANDB_API_KEY"}


def test_the_oldest_torch_of_ci_is_the_oldest_that_is_allowed():
    (oldest,) = [
        entry
        for entry in read(ROOT / ".github/workflows/tests.yml")["jobs"]["torch"]["strategy"]["matrix"]["include"]
        if entry["torch"] == "oldest"
    ]
    extras = PYPROJECT["project"]["optional-dependencies"]
    floors = {spec for spec in extras["train"] if re.match(r"torch(vision)?>=", spec)}
    assert {spec.replace("==", ">=").removesuffix(".*") for spec in oldest["versions"].split()} == floors


def test_ci_tests_every_python_that_is_allowed():
    pythons = read(ROOT / ".github/workflows/tests.yml")["jobs"]["pinned"]["strategy"]["matrix"]["python"]
    lower, upper = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PYPROJECT["project"]["requires-python"]).groups()
    assert pythons == [f"3.{minor}" for minor in range(int(lower), int(upper))]


def test_every_hook_runs_a_program_that_is_pinned_here():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # a hook from elsewhere would bring versions of its own
    distribution = {"check-": "pre-commit-hooks"}
    for hook in repository["hooks"]:
        words = hook["entry"].split()
        assert hook["language"] == "system", hook["id"]
        assert words[:3] == ["uv", "run", "--no-sync"], hook["id"]
        if words[3:] == ["python", "-m", "mlops.credentials"]:
            continue  # ours
        name = next((dist for prefix, dist in distribution.items() if words[3].startswith(prefix)), words[3])
        assert name in names("dev"), hook["id"]


def test_a_diagram_is_drawn_into_the_page_and_one_with_a_mistake_fails_the_build(tmp_path: Path):
    def build(diagram: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n```mermaid\n{diagram}\n```\n")
        (tmp_path / "properdocs.yml").write_text(
            f"site_name: x\ntheme: mkdocs\nhooks: ['{(ROOT / 'docs' / 'diagrams.py').as_posix()}']\n"
        )
        command = [sys.executable, "-m", "properdocs", "build", "--strict"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = build("flowchart LR\n    images --> model")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'id="diagram-1"' in page
    assert "images" in page[page.index("<svg") : page.index("</svg>")]
    assert "language-mermaid" not in page

    done = build("flowchart LR\n    images -->")
    assert done.returncode == 1
    assert "index.md: diagram 1 cannot be drawn: Error: Parse error on line" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_to_nowhere_fails_the_check_of_the_docs(tmp_path: Path):
    ask = [sys.executable, "-c", "import tasks; print(tasks.CHECKS['docs'])"]
    check = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "properdocs.yml", tmp_path)
    (tmp_path / "docs" / "decisions.md").write_text("# Decisions\n\n[gone](nowhere.md)\n")
    done = subprocess.run([sys.executable, "-m", *check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr


def test_the_site_holds_every_page_of_docs_and_loads_nothing_from_elsewhere(tmp_path: Path):
    command = [sys.executable, "-m", "properdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
        assert loaded
        assert not [address for address in loaded if "//" in address], page.name
