"""Configurations, run folders and data of others: each is read, or refused in one line."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hostile import OBSTACLES, VALUES, changed, damaged, examples, put_obstacle, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from greg_cert.config import dump_config, load_any, parse_config
from greg_cert.data import load_data
from greg_cert.data.reject import check_memory
from greg_cert.data.sources.base import Request
from greg_cert.digests import DIGEST, sealed
from greg_cert.errors import DataError, GregCertError, RunError
from greg_cert.evaluation.store import ScoreStore
from greg_cert.frames import frame_bytes, frame_csv, read_frame
from greg_cert.runs.records import RunFolder
from greg_cert.runs.state_file import read_state
from greg_cert.runs.training_log import TrainingLogWriter, read_training_log
from greg_cert.train import fit
from greg_cert.train.checkpoint import _digest, load_checkpoint
from greg_cert.train.observer import SilentObserver

CONFIG: dict[str, Any] = {
    "name": "x",
    "data": {
        "id": {"source": "digits", "limit": 200},
        "aux": {"source": "photographs", "n": 100},
        "ood": [
            {"source": "uniform", "n": 20},
            {"source": "folder", "path": "a", "classes": ["b"]},
        ],
    },
    "model": {"name": "mlp"},
    "train": {
        "stages": [
            {"method": "ce", "epochs": 1, "lr": 0.1},
            {"method": "greg", "epochs": 2, "lr": 1},
        ],
        "init": {"weights": "a.pt"},
    },
    "verify": {"samples": 10, "options": {"rounds": 3}},
}
TYPED = st.sampled_from(
    [
        *("2024-02-30", "!!int abc", "!!bool x", "[" * 3000, "0x" + "f" * 6000, "&a [*a]", "1:2"),
        *(
            '"\\ud800"',
            '"\\e[31m"',
            "2024-01-01 10:00:00 +99:00",
            "{? [a] : 1}",
            "<<",
            "=",
            "1e300",
        ),
    ]
)
KEYS = st.sampled_from(
    [
        *("seed", "name", "data", "data.id", "data.id.path", "data.ood[1].path", "data.aux.n"),
        *("data.ood[0].name", "data.mean", "model.name", "model.dropout", "train.lr", "train.init"),
        *("train.stages", "train.stages[0]", "train.stages[5].lr", "train.devices", "verify.norm"),
        *("verify.method", "verify.options", "verify.auc_radii", "verify.samples", "x", "x.y[0]"),
    ]
)


def taken(path: Path, *settings: str) -> None:
    """A configuration that is accepted is one that is written and read again."""
    config = load_any(path, settings)
    again = yaml.safe_load(dump_config(config))
    assert type(config).model_validate(again) == config
    assert config.title.isprintable()
    assert all(source.title for source in config.data.ood)


@examples(150)
@given(changed(CONFIG))
def test_configurations_with_odd_values(tmp_path_factory: Any, document: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8", errors="surrogatepass")
    works_or_refuses(lambda: taken(path))


@examples(150)
@given(damaged(yaml.safe_dump(CONFIG).encode()))
def test_configurations_that_are_damaged(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(content)
    works_or_refuses(lambda: taken(path))


@examples(200)
@given(KEYS, VALUES.map(repr) | TYPED)
def test_settings_with_odd_values(tmp_path_factory: Any, key: str, value: str) -> None:
    path = tmp_path_factory.getbasetemp() / "sound.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    works_or_refuses(lambda: taken(path, f"{key}={value}"))


@pytest.mark.parametrize(
    "setting",
    [
        *("seed=99999999999999999999", "seed=yes", "train.lr=1e300", "train.lr=1e-300"),
        *("data.aux.n=1000000000000", 'name="a\\nb"', 'data.ood[0].name="\\e[31m"', "name=''"),
        f"name={'x' * 300}",
    ],
)
def test_nonsense_that_was_accepted(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "sound.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(GregCertError, match=setting.partition("=")[0].rpartition(".")[2]):
        load_any(path, [setting])


class Enough(GregCertError):
    """The run is stopped here, as a kill would stop it."""


class Stopping(SilentObserver):
    """Stops a run after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Enough("enough")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, Path]:
    """An experiment, its data, a run of it that was stopped, and a whole one."""
    stages = [{"method": "energy", "epochs": 2, "lr": 0.01, "m_in": -9.0, "m_out": -1.0}]
    stages[0] |= {"optimizer": "adam", "pool": 200, "strategy": "greedy", "batch_size": 16}
    config = parse_config(
        {
            "data": {
                "id": {"source": "digits", "limit": 200},
                "aux": {"source": "uniform", "n": 400},
            },
            "model": {"name": "mlp"},
            "train": {"log_every": 1, "checkpoint_every": 1, "stages": stages},
        }
    )
    splits, root = load_data(config.data), tmp_path_factory.mktemp("hostile")
    with pytest.raises(Enough):
        fit(config, splits, root / "part", observer=Stopping(2))
    fit(config, splits, root / "whole")
    return config, splits, root / "part", root / "whole"


