"""The commands of `mlops` from a checkpoint to a service: `adopt`, `export`, `bench`, `serve`, `new-key`.

Imports wait until they are needed.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from mlops.cli_common import LATEST, PROCESSED, Allow, Checkpoint, Processed, say
from mlops.errors import MlopsError

LATEST_ONNX = "models/latest/model.onnx"


def adopt(
    weights: Annotated[
        str,
        typer.Argument(
            help="A state dict by torch.save, plain or wrapped, a .safetensors, or a whole model as .onnx: a file or "
            "an address",
            metavar="WEIGHTS",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A choice of configshydra/model, such as resnet18, or the full name of a network."),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the network, such as width=8; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="All classes in the order of the network's outputs: cats,dogs, or a file with one name a line or a "
            "JSON list.",
            metavar="NAMES",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width of the images it was trained on, pixels.", metavar="PIXELS")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write; models/<name of WEIGHTS>/best_model.pth, or model.onnx of a .onnx, when left out.",
            metavar="FILE",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Of the pixels (0 to 1) in its training: one number, or red,green,blue. Left out with --std: those of "
            "the weights that torchvision or timm publish for the network.",
            metavar="NUMBERS",
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.", metavar="NUMBERS")] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="How its images became square: squash (when left out) or pad.", metavar="squash|pad"),
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter", help="Resampling: nearest, bilinear (when left out), bicubic or lanczos.", metavar="NAME"
        ),
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(
            help="The key in WEIGHTS under which the state dict is, such as model_ema; state_dict, model_state_dict or "
            "model when left out.",
            metavar="KEY",
        ),
    ] = None,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="Of a .onnx, what its graph does not tell: images:nchw|nhwc,0-1|0-255,rgb|bgr, such as images:0-1, or "
            "features:512, or features:NAME,NAME.",
            metavar="KIND:WORDS",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            help="Of a .onnx, what it gives: logits or probabilities, found by trying when left out; logits:NAME takes "
            "one of several outputs.",
            metavar="KIND",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    allow: Allow = None,
) -> None:
    """Make a checkpoint of weights, or a model of a .onnx, from elsewhere: checked, complete and marked so."""
    from mlops import registry
    from mlops.adoption.adopt import adopt as adopt_weights
    from mlops.adoption.described import Described
    from mlops.tables import show_adopted, show_adopted_onnx

    described = Described(model, parameters or (), classes, size, mean, std, resize, filter_, entry)
    with registry.opened(weights) as path:
        if path.suffix.lower() == ".onnx":
            from mlops.adoption.onnx_model import adopt_onnx

            show_adopted_onnx(adopt_onnx(path, output, described, said=input_, scores=scores, force=force))
            return
        if said := [name for name, value in (("--input", input_), ("--scores", scores)) if value is not None]:
            raise MlopsError([f"{name}: goes with a model that ends in .onnx, not with weights" for name in said])
        adopted = adopt_weights(path, output, described, force=force, allow=allow or ())
    show_adopted(adopted)


def export(
    checkpoint: Checkpoint = LATEST,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write; model.onnx beside the checkpoint (here, if that is in a bucket) when left out.",
            metavar="FILE",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder, .tar or .zip of images to compare the answers on; the checkpoint's own validation images "
            "when left out."
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Compare on at most so many.")] = 1000,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="int8: let the network compute in eight bits, calibrated on --data or on validation images.",
            metavar="int8",
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            help="Take out this share of the channels (0.3), then train on the checkpoint's own data.", metavar="SHARE"
        ),
    ] = None,
    finetune_epochs: Annotated[int, typer.Option(help="How long, after --prune.", metavar="EPOCHS")] = 5,
    allow_loss: Annotated[
        float,
        typer.Option(help="Points of accuracy that --prune, and --quantize, may cost at most.", metavar="POINTS"),
    ] = 0.5,
    processed: Processed = PROCESSED,
    allow: Allow = None,
) -> None:
    """Write a checkpoint as ONNX: one file that runs without torch and was seen to answer alike."""
    import logging

    from mlops import registry
    from mlops.export.run import export_checkpoint
    from mlops.export.smaller import Smaller
    from mlops.progress import ConsoleHandler
    from mlops.tables import show_export

    if prune is not None:
        logging.basicConfig(format="%(message)s", handlers=[ConsoleHandler()])
        logging.getLogger("mlops").setLevel(logging.INFO)  # the exporter's own would tell of each of its passes
    file = output or registry.folder_of(checkpoint) / "model.onnx"
    smaller = Smaller(quantize, prune, finetune_epochs, allow_loss)
    with registry.opened(checkpoint) as path:
        exported = export_checkpoint(path, file, data, processed, allow or (), images=images, smaller=smaller)
    show_export(exported)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="model.onnx of mlops export or adopt: a file, or an address such as gs://bucket/model.onnx; with "
            f"NAME= in front, under that name. {LATEST_ONNX} when left out",
            metavar="[NAME=]FILE...",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file with ensembles, aliases, limits, keys: see docs/serving.md.", metavar="FILE"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 is any that is free.")] = 8000,
    workers: Annotated[
        int | None, typer.Option(help="Processes that answer; one for each processor when left out.", metavar="N")
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Load a model again when its file changes.")] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File with the API keys that are let in, as lines of mlops new-key; MLOPS_API_KEYS holds lines too. "
            "Without any, everybody is.",
            metavar="FILE",
        ),
    ] = None,
    admin_host: Annotated[str, typer.Option(help="Address of metrics and administration.")] = "127.0.0.1",
    admin_port: Annotated[
        int | None, typer.Option(help="Their port; the one after --port when left out.", metavar="PORT")
    ] = None,
) -> None:
    """Answer over HTTP which class is on a picture. No torch; stop it with Ctrl-C or SIGTERM."""
    from mlops.serving.start import start

    raise typer.Exit(
        start(
            models or [],
            config,
            keys,
            (host, port, admin_host, admin_port),
            workers,
            default=LATEST_ONNX,
            reload=reload,
        )
    )


def new_key(name: Annotated[str, typer.Argument(help="Whose key it is", metavar="NAME")]) -> None:
    """Make an API key: the key itself, to give away, and the line for the file of mlops serve --keys."""
    from mlops.serving.keys import new_key as make

    key, line = make(name)
    typer.echo(f"key   {key}\nline  {line}")


def bench(
    # Not checked by Typer, whose message is a box of several lines.
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="model.onnx and best_model.pth, files or addresses; the first is the measure", metavar="FILE"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder, .tar or .zip of images to score them on, in folders named as classes; each model's own "
            "validation images, where they are prepared, when left out."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of each model; 0 is one for each core.")] = 1,
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often the models take turns.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    processed: Processed = PROCESSED,
    allow: Allow = None,
) -> None:
    """Measure models side by side: latency, throughput, accuracy, and how many times the first one's speed."""
    from contextlib import ExitStack

    from mlops import registry
    from mlops.export.bench import Settings
    from mlops.export.bench import bench as measure
    from mlops.tables import show_bench

    if not files:
        raise MlopsError("FILE: is missing; name one or more models: mlops bench best_model.pth model.onnx")
    with ExitStack() as stack:
        opened = [(stack.enter_context(registry.opened(file)), registry.name_of(file)) for file in files]
        found = measure(opened, data, processed, allow or (), Settings(threads, batch, rounds))
    if as_json:
        say(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    else:
        show_bench(found)
