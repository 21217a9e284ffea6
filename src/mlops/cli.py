"""`mlops`: tools that start from a checkpoint or a model. Heavy imports wait until a command needs them."""

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import mlops
from mlops import data_cli
from mlops.errors import MlopsError, fail, printable
from mlops.files import users_to_mend

app = typer.Typer(
    help="Tools that start from a checkpoint or a model: everything they need is in that one file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_cli.app, name="data")

LATEST = "models/latest/best_model.pth"
LATEST_ONNX = "models/latest/model.onnx"

Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Full name of a network of your own that the checkpoint may build.", metavar="NAME"),
]
# Text: as a Path, gs:// would become gs:/.
Checkpoint = Annotated[
    str,
    typer.Argument(
        help="best_model.pth of a run: a file, an address such as gs://bucket/best_model.pth, or that of a published "
        "model",
        metavar="CHECKPOINT",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mlops {mlops.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def info(
    checkpoint: Checkpoint = LATEST,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything but the weights as JSON.")] = False,
    as_config: Annotated[
        bool,
        typer.Option("--config", help="Print the settings as YAML that mlops-train takes by --config-dir and -name."),
    ] = False,
) -> None:
    """Show what a checkpoint recognises, how well, and what it was made from. Its weights are not read."""
    from mlops import registry
    from mlops.checkpoint import read_metadata
    from mlops.story import config_as_yaml, show_story

    if as_json and as_config:
        raise MlopsError("--json, --config: choose one")
    with registry.opened(checkpoint) as path:
        story = read_metadata(path)
    if as_json:
        _print(json.dumps(story, indent=1, ensure_ascii=False) + "\n")
    elif as_config:
        _print(config_as_yaml(story))
    else:
        show_story(registry.name_of(checkpoint), story)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A checkpoint: a file or an address", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another one", metavar="B")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """Show what differs between two checkpoints; the exit code is 0 where nothing does, else 1.

    Everything that they tell is compared but when they were written and the words of the command: config, classes,
    input, data, code, environment, start weights, metrics; and the weights, by the digests that the files keep of them.
    """
    from mlops import registry
    from mlops.checkpoint import read_metadata
    from mlops.story import differences, plain, show_differences

    stories, problems = [], list[str]()
    for where in (first, second):
        try:
            with registry.opened(where) as path:
                stories.append(read_metadata(path))
        except MlopsError as error:
            problems += error.problems
    if problems:
        raise MlopsError(problems)
    found = differences(*stories)
    if as_json:
        _print(json.dumps({"same": not found, "differences": plain(found)}, indent=1, ensure_ascii=False) + "\n")
    else:
        show_differences(registry.name_of(first), registry.name_of(second), found)
    if found:
        raise typer.Exit(1)


@app.command()
def evaluate(
    checkpoint: Checkpoint = LATEST,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, .tar or .zip: as <class>/<image>, as <split>/<class>/<image>, or with the table that a "
            "checkpoint of data=csv or data=gtsrb was trained on; the checkpoint's own data when left out",
            metavar="DATA",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val or test: which split of the checkpoint's own data (test when left out), or the images "
            "that DATA itself puts there (all when left out)."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Regular expression on DATA's file names, as data.group: images in which it finds the same belong "
            "together, which the interval needs to know.",
            metavar="REGEX",
        ),
    ] = None,
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
    json_file: Annotated[
        str | None, typer.Option("--json", help="Also write the scores here; - is standard output.")
    ] = None,
    allow: Allow = None,
) -> None:
    """Score a checkpoint: accuracy and its interval, calibration, every class, and the confusion matrix."""
    from mlops import registry
    from mlops.evaluation.run import evaluate_checkpoint
    from mlops.files import write_text
    from mlops.tables import show_scores

    with registry.opened(checkpoint) as path:
        scores = evaluate_checkpoint(path, data, split, processed, allow or (), group=group)
    text = json.dumps(scores, indent=1, ensure_ascii=False)
    if json_file == "-":
        _print(text + "\n")
        return
    show_scores(scores)
    if json_file is not None:
        write_text(Path(json_file), text + "\n")


@app.command()
def report(
    checkpoint: Checkpoint = LATEST,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the report goes; a folder beside the checkpoint (here, if that is in a bucket) when left out.",
            metavar="FOLDER",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the checkpoint's own data: train, val or test.")] = "test",
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
    allow: Allow = None,
) -> None:
    """Write a page about a checkpoint: curves, confusions, worst mistakes, calibration, how to make it again."""
    from mlops import registry
    from mlops.evaluation.run import report_checkpoint
    from mlops.tables import show_report

    folder = output or registry.folder_of(checkpoint) / ("report" if split == "test" else f"report-{split}")
    with registry.opened(checkpoint) as path:
        missing = report_checkpoint(path, folder, split, processed, allow or ())
    show_report(folder, missing)


