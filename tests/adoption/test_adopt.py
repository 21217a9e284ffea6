import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import mlops
from conftest import Command, Outcome
from mlops import checkpoint, config
from mlops.adoption.adopt import adopt
from mlops.adoption.described import Described, read_node
from mlops.data.prepare import build_index, prepare
from mlops.errors import MlopsError
from mlops.files import sha256_of
from mlops.models import SignNet
from mlops.provenance import describe_code, describe_environment
from mlops.targets import MODELS
from mlops.training.record import describe_epoch, describe_run
from mlops.training.start import read_start

SQUEEZENET = "torchvision.models.squeezenet1_1"
OURS = (
    "--model",
    "signnet",
    "--set",
    "width=4",
    "--classes",
    "cat,dog,cow",
    "--size",
    "16",
    "--mean",
    "0",
    "--std",
    "1",
)
WRITTEN = Path("models/weights/best_model.pth")


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a SignNet as somebody trained it: no batch norm stands at its start."""
    torch.manual_seed(1)
    model = SignNet(num_classes=3, width=4)
    model(torch.randn(8, 3, 16, 16))
    return dict(model.state_dict())


@pytest.fixture
def command(mlops_command: Command) -> Callable[..., Outcome]:
    return lambda *arguments: mlops_command("adopt", *arguments)


def assert_holds(path: Path, state: dict[str, Tensor]) -> None:
    kept = checkpoint.read(path).state_dict
    assert list(kept) == list(state)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def test_what_another_program_trained_is_evaluated_used_and_reported_on(mlops_command: Command, pictures: Path):
    # Which of red, green and blue a picture has most of; its outputs are in that order, folders would be in another.
    Path("brightest.py").write_text(
        "from torch import nn\n"
        "class Brightest(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, num_classes)\n"
        "    def forward(self, images):\n"
        "        return self.head(images.mean(dim=(2, 3)))\n"
    )
    torch.save({"head.weight": 9 * torch.eye(3), "head.bias": torch.zeros(3)}, "colours.pth")
    own = ("--allow", "brightest.Brightest")
    options = ("--classes", "red,green,blue", "--size", "8", "--mean", "0.5", "--std", "0.25", *own)
    made = mlops_command("adopt", "colours.pth", "--model", "brightest.Brightest", *options)
    assert made.code == 0
    file = Path("models/colours/best_model.pth")
    assert f"mlops evaluate {file} LABELLED_PICTURES" in made.out

    scores = json.loads(mlops_command("evaluate", file, pictures, "--json", "-", *own).out)
    assert scores["accuracy"] == 1.0
    assert scores["n"] == 60
    said = mlops_command("predict", file, pictures / "red", "--csv", "-", *own)
    assert [line.split(",")[1] for line in said.out.splitlines()[1:]] == ["red"] * 20
    assert mlops_command("info", file).code == 0
    told = json.loads(mlops_command("info", file, "--json").out)
    assert told["adopted"] == {
        "file": "colours.pth",
        "sha256": sha256_of(Path("colours.pth")),
        "entry": None,
        "by": mlops.__version__,
        "assumed": ["resize", "filter"],
    }

    report = mlops_command("report", file, *own)
    assert report.code == 0
    page = (file.parent / "report" / "index.html").read_text()
    assert "colours.pth: an adopted model" in page
    assert "red, green, blue" in page
    assert "None" not in page
    assert "mlops.train" not in page
    assert "source: digits" not in page


def test_without_a_folder_it_has_no_data_to_be_scored_on(
    command: Callable[..., Outcome], mlops_command: Command, state: dict[str, Tensor]
):
    torch.save(state, "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    for split in ("test", "val"):
        (problem,) = mlops_command("evaluate", WRITTEN, "--split", split).errors
        assert problem.startswith(
            "checkpoint: was adopted from weights.pth, so it has no data of its own; name labelled"
        )
    assert not Path("data").exists()  # its config's data is the schema's default, which nobody asked for


def test_it_says_all_that_a_checkpoint_of_a_training_says(
    command: Callable[..., Outcome], state: dict[str, Tensor], pictures: Path, tmp_path: Path
):
    torch.save(state, "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    told = checkpoint.read(WRITTEN).metadata
    values = config.defaults()
    values["data"] |= {"source": "folder", "root": str(pictures), "image_size": 16}
    trained = config.load(values)
    data = prepare(build_index(trained.data), tmp_path / "processed")
    environment = describe_environment("cpu", 1, "fp32")
    of_a_run = describe_run(trained, data, overrides=(), code=describe_code(), environment=environment, start=None)
    of_a_run |= describe_epoch({"epoch": 1}, [], 1)
    assert set(told) == {*of_a_run, "epoch_digests", "format", "weights_digest", "digest", "adopted"}
    for field in ("input", "data", "code", "environment", "config"):
        assert set(told[field]) == set(of_a_run[field]), field
    assert set(told["data"].values()) == {None}
    assert (told["metrics"], told["history"], told["epoch"], told["step"]) == ({}, [], 0, 0)
    assert told["config"]["model"] == {"_target_": "mlops.models.SignNet", "width": 4, "dropout": 0.2}
    assert told["config"]["data"]["image_size"] == told["input"]["height"] == 16


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."])
@pytest.mark.parametrize("entry", [None, "state_dict", "model_state_dict", "model"])
def test_the_wrappings_of_other_trainers_are_taken_off(
    prefix: str, entry: str | None, command: Callable[..., Outcome], state: dict[str, Tensor]
):
    renamed = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    torch.save({entry: renamed, "epoch": 7} if entry else renamed, "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    assert_holds(WRITTEN, state)
    assert checkpoint.read_metadata(WRITTEN)["adopted"]["entry"] == entry


def test_of_two_sets_of_weights_in_a_file_one_is_named_and_the_other_can_be_had(
    command: Callable[..., Outcome], state: dict[str, Tensor]
):
    average = {name: tensor.clone() for name, tensor in state.items()}
    average["head.bias"] += 1
    torch.save({"model": state, "model_ema": average, "optimizer": {"lr": 0.1}}, "weights.pth")
    assert "the file also holds model_ema, which --entry takes instead" in command("weights.pth", *OURS).out
    assert_holds(WRITTEN, state)
    command("weights.pth", *OURS, "--entry", "model_ema", "--force")
    assert_holds(WRITTEN, average)
    (problem,) = command("weights.pth", *OURS, "--entry", "ema", "--force").errors
    assert problem.startswith("weights.pth: has no state dict in an entry ema; it holds model, model_ema, optimizer")


def test_a_moving_average_of_torchs_own_is_read_without_its_counter(
    command: Callable[..., Outcome], state: dict[str, Tensor]
):
    model = SignNet(num_classes=3, width=4)
    model.load_state_dict(state)
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    torch.save(average.state_dict(), "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    assert_holds(WRITTEN, state)


def test_safetensors_and_half_precision_are_read(command: Callable[..., Outcome], state: dict[str, Tensor]):
    from safetensors.torch import save_file

    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(half, "weights.safetensors")
    assert "values of float16 as float32" in command("weights.safetensors", *OURS).out
    assert_holds(WRITTEN, {name: half[name].to(tensor.dtype) for name, tensor in state.items()})


def test_counters_that_old_files_lack_are_zero(command: Callable[..., Outcome], state: dict[str, Tensor]):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    assert_holds(WRITTEN, {name: old.get(name, torch.tensor(0)) for name in state})


def test_everything_wrong_with_the_options_is_said_at_once(command: Callable[..., Outcome]):
    wrong = command(
        *("none.pth", "--model", "resnet34", "--classes", "cat,,cat", "--size", "2", "--resize", "crop"),
        *("--filter", "soft", "--mean", "123.7,116.3,103.5", "--std", "x"),
    )
    assert wrong.code == 2
    assert [problem.partition(";")[0] for problem in wrong.errors] == [
        "none.pth: cannot be read: No such file or directory",
        "--model=resnet34: no such choice",
        "--classes=cat,,cat: name 2 is blank",
        "--classes=cat,,cat: names cat more than once",
        "--size=2: must be at least 4",
        "--resize=crop: must be one of squash, pad",
        "--filter=soft: must be one of nearest, bilinear, bicubic, lanczos",
        "--mean=123.7,116.3,103.5: must be from 0 to 1, for pixels count from 0 to 1",
        "--std=x: must be one number, or three between commas: red, green, blue",
    ]
    assert "did you mean torchvision.models.resnet34?" in wrong.err
    assert not Path("models").exists()


def test_everything_that_only_the_owner_knows_is_asked_for_at_once(
    command: Callable[..., Outcome], state: dict[str, Tensor]
):
    torch.save(state, "latest.pth")
    asked = command("latest.pth", "--model", "signnet")
    assert [problem.partition(":")[0] for problem in asked.errors] == [
        "--output",  # models/latest is training's
        "--classes",
        "--size",
        "--mean and --std",
    ]


def test_everything_wrong_with_the_weights_is_said_at_once(command: Callable[..., Outcome], state: dict[str, Tensor]):
    del state["stem.1.weight"]
    state["extra"] = torch.zeros(1)
    state["stem.1.bias"] = torch.zeros(5)
    state["stem.0.weight"] = torch.full((4, 3, 3, 3), torch.nan)
    state["stem.1.num_batches_tracked"] = torch.tensor(1e30)
    state["stem.1.running_mean"] = torch.full((4,), 1e300, dtype=torch.float64)
    state["stages.0.body.0.weight"] = state["stages.0.body.0.weight"].to(torch.int8)
    torch.save(state, "weights.pth")
    wrong = command("weights.pth", *OURS)
    assert wrong.code == 2
    assert wrong.errors == [
        "weights.pth: no stem.1.weight in the file",
        "weights.pth: no extra in the network",
        "weights.pth: stem.1.bias is [5], not [4]",
        "weights.pth: NaN or infinite values in stem.0.weight",
        "weights.pth: values too large for torch.float32 in stem.1.running_mean",
        "weights.pth: values that are no whole numbers of torch.int64 in stem.1.num_batches_tracked",
        "weights.pth: values of torch.int8, not torch.float32, in stages.0.body.0.weight",
    ]
    assert not Path("models").exists()


def test_a_list_of_classes_that_is_not_the_heads_is_one_line(command: Callable[..., Outcome], state: dict[str, Tensor]):
    torch.save(state, "weights.pth")
    (problem,) = command("weights.pth", *OURS, "--classes", "cat,dog").errors
    assert problem == (
        "weights.pth: its head (head) tells 3 classes apart, and --classes names 2; name all of them in the order of "
        "the outputs"
    )


def test_weights_that_give_no_numbers_are_refused(command: Callable[..., Outcome], state: dict[str, Tensor]):
    state["stem.1.running_var"] = -state["stem.1.running_var"]  # finite, and its root is not
    torch.save(state, "weights.pth")
    (problem,) = command("weights.pth", *OURS).errors
    assert problem.startswith("model: SignNet with these weights gives [[nan, nan, nan]] for a picture of noise")
    assert not Path("models").exists()


def test_a_tensor_that_a_few_bytes_make_endless_is_named_and_not_unfolded(
    command: Callable[..., Outcome], state: dict[str, Tensor]
):
    torch.save(state | {"stem.0.weight": torch.zeros(1).expand(10**14)}, "weights.pth")
    (problem,) = command("weights.pth", *OURS).errors
    assert problem == "weights.pth: stem.0.weight is [100000000000000], not [4, 3, 3, 3]"


def test_a_file_that_would_run_code_does_not(command: Callable[..., Outcome]):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("sprung"),))

    torch.save({"state_dict": {"head.weight": Trap()}}, "weights.pth")
    torch.save({"head.weight": Trap()}, "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "old.pth"):
        (problem,) = command(name, *OURS).errors
        assert "without running code" in problem
    assert not Path("sprung").exists()


def test_a_whole_pickled_network_is_refused_with_the_way_to_its_weights(command: Callable[..., Outcome]):
    torch.save(torchvision.models.squeezenet1_1(num_classes=3), "weights.pth")
    (problem,) = command("weights.pth", *OURS).errors
    assert problem.startswith("weights.pth: holds more than tensors (")
    assert problem.endswith("where it was made, save the weights alone: torch.save(model.state_dict(), PATH)")


def test_what_is_no_plain_file_of_weights_is_one_line(
    command: Callable[..., Outcome], state: dict[str, Tensor], workplace: Path
):
    torch.save({"epoch": 3, "net": state}, "wrapped.pth")
    torch.save(state, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with zipfile.ZipFile("script.pt", "w") as script:
        script.writestr("script/constants.pkl", b"")
    command("plain.pth", *OURS)
    Path("text.pth").write_text("hello")
    for file, problem in {
        "wrapped.pth": "is no state dict, nor holds one as state_dict, model_state_dict, model; it holds epoch, net; --entry=",
        "bomb.pth": "is compressed, which torch.save never does",
        "script.pt": "is a TorchScript program, not weights; ",
        "text.pth": "is no file of weights that can be read without running code",
        "models/plain/best_model.pth": "is a checkpoint of this project already",
        str(workplace): "is a folder; name the file of weights in it",
    }.items():
        (said,) = command(file, *OURS, "--output", "new.pth").errors
        assert said.startswith(f"{Path(file)}: {problem}")


def test_a_network_that_is_not_allowed_is_not_imported(command: Callable[..., Outcome], state: dict[str, Tensor]):
    Path("planted.py").write_text("open('imported', 'w')\ndef Net(): pass\n")
    torch.save(state, "weights.pth")
    for name in ("planted.Net", "builtins.open", "pathlib.Path.touch"):
        (problem,) = command("weights.pth", *OURS, "--model", name).errors
        assert problem.startswith(f"model._target_={name}: is not an allowed name")
    assert not Path("imported").exists()


def test_nothing_is_replaced_but_by_force(command: Callable[..., Outcome], state: dict[str, Tensor]):
    torch.save(state, "weights.pth")
    assert command("weights.pth", *OURS).code == 0
    before = WRITTEN.read_bytes()
    (problem,) = command("weights.pth", *OURS).errors
    assert problem == f"--output={WRITTEN}: is there already; name another file, or replace it with --force"
    assert WRITTEN.read_bytes() == before
    assert command("weights.pth", *OURS, "--force", "--classes", "x,y,z").code == 0
    assert checkpoint.read(WRITTEN).classes == ["x", "y", "z"]
    (problem,) = command("weights.pth", *OURS, "--force", "--output", "weights.pth").errors
    assert problem == "--output=weights.pth: is the file of weights itself; name another"
    (problem,) = command("weights.pth", *OURS, "--output", "models").errors
    assert problem.startswith("--output=models: is a folder; name a file")


@pytest.mark.parametrize("content", ["cat\ndög\nbig cow\n", '["cat", "dög", "big cow"]', "\ufeffcat\r\ndög\r\nbig cow"])
def test_classes_may_stand_in_a_file(content: str, command: Callable[..., Outcome], state: dict[str, Tensor]):
    torch.save(state, "weights.pth")
    Path("names").write_text(content, encoding="utf-8", newline="")
    assert command("weights.pth", *OURS, "--classes", "names").code == 0
    assert checkpoint.read(WRITTEN).classes == ["cat", "dög", "big cow"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"cat\n\ncow\n", "name 2 is blank"),
        (b"cat\ncow\ncat\n", "names cat more than once"),
        (b'["cat", 3, "cow"]', "3: each class must be text"),
        (b'["cat", ', "is no text file with a name on each line, nor a JSON list"),
        (b"\xff\xfe\x00", "is no text file with a name on each line, nor a JSON list"),
        (b"cat\n", "holds 1 name; a classifier needs two or more"),
        (b"", "name 1 is blank"),
        (b"cat\nc\x1bow\n", r"c\x1bow: has characters that cannot be shown"),
    ],
)
def test_a_file_of_classes_with_a_mistake_is_one_line(
    content: bytes, problem: str, command: Callable[..., Outcome], state: dict[str, Tensor]
):
    torch.save(state, "weights.pth")
    Path("names").write_bytes(content)
    assert command("weights.pth", *OURS, "--classes", "names").errors[0].startswith(f"--classes=names: {problem}")


def test_scaling_that_the_library_knows_is_taken_and_said(workplace: Path):
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), "weights.pth")
    made = adopt(Path("weights.pth"), None, Described(SQUEEZENET, (), "cat,dog", 64), force=False, allow=())
    given = made.metadata["input"]
    assert given["mean"] == [0.485, 0.456, 0.406]
    assert given["std"] == [0.229, 0.224, 0.225]
    assert made.assumed[0].startswith(
        "mean and std 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, those of torchvision's"
    )
    assert made.metadata["adopted"]["assumed"] == ["mean", "std", "resize", "filter"]
    # A training that starts from it scales its pixels so, too.
    start = read_start({"_target_": SQUEEZENET, "weights": str(made.path)}, MODELS)
    assert start is not None
    assert (start.mean, start.classes) == ([0.485, 0.456, 0.406], ["cat", "dog"])


def test_scaling_on_which_published_weights_differ_is_asked_for(workplace: Path):
    name = "vit_base_patch16_224"
    assert len({timm.models.get_pretrained_cfg(full).mean for full in timm.list_pretrained(f"{name}.*")}) > 1
    described = Described("timm", (f"model_name={name}",), "cat,dog", 0)
    with pytest.raises(MlopsError, match="--mean and --std: missing; how pixels"):
        adopt(Path("none.pth"), None, described, force=False, allow=())


def test_what_was_said_of_the_images_is_kept_and_nothing_is_assumed(
    command: Callable[..., Outcome], state: dict[str, Tensor]
):
    torch.save(state, "weights.pth")
    said = command(
        "weights.pth", *OURS, "--mean", "0.1,0.2,0.3", "--std", "0.5", "--resize", "pad", "--filter", "bicubic"
    )
    assert "assumed" not in said.out
    told = checkpoint.read_metadata(WRITTEN)
    given = told["input"]
    assert (given["mean"], given["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert (given["resize"], given["filter"], given["crop"]) == ("pad", "bicubic", None)
    assert told["adopted"]["assumed"] == []


def test_a_models_file_may_refer_to_the_size_of_the_images():
    node = read_node(Described("vit_b_16", ("dropout=1e-1",), None, 64), MODELS)
    assert node == {
        "_target_": "torchvision.models.vit_b_16",
        "weights": None,
        "image_size": 64,
        "dropout": pytest.approx(0.1),
    }


@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        ("widht=4", "model.widht=4: mlops.models.SignNet takes no such parameter; did you mean model.width?"),
        ("width=wide", "model.width=wide: must be a whole number"),
        ("width", "--set=width: must be name=value, a parameter of the network"),
        ("width=[", "--model=signnet: cannot be read: "),
        ("weights=DEFAULT", "--set weights=DEFAULT: the weights are those of the file; leave it out"),
        ("width=8", "weights.pth: stem.0.weight is [4, 3, 3, 3], not [8, 3, 3, 3]"),
    ],
)
def test_a_wrong_parameter_of_the_network_is_one_line(
    parameter: str, problem: str, command: Callable[..., Outcome], state: dict[str, Tensor]
):
    torch.save(state, "weights.pth")
    (said,) = command("weights.pth", *OURS, "--set", parameter).errors
    assert said.startswith(problem)


def test_values_that_a_network_cannot_be_run_with_are_one_line(command: Callable[..., Outcome]):
    Path("fragile.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Fragile(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, num_classes)\n"
        "    def forward(self, images):\n"
        "        if images.device.type != 'meta':\n"
        "            raise KeyError('no such thing')\n"
        "        return self.head(images.mean(dim=(2, 3)))\n"
    )
    torch.save({"head.weight": torch.eye(3), "head.bias": torch.zeros(3)}, "weights.pth")
    options = ("--model", "fragile.Fragile", "--allow", "fragile.Fragile", "--set", "num_classes=3")
    (problem,) = command("weights.pth", *OURS[4:], *options).errors
    assert problem == "model: Fragile fails on a picture: 'no such thing'"
