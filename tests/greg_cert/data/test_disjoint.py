from pathlib import Path
from typing import Any

import pytest

from greg_cert.data.disjoint import check_disjoint
from greg_cert.data.schema import DataConfig
from greg_cert.errors import DataError

CIFAR = {"source": "torchvision", "dataset": "CIFAR10", "root": "d", "split": "train"}


def array(path: str, **more: str) -> dict[str, str]:
    return {"source": "array", "path": path, **more}


def check(**parts: Any) -> None:
    check_disjoint(DataConfig.model_validate({"id": {"source": "digits"}, **parts}))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"aux": {"source": "photographs"}, "ood": [{"source": "photographs", "seed": 1}]},
            r"ood\[0\]: .* with data\.aux, .*skimage/astronaut\.png",
        ),
        ({"ood": [{"source": "digits"}]}, r"ood\[0\]: .* with data\.id, .*sklearn/digits"),
        (
            {"aux": array("a.npz"), "ood": [{"source": "text"}, array("./b/../a.npz", images="x")]},
            r"ood\[1\]: .* with data\.aux, .*a\.npz",
        ),
        (
            {"id_test": array("t.npz"), "aux": array("t.npz")},
            r"aux: .* with data\.id_test, .*t\.npz",
        ),
        (
            {"aux": {"source": "folder", "path": "d/tiny"}, "ood": [array("d/tiny/ood/x.npy")]},
            r"ood\[0\]: .* with data\.aux, .*lies inside",
        ),
        (
            {"aux": array("d/tiny/x.npy"), "ood": [{"source": "folder", "path": "d"}]},
            r"ood\[0\]: .* with data\.aux, .*lies inside",
        ),
        ({"id": CIFAR, "aux": CIFAR | {"root": "e"}}, r"aux: .* with data\.id, .*CIFAR10's train"),
        (
            {"id": CIFAR, "ood": [{"source": "folder", "path": "d/cifar-10-batches-py"}]},
            r"ood\[0\]: .* with data\.id, .*cifar-10-batches-py",
        ),
    ],
)
def test_one_source_in_two_roles(parts: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.{said}"):
        check(**parts)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "true").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "true")
    with pytest.raises(DataError, match="in both"):
        check(
            aux={"source": "folder", "path": tmp_path / "true"},
            ood=[{"source": "folder", "path": tmp_path / "alias"}],
        )


def test_what_is_disjoint_is_let_through() -> None:
    check(
        id=CIFAR,
        id_test=CIFAR | {"split": "test"},
        aux={"source": "folder", "path": "d/tiny"},
        ood=[
            {"source": "folder", "path": "d/tiny2"},
            CIFAR | {"dataset": "CIFAR100"},
            {"source": "textures"},
            {"source": "text"},
            {"source": "faces"},
        ],
    )
    check(aux={"source": "photographs"}, ood=[{"source": s} for s in ("textures", "text", "faces")])
    check(id=array("a.npz"), id_test=array("a.npz", images="test_images"))
