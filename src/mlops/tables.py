"""What a person reads at the end of a command, on standard output."""

import csv
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mlops.errors import printable, shorten

if TYPE_CHECKING:
    from mlops.adoption.adopt import Adopted
    from mlops.adoption.onnx_model import AdoptedOnnx
    from mlops.config import TrainingConfig
    from mlops.data.prepare import Prepared
    from mlops.evaluation.predict import Prediction
    from mlops.export.run import Exported

# More columns than this break on a terminal.
_WIDEST_MATRIX = 12

out = Console(highlight=False, markup=False, emoji=False)


def pairs(title: str, rows: Iterable[tuple[str, Any]]) -> None:
    """A titled list of name and value. Lines are never broken, so that a path can be copied."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    out.print(printable(title), style="bold")
    for name, value in rows:
        out.print(printable(f"  {name:<{width}}  {value}"), soft_wrap=True)


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A titled table with a header; all columns but the first are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="cyan")
    for position, column in enumerate(columns):
        table.add_column(printable(column), justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    out.print(table)


def to_copy(*words: str | Path) -> str:
    """A command of this environment as a person can copy it into the shell that the run was started from."""
    # uv tells the commands it runs where it is; without it, this environment's commands are on PATH.
    command = [*(("uv", "run") if "UV" in os.environ else ()), *map(str, words)]
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)


def show_prepared(prepared: "Prepared") -> None:
    """Where the prepared data is and what it holds."""
    manifest: Mapping[str, Any] = prepared.manifest
    counts = manifest["counts"]
    skipped, dropped = manifest["skipped"], manifest.get("dropped")
    card = prepared.folder / "card.html"
    pairs(
        "Prepared data",
        [
            ("folder", prepared.folder),
            ("classes", len(manifest["classes"])),
            *((split, f"{sum(counts[split].values()):,} images") for split in counts),
            ("image size", f"{manifest['image_size']} x {manifest['image_size']}"),
            ("skipped", f"{len(skipped)} unreadable" if skipped else "none"),
            *([("dropped", f"{len(dropped)} copies")] if dropped else []),
            # Folders of an earlier version have no card.
            *([("card", card)] if card.exists() else []),
        ],
    )


def show_adopted(adopted: "Adopted") -> None:
    """What came of a file of weights, every assumption that was made about it, and what to do next."""
    metadata = adopted.metadata
    classes, given = metadata["classes"], metadata["input"]
    pairs(
        "Adopted",
        [
            ("checkpoint", adopted.path),
            ("from", f"{metadata['adopted']['file']}, SHA-256 {metadata['adopted']['sha256'][:12]}"),
            ("recognises", f"{len(classes)} classes: {shorten(classes, 8)}"),
            ("model", metadata["config"]["model"]["_target_"]),
            ("input", f"{given['height']} x {given['width']} RGB, {given['resize']}, {given['filter']}"),
            *(("assumed", assumption) for assumption in adopted.assumed),
            *(("note", note) for note in adopted.notes),
            ("checked", f"every weight fits and is finite; a picture gives {len(classes)} finite numbers"),
        ],
    )
    pairs(
        "Next",
        [
            ("are the assumptions right", to_copy("mlops", "evaluate", adopted.path, "LABELLED_PICTURES")),
            ("use it", to_copy("mlops", "predict", adopted.path, "PICTURE_OR_FOLDER")),
        ],
    )


def show_adopted_onnx(adopted: "AdoptedOnnx") -> None:
    """What came of a model of another program, every assumption that was made about it, and what to do next."""
    metadata = adopted.metadata
    classes, given, images = metadata["classes"], metadata["input"], "features" not in metadata["input"]
    size = "" if not images else f"{given['height']} x {given['width']}"
    takes = (
        f"images uint8 [N, H, W, 3] {f'of any size, made into {size}' if given['resizes'] else f'of {size} only'}"
        if images
        else f"features float32 [N, {given['features']}]"
    )
    pairs(
        "Adopted",
        [
            ("model", adopted.path),
            ("from", f"{metadata['adopted']['file']}, SHA-256 {metadata['adopted']['sha256'][:12]}"),
            ("recognises", f"{len(classes)} classes: {shorten(classes, 8)}"),
            ("takes", takes),
            *(("assumed", assumption) for assumption in adopted.assumed),
            ("checked", f"noise gives {len(classes)} probabilities, alone as together"),
        ],
    )
    if images:
        pairs(
            "Next",
            [
                ("are the assumptions right", to_copy("mlops", "bench", adopted.path, "--data", "LABELLED_PICTURES")),
                ("use it", to_copy("mlops", "predict", adopted.path, "PICTURE_OR_FOLDER")),
            ],
        )


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """The metrics of an epoch on one line."""
    return (
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}  train_loss {metrics['train_loss']:.3f}  "
        f"val_loss {metrics['val_loss']:.3f}  val_Accuracy {metrics['val_Accuracy']:.2%}  "
        f"val_F1 {metrics['val_F1']:.4f}"
    )


def show_result(
    folder: Path, kept: Path, metrics: Mapping[str, float], tested: int, settings: "TrainingConfig"
) -> None:
    """The end of a training run: how well, where everything is, and what to try next."""
    pairs(
        "Result",
        [
            ("test accuracy", f"{metrics['test_Accuracy']:.2%} of {tested:,} images"),
            ("test macro F1", f"{metrics['test_F1']:.4f}"),
            (
                "best epoch",
                f"{metrics['epoch']}, {settings.monitor} {metrics[settings.monitor]:.4f}",
            ),
            ("checkpoint", folder / "best_model.pth"),
            *([("also as", kept)] if kept.parent != folder else []),
            ("report", folder / "report" / "index.html"),
            ("log", folder / "train.log"),
        ],
    )
    pairs(
        "Next",
        [
            ("what is in the file", to_copy("mlops", "info", kept)),
            ("score it class by class", to_copy("mlops", "evaluate", kept)),
            ("use it", to_copy("mlops", "predict", kept, "PICTURE_OR_FOLDER")),
            ("other settings", to_copy("invoke", "train", "-o", "training.epochs=40", "-o", "model=tinycnn")),
        ],
    )


def show_scores(scores: Mapping[str, Any]) -> None:
    """Scores of an evaluation: overall, class by class, and the commonest confusions."""
    pairs(
        f"{scores['n']:,} images of {scores['data']}",
        [
            ("accuracy", f"{scores['accuracy']:.2%}, {interval(scores)}"),
            *([("top-5 accuracy", f"{scores['top5_accuracy']:.2%}")] if scores["top5_accuracy"] is not None else []),
            *((f"macro {name}", f"{scores[f'macro_{name}']:.4f}") for name in ("precision", "recall", "f1")),
            ("loss", f"{scores['loss']:.4f}"),
            (
                "calibration error",
                f"{scores['ece']:.2%} (before scaling by temperature {scores['temperature']:.3f}: "
                f"{scores['ece_before']:.2%})",
            ),
        ],
    )
    columns = ("class", "precision", "recall", "F1", "images")
    rows = [
        (name, f"{row['precision']:.4f}", f"{row['recall']:.4f}", f"{row['f1']:.4f}", row["n"])
        for name, row in scores["per_class"].items()
    ]
    grid("Class by class", columns, rows)
    show_confusion(scores["classes"], scores["confusion_matrix"])


def interval(scores: Mapping[str, Any]) -> str:
    """How far the accuracy may be off, in words that say over what."""
    low, high = scores["accuracy_interval"]
    groups = "" if scores["n_groups"] == scores["n"] else f" over {scores['n_groups']:,} groups"
    return f"{low:.2%} to {high:.2%} (95 % interval{groups})"


def show_confusion(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> None:
    """The matrix where it fits a terminal, else its largest mistakes."""
    if len(classes) <= _WIDEST_MATRIX:
        names = [name if len(name) <= 12 else f"{name[:11]}…" for name in classes]
        rows = [(name, *(value or "." for value in row)) for name, row in zip(names, matrix, strict=True)]
        grid("Confusion matrix: rows are true, columns predicted", ("", *names), rows)
        return
    grid(
        "Largest mistakes (the whole matrix is in --json)",
        ("true, predicted", "images"),
        [(f"{true} -> {said}", count) for count, true, said in commonest_confusions(classes, matrix)[:15]],
    )


def commonest_confusions(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[tuple[int, str, str]]:
    """(images, true class, predicted class) of every mistake in the matrix, the commonest first."""
    wrong = [
        (-count, true, said)
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        if count and true != said
    ]
    return [(-count, classes[true], classes[said]) for count, true, said in sorted(wrong)]


def show_report(folder: Path, missing: str | None) -> None:
    """Where a report is, and why it is not whole."""
    pairs("Report", [("page", folder / "index.html"), *([("without scores", missing)] if missing else [])])


def show_export(exported: "Exported") -> None:
    """Where a model is, what was compared, and how to use it."""
    parity = exported.metadata["parity"]
    native, resized, given = parity["native"], parity["resized"], exported.metadata["input"]
    size = f"{given['height']} x {given['width']}"
    pruned, quantized = exported.metadata.get("pruned"), exported.metadata.get("quantized")
    checkpoint = "the pruned network" if pruned else "the checkpoint"
    exact = f"probabilities differ from {checkpoint}'s by {native['largest_difference']:.1e} at most"
    alike = f"{native.get('agreement', 1):.2%} get the same class as from {checkpoint}"
    pairs(
        "Exported",
        [
            ("file", exported.path),
            ("size", f"{exported.bytes / 1e6:,.1f} MB, all in one file"),
            ("takes", f"images uint8 [N, H, W, 3] {'of any size' if given['resizes'] else f'of {size} only'}"),
            ("gives", f"probabilities of {len(exported.metadata['classes'])} classes"),
            *([("pruned", _show_pruned(pruned))] if pruned else []),
            *([("quantised", _show_quantized(quantized))] if quantized else []),
            (f"at {size}", f"{alike if quantized else exact}, on {native['images']:,} {native['of']}"),
            (
                "other sizes",
                f"{resized['agreement']:.2%} get the same class, resized by the model itself, of "
                f"{resized['images']:,} {resized['of']}"
                if resized
                else f"ONNX has no {given['filter']} filter: resize before, as mlops predict does",
            ),
            *([("not on its data", exported.missing)] if exported.missing else []),
        ],
    )
    pairs(
        "Next",
        [
            ("use it", to_copy("mlops", "predict", exported.path, "PICTURE_OR_FOLDER")),
            ("serve it", to_copy("mlops", "serve", exported.path)),
            *(
                [("how fast is it", to_copy("mlops", "bench", "CHECKPOINT", exported.path))]
                if pruned or quantized
                else []
            ),
        ],
    )


def _show_pruned(told: Mapping[str, Any]) -> str:
    left = {name: told[name]["after"] / told[name]["before"] for name in ("weights", "operations")}
    return (
        f"{told['share']:.0%} of the channels: {left['weights']:.0%} of the weights and {left['operations']:.0%} of "
        f"the operations are left; after {told['epochs']} epochs {_show_loss(told['accuracy'])}"
    )


def _show_quantized(told: Mapping[str, Any]) -> str:
    scored = (
        _show_loss(told["accuracy"])
        if told["accuracy"]
        else f"{told['agreement']:.2%} of {told['images']:,} {told['of']} get the same class"
    )
    return f"{told['to']}, calibrated on {told['calibrated_on']:,} images; {scored}"


def _show_loss(accuracy: Mapping[str, Any]) -> str:
    return (
        f"accuracy {accuracy['after']:.2%}, before {accuracy['before']:.2%}, of {accuracy['images']:,} {accuracy['of']}"
    )


def show_bench(found: Mapping[str, Any]) -> None:
    """Models side by side, the first as the measure."""
    threads = found["threads"] or f"all {found['cores']}"
    grid(
        f"{threads} thread{'s' if threads != 1 else ''}, batches of {found['batch']}",
        ("file", "MB", "p50 ms", "p99 ms", "images/s", "times the first", "accuracy"),
        [
            (
                row["file"],
                f"{row['bytes'] / 1e6:.1f}",
                f"{row['latency_ms']['p50']:.2f}",
                f"{row['latency_ms']['p99']:.2f}",
                f"{row['images_per_second']['median']:,.0f}",
                f"{row['ratio']['median']:.2f} ({row['ratio']['lowest']:.2f}-{row['ratio']['highest']:.2f})",
                "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
            )
            for row in found["models"]
        ],
    )
    said = f"images/s and times: median (lowest to highest) of {found['rounds']} rounds, in which the models took turns"
    out.print(said, soft_wrap=True)
    scored = sorted({row["images"] for row in found["models"] if row["images"]})
    if found["scored_on"]:
        told = f"accuracy on {' or '.join(f'{n:,}' for n in scored)} images: {found['scored_on']}"
        out.print(printable(told), soft_wrap=True)
    else:
        out.print(
            "no accuracy: the models' own data is not prepared here; name labelled images with --data", soft_wrap=True
        )


def show_predictions(predictions: Sequence["Prediction"]) -> None:
    """A table of files and what is on them."""
    if predictions:
        grid(
            "Predictions",
            ("file", "class", "probability"),
            [(p.path, p.label, f"{p.probability:.4f}") for p in predictions],
        )


def predictions_as_csv(predictions: Sequence["Prediction"]) -> str:
    """CSV with the columns path, label, probability."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "probability"])
    table.writerows([p.path, p.label, f"{p.probability:.6f}"] for p in predictions)
    return text.getvalue()
