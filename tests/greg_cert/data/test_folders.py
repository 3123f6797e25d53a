import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_files import picture, read, save
from PIL import Image

from greg_cert.errors import DataError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("zebra", "ant", "moth"):
        for i in range(3):
            save(tmp_path / "set" / name / f"{i}.png", picture(6, 6, 3))
    return tmp_path / "set"


def test_labels_count_the_sorted_class_folders(tree: Path) -> None:
    loaded = read(tree)
    assert loaded.classes == ("ant", "moth", "zebra")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with Image.open(tree / "moth" / "2.png") as image:
        assert np.array_equal(loaded.images[5].permute(1, 2, 0).numpy(), np.array(image))


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".jpg", ".JPEG", ".png"])
def test_each_format_is_read(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / f"a{suffix}", np.full((6, 6, 3), 90, np.uint8))
    loaded = read(tmp_path, labelled=False)
    assert loaded.labels is None
    assert (loaded.images.float() - 90).abs().max() <= 2  # JPEG and WebP are lossy


def test_grey_and_colour_mix_and_palettes_keep_their_colours(tmp_path: Path) -> None:
    grey, colour = picture(6, 6), picture(6, 6, 3)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", colour)
    palette = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), mode="P").resize((6, 6), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "c.png", transparency=b"\xff\xff")
    loaded = read(tmp_path, labelled=False).images
    assert torch.equal(loaded[0], torch.from_numpy(grey).expand(3, -1, -1))
    assert torch.equal(loaded[1], torch.from_numpy(colour).permute(2, 0, 1))
    assert loaded[2, :, 0, 0].tolist() == [10, 20, 30]
    assert loaded[2, :, 0, 5].tolist() == [200, 100, 50]


def test_a_folder_of_grey_images_stays_grey(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(6, 6))
    assert read(tmp_path, labelled=False).images.shape == (1, 1, 6, 6)
    assert read(tmp_path, labelled=False, channels=3).images.shape == (1, 3, 6, 6)


def test_sizes_may_differ_only_if_a_size_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(6, 6, 3))
    save(tmp_path / "b.png", picture(9, 12, 3))
    assert read(tmp_path, labelled=False, size=6).images.shape == (2, 3, 6, 6)
    with pytest.raises(DataError, match=r"data\.id\.path: .* first of 6x6, .*b\.png' of 9x12"):
        read(tmp_path, labelled=False)


def test_class_folders_serve_without_labels_and_hidden_files_are_passed_over(tree: Path) -> None:
    (tree / ".DS_Store").write_bytes(b"x")
    (tree / "ant" / "Thumbs.db").write_bytes(b"x")
    loaded = read(tree, labelled=False)
    assert (len(loaded), loaded.labels) == (9, None)


def test_limit_opens_only_what_it_keeps(tree: Path) -> None:
    loaded = read(tree, labelled=False, limit=4)
    everything = {image.numpy().tobytes() for image in read(tree, labelled=False).images}
    assert len(loaded) == 4
    assert {image.numpy().tobytes() for image in loaded.images} <= everything


def jpeg(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40), jpeg(picture(64, 64, 3))[:900]],
)
def test_a_file_that_is_no_image_or_cut_short(tree: Path, content: bytes) -> None:
    (tree / "ant" / "9.png").write_bytes(content)
    line = r"^data\.id\.path: .*complete, readable image file.*9\.png"
    with pytest.raises(DataError, match=line) as error:
        read(tree, size=6)
    assert error.value.__cause__ is not None
    assert "\n" not in str(error.value)


def test_misplaced_files_and_folders(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"existing folder of images, but got .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for labelled in (True, False):
        with pytest.raises(DataError, match=r"data\.id\.path: .*an empty folder .*empty"):
            read(tmp_path / "empty", labelled=labelled)
    with pytest.raises(DataError, match=r"a subfolder of images for each class, .*0\.png"):
        read(tree / "ant")
    (tree / "ant" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"data\.id\.path: expected only \.png.*notes\.txt"):
        read(tree)
    (tree / "ant" / "notes.txt").unlink()
    (tree / "ant" / "more.png").mkdir()
    with pytest.raises(DataError, match=r"expected only \.png.*more\.png"):
        read(tree)
    (tree / "ant" / "more.png").rmdir()
    save(tree / "loose.png", picture(6, 6, 3))
    for labelled in (True, False):
        with pytest.raises(DataError, match=r"a subfolder .*loose\.png"):
            read(tree, labelled=labelled)
    (tree / "loose.png").unlink()
    (tree / "bee").mkdir()
    with pytest.raises(DataError, match=r"in every class folder, but got none in .*bee"):
        read(tree)
    (tree / "bee").rmdir()
    shutil.rmtree(tree / "ant")
    shutil.rmtree(tree / "moth")
    with pytest.raises(DataError, match=r"data\.id\.path: expected at least two classes"):
        read(tree)