def read_all(folder: Path) -> None:
    run = RunFolder(folder)
    works_or_refuses(lambda: run.config)
    works_or_refuses(lambda: run.manifest)
    works_or_refuses(run.load_model)
    works_or_refuses(lambda: read_training_log(folder))


PARTS = ("config.yaml", "manifest.json", "metrics.jsonl", "model.safetensors", "checkpoint/last.pt")


@examples(100)
@given(st.data())
def test_files_of_a_run(stopped: Any, data: Any) -> None:
    config, splits, part, whole = stopped
    name = data.draw(st.sampled_from(PARTS))
    going_on = data.draw(st.booleans()) and name != "model.safetensors"
    folder = part.parent / "odd"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(part if going_on else whole, folder)
    content = (folder / name).read_bytes()
    kind = data.draw(st.sampled_from(("damage", "change", "obstacle")))
    if kind == "obstacle":
        put_obstacle(folder / name, data.draw(st.sampled_from(OBSTACLES)))
    elif kind == "change" and name.endswith(".json"):
        document = data.draw(changed(json.loads(content)))
        plain = isinstance(document, dict) and "\0" not in str(document)
        (folder / name).write_text(json.dumps(sealed(document) if plain else document))
    elif kind == "change" and name.endswith(".jsonl"):
        rows = data.draw(changed([json.loads(line) for line in content.splitlines()]))
        lines = rows if isinstance(rows, list) else [rows]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    elif kind == "change" and name.endswith(".pt"):
        state = data.draw(changed(torch.load(folder / name, weights_only=True)))
        if isinstance(state, dict):
            state.pop(DIGEST, None)
            state[DIGEST] = _digest(state)
        torch.save(state, folder / name)
    else:
        (folder / name).write_bytes(data.draw(damaged(content)))
    if going_on:
        stop = Stopping(1)
        works_or_refuses(lambda: fit(config, splits, folder, resume=True, observer=stop))
    else:
        read_all(folder)
        works_or_refuses(lambda: load_checkpoint(folder / "checkpoint" / "last.pt"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("optimizer",), 1.5),
        (("optimizer", "param_groups", 0, "betas"), 1.5),
        (("optimizer", "param_groups", 0, "weight_decay"), 7.0),
        (("optimizer", "state", 0, "exp_avg"), True),
        (("optimizer", "state", 0, "exp_avg_sq"), torch.zeros(1)),
        (("optimizer", "state", 0, "step"), torch.tensor(float("nan"))),
        (("model",), None),
        (("model", "head.bias"), torch.full((10,), float("nan"))),
    ],
)
def test_checkpoints_of_another_state(stopped: Any, place: Any, value: Any) -> None:
    config, splits, part, _ = stopped
    folder = part.parent / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(part, folder)
    path = folder / "checkpoint" / "last.pt"
    state = torch.load(path, weights_only=True)
    here = state
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    del state[DIGEST]
    torch.save(state | {DIGEST: _digest(state)}, path)
    with pytest.raises(RunError, match="expected the state of this model and its optimiser"):
        fit(config, splits, folder, resume=True, observer=Stopping(0))


