import pytest
from pydantic import ValidationError

from greg_cert.data.schema import DataConfig

DIGITS = {"source": "digits"}


def test_titles_and_round_trip_through_json() -> None:
    config = DataConfig.model_validate(
        {
            "id": {"source": "array", "path": "a/mnist.npz", "images": "train_images"},
            "ood": [{"source": "textures"}, {"source": "folder", "path": "b/dtd", "name": "DTD"}],
        }
    )
    assert [config.id.title, *(s.title for s in config.ood)] == ["mnist", "textures", "DTD"]
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": {"source": "uniform"}}, "uniform"),
        ({"id": {"source": "digits", "path": "x"}}, "path"),
        ({"extra": 1}, "extra"),
        ({"calibration": float("nan")}, "calibration"),
        ({"calibration": 0.6, "test": 0.4}, "0.6 + 0.4"),
        ({"channels": 2}, "channels"),
        ({"image_size": 0}, "image_size"),
        ({"ood": [{"source": "text", "n": 0}]}, "ood.0.text.n"),
        ({"ood": [{"source": "text"}, {"source": "faces", "name": "text"}]}, "'text'"),
        ({"aux": {"source": "torchvision", "dataset": "LSUN", "root": "x"}}, "dataset"),
    ],
)
def test_what_needs_no_file_is_refused_at_once(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        DataConfig.model_validate({"id": DIGITS} | change)
    assert said in str(error.value)


def test_test_fraction_is_ignored_beside_a_test_set() -> None:
    DataConfig.model_validate({"id": DIGITS, "id_test": DIGITS, "calibration": 0.9, "test": 0.9})