@app.command()
def predict(
    # Both are checked below, not by Typer (readable, a default): its message is a box of several lines.
    model: Annotated[
        str | None,
        typer.Argument(
            help="best_model.pth of a run, or model.onnx of mlops export: a file, or an address such as "
            "gs://bucket/model.onnx; none with --url",
            metavar="MODEL",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files, or folders that are searched for them", metavar="IMAGE", readable=False),
    ] = None,
    csv_file: Annotated[
        str | None, typer.Option("--csv", help="Write a CSV here instead of a table; - is standard output.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Ask an mlops serve instead, such as http://localhost:8000.", metavar="URL")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="With --url: which of its models; its default when left out.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="With --url: a file with the API key; the environment's MLOPS_API_KEY when left out.", readable=False
        ),
    ] = None,
    allow: Allow = None,
) -> None:
    """Name what is on pictures. Those that cannot be read are listed at the end, and the exit code is 2 then."""
    from mlops import registry
    from mlops.tables import predictions_as_csv, show_predictions

    if url is not None:
        from mlops.evaluation.served import key_of, predict_served

        # The first word is an image like the others then.
        words = [*([Path(model)] if model is not None else []), *(images or [])]
        _check_served(url, words, allow)
        predictions, unreadable = predict_served(url, words, name, key_of(key_file))
    else:
        model, images = _checked_here(model, images, {"--model": name, "--key-file": key_file})
        with registry.opened(model) as path:
            if path.suffix.lower() == ".onnx":
                from mlops.evaluation.predict import predict_with_onnx

                predictions, unreadable = predict_with_onnx(path, images)
            else:
                from mlops.evaluation.run import predict_images

                predictions, unreadable = predict_images(path, images, allow or ())
    if csv_file is None:
        show_predictions(predictions)
    elif csv_file == "-":
        _print(predictions_as_csv(predictions))
    else:
        from mlops.files import write_text

        write_text(Path(csv_file), predictions_as_csv(predictions))
    if unreadable:
        raise MlopsError([f"{path}: {reason}" for path, reason in unreadable])


_PREDICT = "mlops predict MODEL IMAGE..., or mlops predict --url URL IMAGE..."


def _check_served(url: str, words: list[Path], allow: list[str] | None) -> None:
    if allow:
        raise MlopsError("--allow: is for checkpoints on this machine; leave it out with --url")
    if not words:
        raise MlopsError(f"--url={url}: name an image or a folder as well: {_PREDICT}")
    if words[0].suffix.lower() in (".pth", ".onnx"):
        raise MlopsError(f"{words[0]}: leave it out: with --url the server has the models; --model NAME names one")


def _checked_here(
    model: str | None, images: list[Path] | None, served_only: dict[str, object]
) -> tuple[str, list[Path]]:
    if given := [option for option, value in served_only.items() if value is not None]:
        raise MlopsError(f"{given[0]}: is for a server; give its --url, or leave {given[0]} out: {_PREDICT}")
    if model is None:
        raise MlopsError(f"name a model and an image: {_PREDICT}")
    if model.startswith(("http://", "https://")):
        raise MlopsError(f"{model}: is a server, not a model; put --url before it")
    if not images:
        raise MlopsError(f"{model}: name an image or a folder as well: {_PREDICT}")
    return model, images


@app.command()
def reproduce(
    checkpoint: Checkpoint = LATEST,
    epochs: Annotated[
        int | None, typer.Option(help="Prove the first so many epochs only; all when left out.", min=1)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where the images are now; as the checkpoint says when left out.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Where the start weights are now: a file or an address; as the checkpoint says when left out, but "
            "nothing is fetched from an address that only the checkpoint names."
        ),
    ] = None,
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
    outputs: Annotated[Path, typer.Option(help="Where the run goes that is trained for this.")] = Path("outputs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    allow: Allow = None,
) -> None:
    """Train again from what a checkpoint says, and compare every epoch: exit code 0 if identical, 1 if not."""
    import logging

    from mlops import registry, stopping
    from mlops.progress import ConsoleHandler
    from mlops.reproduce import reproduce as train_again
    from mlops.reproduce import show_proof

    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler()])
    stopping.listen()
    with registry.opened(checkpoint) as path:
        proof = train_again(
            path,
            epochs=epochs,
            data=data,
            weights=weights,
            processed=processed,
            outputs=outputs,
            allow=allow or (),
        )
    if as_json:
        _print(json.dumps(proof.as_json(), indent=1, allow_nan=False) + "\n")
    else:
        show_proof(registry.name_of(checkpoint), proof)
    raise typer.Exit(0 if proof.identical else 1)


@app.command()
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


@app.command()
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
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
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


@app.command()
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


@app.command()
def new_key(name: Annotated[str, typer.Argument(help="Whose key it is", metavar="NAME")]) -> None:
    """Make an API key: the key itself, to give away, and the line for the file of mlops serve --keys."""
    from mlops.serving.keys import new_key as make

    key, line = make(name)
    typer.echo(f"key   {key}\nline  {line}")


@app.command()
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
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
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
        _print(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    else:
        show_bench(found)


@app.command()
def publish(
    checkpoint: Checkpoint,
    address: Annotated[
        str, typer.Argument(help="Where, and under which name: gs://bucket/models/NAME", metavar="ADDRESS")
    ],
) -> None:
    """Put a finished checkpoint into a bucket under a name, by which every command finds the latest of that name."""
    from mlops import registry
    from mlops.publish import publish as publish_checkpoint
    from mlops.publish import show_published

    with registry.opened(checkpoint) as path:
        published = publish_checkpoint(path, address)
    show_published(published)


@app.command()
def doctor(
    processed: Annotated[Path, typer.Option(help="Where prepared data lies.")] = Path("data/processed"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look for what stands in the way of a training here, and name the command that mends it; exit code 1 if any."""
    from mlops.doctor import examine, show

    raise typer.Exit(0 if show(examine(processed), as_json=as_json) else 1)


def _print(text: str) -> None:
    """Print what a program may read: into files and pipes as it is; names in it must not steer a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(printable(line) for line in text.split("\n"))
    typer.echo(text, nl=False)


def main(arguments: list[str] | None = None) -> Any:
    """The entrypoint: a mistake of the user's is one line a problem and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # On Windows a pipe has the machine's old code page, which lacks most letters that a class name may have.
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors)
    try:
        return app(arguments)
    except MlopsError as error:
        fail(error)
    except OSError as error:
        if (known := users_to_mend(error)) is None:
            raise
        fail(known)


if __name__ == "__main__":
    main()
