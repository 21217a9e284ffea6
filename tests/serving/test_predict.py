"""What the routes answer."""

from samples import png
from serving.server import Server

BLUE, RED = png(1, colour=(20, 30, 220)), png(2, colour=(220, 30, 20))


def test_a_form_with_one_file_is_answered_with_its_class(served: Server):
    answer = served.send("/predict?top=2", ("a.png", BLUE))
    assert answer.status == 200
    (found,) = answer.json["predictions"]
    assert (found["file"], found["class"]) == ("a.png", "blue")
    assert [one["class"] for one in found["top"]][0] == "blue"
    assert len(found["top"]) == 2
    assert answer.json["model"] == "colours"
