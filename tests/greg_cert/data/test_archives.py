import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_files import picture, read
from PIL import Image

from greg_cert.data.files import archives
from greg_cert.data.files.archives import close_archives
from greg_cert.errors import DataError

KINDS = [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"]


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(6, 6, 3)).save(out, "PNG")
    return out.getvalue()


CONTENT = {f"set/{part}/{name}/{i}.png": png()
           for part in ("train", "test") for name in ("bee", "ant") for i in range(3)}  # fmt: skip


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write(path: Path, content: dict[str, bytes], *, odd: bool = False) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in content.items():
                out.writestr(name, data)
        return path
    mode: Any = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}[path.suffix]
    with tarfile.open(path, mode) as out:
        for name, data in content.items():
            out.addfile(member(name, size=len(data)), io.BytesIO(data))
        if odd:
            out.addfile(member("set/train/ant/l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
            out.addfile(member("set/train/ant/h.png", type=tarfile.LNKTYPE, linkname="../../x"))
            out.addfile(member("set/train/ant/d.png", type=tarfile.CHRTYPE))
            out.addfile(member("set/train/ant/p.png", type=tarfile.FIFOTYPE))
    return path


def unpack(root: Path) -> Path:
    for name, data in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_reads_as_the_folder_it_was_made_from(tmp_path: Path, kind: str) -> None:
    folder = read(unpack(tmp_path) / "set" / "train")
    packed = read(write(tmp_path / f"a{kind}", CONTENT, odd=True), inside="set/train")
    assert packed.classes == folder.classes == ("ant", "bee")
    assert torch.equal(packed.images, folder.images)
    assert torch.equal(packed.labels, folder.labels)
    assert packed.name == "set/train"
    flat = read(tmp_path / f"a{kind}", inside="set/train/bee", labelled=False)
    assert torch.equal(flat.images, folder.images[3:])
    some = read(tmp_path / f"a{kind}", inside="set/train", classes=["bee", "ant"])
    assert torch.equal(some.images, folder.images[[3, 4, 5, 0, 1, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_read_singly_may_stay_on_disk(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a{kind}", CONTENT)
    options: dict[str, Any] = {"inside": "set/test", "keep": "disk", "channels": 3, "size": 6}
    if kind in (".tar", ".zip"):
        images = read(path, **options)
        close_archives()
        assert torch.equal(images.stored(), read(path, inside="set/test").images)
    else:
        with pytest.raises(DataError, match=r"^data\.id\.keep: expected .*uncompressed \.tar"):
            read(path, **options)


def test_one_archive_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar.gz", CONTENT)
    times = []
    real = archives._read_tar
    monkeypatch.setattr(archives, "_read_tar", lambda p: times.append(p) or real(p))
    first = read(path, inside="set/train")
    read(path, inside="set/test")
    assert len(times) == 1
    write(path, {name.replace("bee", "cow"): data for name, data in CONTENT.items()})
    assert read(path, inside="set/train").classes == ("ant", "cow")
    assert len(times) == 2
    assert first.classes == ("ant", "bee")


NAMES_OUT = ["../x.png", "/x.png", "a/../../x.png", "..\\x.png", "\\x.png"]


@pytest.mark.parametrize(
    ("kind", "name"), [(".tar", "a\\x.png"), *((k, n) for k in (".tar", ".zip") for n in NAMES_OUT)]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = write(tmp_path / f"a{kind}", CONTENT | {name: b"x"})
    with pytest.raises(DataError, match=r"^data\.id\.path: .*leads out of it"):
        read(path, inside="set/train")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a{kind}", CONTENT)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nonsense" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"^data\.id\.path: expected ") as error:
            read(path, inside="set/train")
        assert "\n" not in str(error.value)
        assert f"a{kind}" in str(error.value)


def test_bounds_on_what_an_archive_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_A_FILE", 4000)
    large = CONTENT | {"set/train/ant/9.png": bytes(5000)}
    for kind in KINDS:
        with pytest.raises(DataError, match=r"files of at most 4000 bytes \(not .*9\.png"):
            read(write(tmp_path / f"a{kind}", large), inside="set/train")
    named = write(tmp_path / "b.tar.xz", {f"set/train/{'a' * 9000}.png": b"x"})
    with pytest.raises(DataError, match=r"members of at most 4000 bytes.*Unpack it"):
        read(named)
    monkeypatch.setattr(archives, "MOST_IN_ALL", 500)
    with pytest.raises(DataError, match="at most 500 bytes in a compressed archive"):
        read(write(tmp_path / "c.tar.gz", CONTENT), inside="set/train")
    assert len(read(write(tmp_path / "c.tar", CONTENT), inside="set/train")) == 6


def test_a_picture_that_declares_too_many_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size: None)
    with pytest.raises(DataError, match=r"0\.png' \(ValueError: 6x6 pixels, more than 30\)"):
        read(write(tmp_path / "a.tar", CONTENT), inside="set/train")


def test_misplaced_folders_in_archives(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", CONTENT)
    with pytest.raises(DataError, match=r"a folder 'set/tarin' with images .* none in .*a\.zip"):
        read(path, inside="set/tarin")
    with pytest.raises(DataError, match=r"only \.png.*a\.zip/set/test/ant/0\.png"):
        read(path, inside="set")
    with pytest.raises(DataError, match=r"an existing folder or archive, but got .*b\.tar"):
        read(tmp_path / "b.tar")
    twice = {**CONTENT, "set/train/./ant/0.png": png()}
    with pytest.raises(DataError, match="a name stands in it twice"):
        read(write(tmp_path / "c.tar", twice), inside="set/train")


@pytest.mark.parametrize("kind", [".tar", ".zip"])
def test_the_only_folder_that_holds_classes_is_taken(tmp_path: Path, kind: str) -> None:
    train = {name: data for name, data in CONTENT.items() if "/train/" in name}
    wrapped = read(write(tmp_path / f"a{kind}", train))
    named = read(write(tmp_path / f"b{kind}", CONTENT), inside="set/train")
    assert wrapped.classes == ("ant", "bee")
    assert wrapped.fingerprint() == named.fingerprint()
    said = (
        r"^data\.id\.inside: expected the folder in .* holds the classes, of set/test, set/train,"
    )
    with pytest.raises(DataError, match=said):
        read(tmp_path / f"b{kind}")
    top = write(tmp_path / f"c{kind}", {**train, "cow/0.png": png()})
    with pytest.raises(DataError, match=r"^data\.id\.path: "):  # classes at the top as well
        read(top)


def test_a_folder_around_the_class_folders_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folders in '.*/set/test', name that one"):
        read(unpack(tmp_path) / "set")


def test_backslashes_part_the_folders_of_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, data in CONTENT.items():
            entry = zipfile.ZipInfo()
            entry.filename = name.replace("/", "\\")
            out.writestr(entry, data)
    plain = write(tmp_path / "b.zip", CONTENT)
    found, wanted = (read(p, inside="set/train") for p in (path, plain))
    assert found.classes == wanted.classes
    assert torch.equal(found.images, wanted.images)
