from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import picture, read, save
from pydantic import ValidationError

from greg_cert.data import DataConfig, load_data
from greg_cert.data.disjoint import check_disjoint
from greg_cert.data.files.class_lists import CLASS_LISTS
from greg_cert.data.sources.folder import FolderSource
from greg_cert.errors import DataError

NAMES = ("ant", "bee", "cow", "dog", "elk")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        for i in range(8):
            save(tmp_path / "all" / name / f"{i}.png", picture(6, 6, 3))
    return tmp_path / "all"


def test_classes_are_labelled_in_the_order_they_are_listed(root: Path, tmp_path: Path) -> None:
    whole, some = read(root), read(root, classes=["dog", "ant"])
    assert some.classes == ("dog", "ant")
    assert some.labels.tolist() == [0] * 8 + [1] * 8
    assert (some.images == whole.images[[*range(24, 32), *range(8)]]).all()
    (tmp_path / "list.txt").write_text("# two\ndog  # woof\n\nant\n")
    assert read(root, classes_file=tmp_path / "list.txt").fingerprint() == some.fingerprint()
    (tmp_path / "marked.txt").write_text("dog\nant\n", encoding="utf-8-sig")  # as on Windows
    assert read(root, classes_file=tmp_path / "marked.txt").fingerprint() == some.fingerprint()
    rest = read(root, exclude_classes_file=tmp_path / "list.txt")
    assert rest.classes == ("bee", "cow", "elk")
    assert read(root, exclude_classes=["ant"]).classes == NAMES[1:]
    (root / "notes.csv").write_text("x")  # beside the classes that are asked for
    assert read(root, classes=["dog", "ant"]).classes == ("dog", "ant")


def test_classes_that_are_not_there(root: Path, tmp_path: Path) -> None:
    for name in ("classes", "exclude_classes"):
        with pytest.raises(DataError, match=rf"^data\.id\.{name}: .*'bees'.* Did you mean 'bee'\?"):
            read(root, **{name: ["ant", "bees"]})
    with pytest.raises(DataError, match=r"data\.id\.classes_file: .*readable text file.*no\.txt"):
        read(root, classes_file=tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match=r"data\.id\.exclude_classes_file: .*at least one class"):
        read(root, exclude_classes_file=tmp_path / "empty.txt")
    (tmp_path / "twice.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(DataError, match=r"every class once, but got 'ant'"):
        read(root, classes_file=tmp_path / "twice.txt")
    with pytest.raises(DataError, match=r"exclude_classes: expected some class .* left"):
        read(root, exclude_classes=list(NAMES))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["a"], "exclude_classes": ["b"]}, "at most one of classes"),
        ({"classes": ["a", "b", "a"]}, "every class once, but 'a'"),
        ({"classes": []}, "at least 1 item"),
        ({"classes": "imagenet10"}, "imagenet10-mcm"),
        ({"inside": "x"}, "only where path is an archive"),
        ({"path": "a.zip", "inside": "../x"}, "below the archive's top"),
        ({"crop": 0}, "crop"),
        ({"keep": "gpu"}, "keep"),
    ],
)
def test_contradictions_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        FolderSource.model_validate({"path": "x", **options})
    assert said in str(error.value)


def test_published_lists() -> None:
    assert {name: len(ids) for name, ids in CLASS_LISTS.items()} == {
        "imagenet10-mcm": 10, "imagenet20-mcm": 20, "imagenet100-mcm": 100, "imagenet10-greg": 10,
        "imagenet20-greg": 20, "imagenet50-greg": 50, "imagenet100-greg": 100,
    }  # fmt: skip
    for ids in CLASS_LISTS.values():
        assert len(set(ids)) == len(ids)
        assert all(len(i) == 9 and i[0] == "n" and i[1:].isdigit() for i in ids)
    assert CLASS_LISTS["imagenet100-greg"][:10] == CLASS_LISTS["imagenet10-greg"]
    source = FolderSource.model_validate({"path": "x", "exclude_classes": "imagenet20-mcm"})
    assert source.exclude_classes == CLASS_LISTS["imagenet20-mcm"]


def test_gregs_classes_follow_its_rule() -> None:
    package = find_spec("pytorch_ood")  # not imported, which takes seconds
    assert package is not None
    assert package.origin is not None
    resources = Path(package.origin).parent / "dataset" / "img" / "resources"
    ids: list[str] = []
    for name in ("imagenet200_classes.txt", "imagenet800_classes.txt"):
        if not (resources / name).is_file():
            pytest.skip("pytorch-ood has its ImageNet lists no more")
        ids += (resources / name).read_text().split()
    ids.sort()
    assert len(ids) == 1000
    order = np.random.RandomState(1993).permutation(1000)
    expected = [ids[v] for v in np.argsort(order)[:100]]
    assert CLASS_LISTS["imagenet100-greg"] == tuple(expected)
    assert all(set(names) <= set(ids) for names in CLASS_LISTS.values())


def folder(root: Path, **more: Any) -> dict[str, Any]:
    return {"source": "folder", "path": root, **more}


@pytest.mark.parametrize(
    ("mine", "others", "apart"),
    [
        ({"path": "a.tar.xz", "inside": "x/train"}, {"path": "a.tar.xz", "inside": "x/aux"}, True),
        ({"path": "a.tar.xz", "inside": "x/train"}, {"path": "a.tar.xz", "inside": "x"}, False),
        ({"classes": ["ant", "bee"]}, {"exclude_classes": ["bee", "ant"]}, True),
        ({"classes": ["ant", "bee"]}, {"exclude_classes": ["bee", "ant", "cow"]}, True),
        ({"classes": ["ant", "bee"]}, {"exclude_classes": ["ant"]}, False),
        ({"classes": ["ant", "bee"]}, {"classes": ["cow"]}, True),
        ({"classes": ["ant", "bee"]}, {"classes": ["cow", "bee"]}, False),
        ({"classes": ["ant", "bee"]}, {}, False),
        ({"exclude_classes": ["ant"]}, {"classes": ["ant"]}, True),
        ({"exclude_classes": ["ant"]}, {"exclude_classes": ["bee"]}, False),
    ],
)
def test_one_place_serves_two_roles_only_by_disjoint_folders_and_classes(
    mine: dict[str, Any], others: dict[str, Any], apart: bool
) -> None:
    both = ({"source": "folder", "path": "d", **part} for part in (mine, others))
    config = DataConfig.model_validate(dict(zip(("id", "aux"), both, strict=True)))
    if apart:
        check_disjoint(config)
    else:
        common = r"(in both|of which one lies inside the other)$"
        with pytest.raises(DataError, match=rf"^data\.aux: .*nothing with data\.id.*{common}"):
            check_disjoint(config)


def test_id_and_auxiliary_images_from_one_root(root: Path) -> None:
    known = folder(root, classes=["dog", "bee"])
    others = folder(root, exclude_classes=["dog", "bee"], limit=20)
    config = {"id": known, "aux": others, "calibration": 0.25, "test": 0.25}
    splits = load_data(DataConfig.model_validate(config))
    assert splits.train.classes == ("dog", "bee")
    assert splits.aux is not None
    assert len(splits.aux) == 20
