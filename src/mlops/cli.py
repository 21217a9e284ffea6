"""`mlops`: tools that start from a checkpoint or a model. Heavy imports wait until a command needs them."""

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import mlops
from mlops import data_cli, onnx_cli
from mlops.cli_common import LATEST, PROCESSED, Allow, Checkpoint, Processed, say
from mlops.errors import MlopsError, fail
from mlops.files import users_to_mend

app = typer.Typer(
    help="Tools that start from a checkpoint or a model: everything they need is in that one file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_cli.app, name="data")


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
        say(json.dumps(story, indent=1, ensure_ascii=False) + "\n")
    elif as_config:
        say(config_as_yaml(story))
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
        say(json.dumps({"same": not found, "differences": plain(found)}, indent=1, ensure_ascii=False) + "\n")
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
    processed: Processed = PROCESSED,
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
        say(text + "\n")
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
    processed: Processed = PROCESSED,
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
        say(predictions_as_csv(predictions))
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
    processed: Processed = PROCESSED,
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
        say(json.dumps(proof.as_json(), indent=1, allow_nan=False) + "\n")
    else:
        show_proof(registry.name_of(checkpoint), proof)
    raise typer.Exit(0 if proof.identical else 1)


# Here, because the help lists commands in the order in which they are named.
for command in (onnx_cli.adopt, onnx_cli.export, onnx_cli.bench, onnx_cli.serve, onnx_cli.new_key):
    app.command()(command)


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
    processed: Processed = PROCESSED,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look for what stands in the way of a training here, and name the command that mends it; exit code 1 if any."""
    from mlops.doctor import examine, show

    raise typer.Exit(0 if show(examine(processed), as_json=as_json) else 1)


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