def test_more_classes_than_the_weights_have(stopped: Any, tmp_path: Path) -> None:
    shutil.copytree(stopped[3], tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["num_classes"] = 10**9
    path.write_text(json.dumps(sealed(manifest)))
    with pytest.raises(
        RunError, match=r"it holds \d+ numbers, but the sizes in manifest\.json ask"
    ):
        RunFolder(tmp_path / "run").load_model()


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrainingLogWriter(tmp_path / "metrics.jsonl", tmp_path / "events", 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    stream = log._stream
    monkeypatch.setattr(log, "_stream", type("Full", (), {"write": full, "close": stream.close})())
    with pytest.raises(RunError, match=r"^metrics: cannot write .*metrics\.jsonl: No space left"):
        log.row("ce", 1, 1, {"ce": 1.0})
    log.close()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "png")
    return buffer.getvalue()


def sound_archives() -> dict[str, bytes]:
    """One archive of each kind, by its ending."""
    found = {}
    names = [f"{k}/{i}.png" for k in "ab" for i in range(2)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, png())
    found[".zip"] = buffer.getvalue()
    for ending in (".tar", ".tar.gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{ending[5:]}") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
        found[ending] = buffer.getvalue()
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    images[1] = 255
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    found[".npz"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, images)
    found[".npy"] = buffer.getvalue()
    found[".png"] = png()
    return found


ARCHIVES = sound_archives()


@examples(150)
@given(st.data())
def test_archives_of_images(tmp_path_factory: Any, data: Any) -> None:
    ending = data.draw(st.sampled_from(sorted(ARCHIVES)))
    folder = tmp_path_factory.getbasetemp() / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / f"x{ending}"
    if data.draw(st.integers(0, 3)):
        path.write_bytes(data.draw(damaged(ARCHIVES[ending])))
    else:
        put_obstacle(path, data.draw(st.sampled_from(OBSTACLES)))
    kind = "array" if ending in (".npz", ".npy") else "folder"
    source = {"source": kind, "path": str(folder if ending == ".png" else path)}
    config = parse_config(
        {
            "data": {"id": {"source": "digits"}, "ood": [source]},
            "model": {"name": "mlp"},
            "train": {"stages": [{"method": "ce", "epochs": 1, "lr": 0.1}]},
        }
    )
    (found,) = config.data.ood
    role = data.draw(st.sampled_from(("id", "ood")))

    def read() -> None:
        found.place()
        images = found.load(Request("data.ood[0]", role, 1, 8))
        images.stored()

    works_or_refuses(read)


def test_arrays_that_claim_more_than_there_is_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, images=np.zeros((3, 8, 8), np.uint8))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
    size = member.file_size.to_bytes(4, "little")
    path.write_bytes(content.replace(size, (2**32 - 2).to_bytes(4, "little")))
    config = {**CONFIG["data"], "ood": [{"source": "array", "path": str(path)}]}
    (source,) = parse_config({**CONFIG, "data": config}).data.ood
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("greg_cert.data.reject._memory", lambda: 2**32)
        with pytest.raises(
            DataError, match=r"at most 2\.0 GiB.* but got 4\.0 GiB\. Save the images"
        ):
            source.load(Request("data.ood[0]", "ood", 1, 8))
        check_memory("n", 2**31, hint="")
    with pytest.raises(DataError, match="of this machine's memory"):
        parse_config(
            {**CONFIG, "data": {**CONFIG["data"], "aux": {"source": "uniform", "n": 2**31 - 1}}}
        ).data.aux.load(  # type: ignore[union-attr]
            Request("data.aux", "aux", 3, 4096)
        )


@examples(60)
@given(st.data())
def test_weights_and_scores(stopped: Any, data: Any) -> None:
    whole, folder = stopped[3], stopped[3].parent / "files"
    folder.mkdir(exist_ok=True)
    weights = (whole / "model.safetensors").read_bytes()
    path = folder / data.draw(
        st.sampled_from(("a.safetensors", "a.pt", "a.safetensors.index.json"))
    )
    if path.suffix == ".pt":
        weights = (whole / "checkpoint" / "last.pt").read_bytes()
    elif path.suffix == ".json":
        weights = json.dumps(data.draw(changed({"weight_map": {"a": "b.safetensors"}}))).encode()
    if data.draw(st.integers(0, 3)):
        path.write_bytes(data.draw(damaged(weights)))
    else:
        put_obstacle(path, data.draw(st.sampled_from(OBSTACLES)))
    works_or_refuses(lambda: read_state(path))
    put_obstacle(path, "gone")
    store = ScoreStore(folder)
    kept = store.write("msp", {"a": 1}, {"test": {"score": np.arange(3.0)}})
    if data.draw(st.integers(0, 3)):
        kept.write_bytes(data.draw(damaged(kept.read_bytes())))
    else:
        put_obstacle(kept, data.draw(st.sampled_from(OBSTACLES)))
    works_or_refuses(lambda: store.read("msp", {"a": 1}))
    put_obstacle(kept, "gone")


def test_a_table_of_too_many_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    path = tmp_path / "a.parquet"
    path.write_bytes(frame_bytes(pd.DataFrame({"a": np.zeros(1000)})))
    assert len(read_frame(path).frame) == 1000
    monkeypatch.setattr("greg_cert.frames.MOST_CELLS", 999)
    with pytest.raises(RunError, match="1000 cells, more than the 999 that are read"):
        read_frame(path)


def test_no_text_in_a_csv_is_a_formula() -> None:
    import pandas as pd

    names = [
        '=HYPERLINK("x")',
        "@a",
        "+1+1",
        "-1.50 ± 0.20",
        "-12.3",
        "+1e-05",
        "-inf",
        "\t=x",
        "a\nb",
    ]
    frame = pd.DataFrame({"name": names, "=n": [-1.5] * 9})
    kept = [*(f"'{name}" for name in names[:3]), *names[3:7], "'=x", "a b"]
    for csv in (frame_csv(frame), frame_csv(frame.set_index("name"))):
        found = pd.read_csv(io.StringIO(csv), dtype={"name": str})
        assert found["name"].tolist() == kept
        assert found.columns.tolist() == ["name", "'=n"]
        assert found["'=n"].tolist() == [-1.5] * 9
