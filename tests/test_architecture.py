"""The house keeps its floors."""

import ast
import re
import subprocess
import sys

from samples import ROOT

PACKAGE = ROOT / "src" / "mlops"
# From the ground up; a module may import those before its own floor, and its own floor's.
FLOORS = [
    {
        "envelope",
        "errors",
        "files",
        "geometry",
        "image",
        "progress",
        "stopping",
        "deadline",
        "gcs",
        "storage",
        "git",
        "credentials",
    },
    {"onnx_file", "inference", "serving", "client"},
    {"targets", "tables", "page"},
    {"config"},
    {"data"},
    {"models", "provenance", "tracking"},
    {
        "contract",
        "story",
        "checkpoint",
        "mirror",
        "mirrored",
        "registry",
        "publish",
        "training",
        "evaluation",
        "adoption",
        "export",
        "sweeps",
    },
    {
        "resume",
        "reproduce",
        "doctor",
        "entrypoint",
        "preprocess",
        "train",
        "cli_common",
        "onnx_cli",
        "data_cli",
        "cli",
        "trial",
        "sweep",
    },
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def imports(tree: ast.AST) -> set[str]:
    """The modules of the package that a file imports, also inside its functions, but not for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mlops":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlops.")}
    return found


def test_every_import_goes_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        found = imports(ast.parse(path.read_text()))
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in found if FLOOR[name] > FLOOR[own]]
    assert wrong == []


def test_the_documentation_shows_the_floors_as_they_are():
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Floors")[1].split("\n## ")[0]
    modules = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")][2:]
    shown = [set(re.findall(r"`([\w.]+)/?`", cell)) for cell in modules]
    assert shown == [*FLOORS, {"tasks.py"}]


def test_only_image_decodes_and_only_targets_builds_by_name():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name != "image.py":
            assert not re.search(r"from PIL import|import PIL\.", text), path
        if path.name != "targets.py":
            assert "import_module" not in text, path
            assert "instantiate(" not in text, path


def test_the_ground_floor_and_the_config_need_no_torch():
    modules = "mlops.errors, mlops.files, mlops.image, mlops.progress, mlops.config, mlops.targets, mlops.checkpoint, mlops.storage, mlops.mirrored, mlops.train, mlops.preprocess, mlops.data.prepare, mlops.inference, mlops.evaluation.predict, mlops.serving.app, mlops.serving.worker, mlops.client"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'hydra' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
