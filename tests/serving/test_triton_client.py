"""Triton's own client, unchanged, against a running server with a model of images named digits."""

import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

COUNT = 3


@pytest.fixture
def client(served: Any) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(urlsplit(served.url).netloc, connection_timeout=10, network_timeout=30) as found:
        yield found


@pytest.fixture
def pixels(client: InferenceServerClient) -> np.ndarray:
    """Images uint8 `[COUNT, H, W, 3]` of a size that the model takes."""
    (shape,) = [one["shape"] for one in client.get_model_metadata("digits")["inputs"] if one["name"] == "images"]
    height, width = (side if side > 0 else 12 for side in shape[1:3])
    return np.random.default_rng(0).integers(0, 256, (COUNT, height, width, 3), np.uint8)


def images(pixels: np.ndarray, *, binary: bool = True) -> InferInput:
    return InferInput("images", list(pixels.shape), "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def encoded(contents: list[bytes]) -> InferInput:
    return InferInput("encoded", [len(contents)], "BYTES").set_data_from_numpy(np.array(contents, object))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def probabilities(client: InferenceServerClient, one: InferInput, **others: Any) -> np.ndarray:
    return client.infer("digits", [one], **others).as_numpy("probabilities")


def refusal(
    client: InferenceServerClient, one: InferInput, *, model: str = "digits", **others: Any
) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [one], **others)
    return caught.value


def test_says_that_it_lives_and_is_ready(client: InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("cats")


def test_tells_of_itself_and_of_its_models(client: InferenceServerClient):
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    told = client.get_model_metadata("digits")
    assert told["name"] == "digits"
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert client.get_model_config("digits")["max_batch_size"] >= COUNT


def test_each_version_it_names_is_ready_and_answers(client: InferenceServerClient, pixels: np.ndarray):
    (version, *_) = client.get_model_metadata("digits")["versions"]
    assert client.is_model_ready("digits", version)
    assert client.get_model_metadata("digits", version)["name"] == "digits"
    assert client.infer("digits", [images(pixels)], version).get_response()["model_version"] == version
    assert not client.is_model_ready("digits", "0" * 12)


def test_binary_and_json_give_the_same_probabilities(client: InferenceServerClient, pixels: np.ndarray):
    found = probabilities(client, images(pixels))
    assert found.shape == (COUNT, 10)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    as_json = [InferRequestedOutput("probabilities", binary_data=False)]
    again = probabilities(client, images(pixels, binary=False), outputs=as_json)
    # Of another batch, perhaps, beside other requests.
    np.testing.assert_allclose(again, found, atol=1e-5)


def test_image_files_are_decoded(client: InferenceServerClient, pixels: np.ndarray):
    found = probabilities(client, encoded([png(image) for image in pixels]))
    np.testing.assert_allclose(found, probabilities(client, images(pixels)), atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_the_highest_classes_by_name(client: InferenceServerClient, pixels: np.ndarray, binary: bool):
    asked = [InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    texts = probabilities(client, images(pixels), outputs=asked)
    found = probabilities(client, images(pixels))
    assert texts.shape == (COUNT, 2)
    for row, text in zip(found, texts[:, 0], strict=True):
        value, place, label = (text if isinstance(text, str) else text.decode()).split(":", 2)
        assert int(place) == row.argmax()
        assert float(value) == pytest.approx(row.max(), abs=1e-5)
        assert label


def test_several_at_once_get_their_own_answers(served: Any, client: InferenceServerClient, pixels: np.ndarray):
    with InferenceServerClient(urlsplit(served.url).netloc, concurrency=COUNT) as several:
        pending = [several.async_infer("digits", [images(image[None])], request_id=str(place)) for place, image in enumerate(pixels)]  # fmt: skip
        results = [one.get_result() for one in pending]
    assert [one.get_response()["id"] for one in results] == ["0", "1", "2"]
    rows = np.concatenate([one.as_numpy("probabilities") for one in results])
    np.testing.assert_allclose(rows, probabilities(client, images(pixels)), atol=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_answers_asked_for_compressed(
    client: InferenceServerClient, pixels: np.ndarray, algorithm: str
):
    others = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    np.testing.assert_allclose(probabilities(client, images(pixels), **others), probabilities(client, images(pixels)), atol=1e-5)  # fmt: skip


def test_an_unknown_model_and_version_are_404(client: InferenceServerClient, pixels: np.ndarray):
    error = refusal(client, images(pixels), model="cats")
    assert error.status() == "404"
    assert "cats" in error.message()
    assert refusal(client, images(pixels), model_version="0" * 12).status() == "404"
    with pytest.raises(InferenceServerException, match="cats"):
        client.get_model_metadata("cats")


def test_what_does_not_suit_the_model_is_400_and_says_why(client: InferenceServerClient, pixels: np.ndarray):
    wrong = InferInput("images", [2, 2], "UINT8").set_data_from_numpy(np.zeros((2, 2), np.uint8))
    error = refusal(client, wrong)
    assert error.status() == "400"
    assert "inputs[0].shape=[2, 2]: images must be" in error.message()
    floats = InferInput("images", list(pixels.shape), "FP32").set_data_from_numpy(pixels.astype(np.float32))
    assert 'inputs[0].datatype="FP32": images must be UINT8' in refusal(client, floats).message()
    asked = [InferRequestedOutput("logits")]
    assert 'outputs[0].name="logits"' in refusal(client, images(pixels), outputs=asked).message()


def test_a_file_that_is_no_image_is_refused(client: InferenceServerClient):
    error = refusal(client, encoded([b"no image"]))
    assert error.status().startswith("4")
    assert error.message()


def test_the_connection_goes_on_after_a_refusal(client: InferenceServerClient, pixels: np.ndarray):
    refusal(client, images(pixels), model="cats")
    assert probabilities(client, images(pixels)).shape == (COUNT, 10)
