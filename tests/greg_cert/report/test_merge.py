import json
from pathlib import Path

import numpy as np
import pytest

from greg_cert.certificates.merge.names import Named, folder_labels, merged_names
from greg_cert.errors import RunError, UsageError
from greg_cert.report import load_results, merge_verifications
from greg_cert.report.tables.notes import notes_of

DATA = {"train": "t0", "calibration": "c0", "test": "e0", "ood/mnist": "m0"}


def provenance_of(folder):
    return json.loads((folder / "summary.json").read_text())["provenance"]


@pytest.fixture
def verified(made, tmp_path):
    """Writes a verification folder with manifests, settings and data fingerprints."""

    def write(name, frames, *, seed=0, ood=(), bounds=(), data=None, **summary):
        folder = tmp_path / name / "verify"
        made.write(folder, frames, baseline=summary.pop("baseline", None))
        raw = json.loads((folder / "summary.json").read_text())
        raw |= {"method": "crown", "methods": ["crown"], "engine": "native"} | summary
        raw["provenance"] |= {
            "command": f"greg-cert verify runs/{name}",
            "settings": {"cuts": 3, "samples": len(frames[0]), "seed": seed},
            "runs": {
                run: {"seed": seed, "data": DATA | (data or {}), "made": run} for run in raw["runs"]
            },
        }
        made.write_summary(folder, raw)
        if ood:
            made.write_ood(folder, list(ood), list(bounds) or None)
        return folder

    return write


@pytest.fixture
def frames(made):
    return made.realistic(40, names=("energy", "greg", "greg+"))


def test_runs_are_ordered_and_each_part_keeps_its_record(verified, frames, tmp_path):
    """`test_merge_runs` compares all rows and numbers with one verification of all runs."""
    parts = [verified(f"part{k}", [frame]) for k, frame in enumerate(frames)]
    out = tmp_path / "merged"
    done = merge_verifications(parts, out, baseline="greg", command="greg-cert compare")
    assert done.runs == ("greg", "energy", "greg+")
    assert (done.samples, done.left_out, done.same, done.violations) == (40, {}, {}, 0)
    assert load_results(out).summary.baseline == "greg"
    provenance, names = provenance_of(out), ("energy", "greg", "greg+")
    for k, (part, name) in enumerate(zip(provenance["parts"], names, strict=True)):
        assert part["runs"] == {name: name}
        assert part["command"] == f"greg-cert verify runs/part{k}"
    assert provenance["command"].endswith("&& greg-cert compare")
    assert set(provenance["configs"]) == {*names}
    assert provenance["runs"]["greg+"]["made"] == "greg+"


def test_only_samples_that_all_have_are_kept_and_the_rest_is_counted(verified, frames, tmp_path):
    few = frames[0].iloc[5:]
    other = frames[1].iloc[:30]
    a, b = verified("a", [few]), verified("b", [other])
    done = merge_verifications([a, b], tmp_path / "out")
    assert done.samples == 25
    assert done.left_out == {str(a): {"id": 10}, str(b): {"id": 5}}
    results = load_results(tmp_path / "out")
    assert results.samples == 25
    record = results.summary.runs["energy"]
    radii = few.iloc[:25]["radius_certified"]
    assert record.certified_radius.median == pytest.approx(radii.median())
    assert record.certified_radius.mean == pytest.approx(radii.mean())
    assert sum(record.status.values()) == record.samples == 25
    (note,) = notes_of(results)
    assert "10 ID test samples" in note
    again = merge_verifications([a, b], tmp_path / "out")  # its own result it may replace
    assert again == done


def test_ood_samples_are_paired_too(verified, made, frames, tmp_path):
    one = made.ood_of("energy", "mnist", [0.1] * 5, [1.0] * 5)
    two = made.ood_of("greg", "mnist", [0.2] * 5, [1.0] * 5).iloc[2:]
    a = verified("a", frames[:1], ood=[one], bounds=[made.scores_of(one)])
    b = verified("b", frames[1:2], ood=[two], bounds=[made.scores_of(two)])
    done = merge_verifications([a, b], tmp_path / "out")
    assert done.left_out == {str(a): {"ood/mnist": 2}}
    results = load_results(tmp_path / "out")
    assert results.summary.runs["energy"].ood_side["mnist"].samples == 3
    assert len(results.ood_scores_of("energy", "mnist")) == 9
    (note,) = notes_of(results)
    assert "2 of mnist" in note


def test_left_out_ood_samples_that_are_contradicted_stop_it(verified, made, frames, tmp_path):
    one = made.ood_of("energy", "mnist", [0.1, 0.1, 0.5], [1.0, 1.0, 0.2])
    two = made.ood_of("greg", "mnist", [0.2, 0.2], [1.0, 1.0])
    a, b = verified("a", frames[:1], ood=[one]), verified("b", frames[1:2], ood=[two])
    with pytest.raises(RunError, match="1 certificates of samples that not every folder has"):
        merge_verifications([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_violations_are_kept_and_counted(verified, made, tmp_path):
    a = verified("a", [made.frame_of("a", [0.1, 0.3], [0.2, 0.2])])
    b = verified("b", [made.frame_of("b", [0.1, 0.1], [0.2, 0.2])])
    assert merge_verifications([a, b], tmp_path / "out").violations == 1
    assert load_results(tmp_path / "out").summary.runs["a"].violations == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm": "inf"}, r"norm: expected 2\.0 in .*b.verify, as in .*a.verify, but got 'inf'"),
        ({"tpr": 0.9}, r"tpr: expected 0\.95 .* but got 0\.9"),
        ({"max_radius": 1.0}, r"max_radius: expected 2\.0 .* but got 1\.0"),
        ({"method": "branch"}, "method: expected 'crown' .* but got 'branch'"),
        ({"engine": None}, "engine: expected 'native' .* but got nothing"),
        ({"correct": True}, "correct: expected nothing .* but got True"),
        ({"clip": True}, "clip: expected False .* but got True"),
        ({"smoothing": {"sigma": 0.1, "n": 9, "alpha": 0.1}}, "smoothing: expected nothing"),
        ({"provenance__settings__cuts": 0}, r"provenance\.settings\.cuts: expected 3 .* got 0"),
        (
            {"provenance__runs__greg__data__test": "other"},
            r"provenance\.runs\.greg\.data\.test: expected 'e0' .* but got 'other'",
        ),
        ({"provenance__runs": {}}, r"field provenance\.runs\.greg\.data: missing"),
    ],
)
def test_what_does_not_fit_is_named_with_both_folders(
    verified, made, frames, tmp_path, fields, words
):
    a, b = verified("a", frames[:1]), verified("b", frames[1:2])
    made.put(b, **fields)
    with pytest.raises(RunError, match=words) as caught:
        merge_verifications([a, b], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_training_data_seeds_and_numbers_of_samples_may_differ(verified, frames, tmp_path):
    a = verified("a", frames[:1])
    b = verified("b", [frames[1].iloc[:9]], seed=3, data={"train": "other", "aux": "x"})
    assert merge_verifications([a, b], tmp_path / "out").samples == 9
    provenance = provenance_of(tmp_path / "out")
    assert provenance["seed"] == 0  # both were verified with it
    assert provenance["settings"] == {"cuts": 3}


def test_other_labels_are_other_samples(verified, frames, tmp_path):
    label = (frames[1]["label"] + 1) % 10
    other = frames[1].assign(label=label, predicted=label)
    with pytest.raises(RunError, match=r"column label: expected 0 for index 100, as in .* got 1"):
        merge_verifications([verified("a", frames[:1]), verified("b", [other])], tmp_path / "out")


def test_no_common_sample(verified, frames, tmp_path):
    a, b = verified("a", [frames[0].iloc[:5]]), verified("b", [frames[1].iloc[5:]])
    with pytest.raises(RunError, match="expected samples that all of"):
        merge_verifications([a, b], tmp_path / "out")


def test_the_same_name_with_other_rows_is_another_run(verified, made, frames, tmp_path):
    other = made.realistic(40, names=("energy",), seed=9)
    a, b = verified("a", frames[:1]), verified("b", other)
    done = merge_verifications([a, b], tmp_path / "out", baseline="energy (verified in b)")
    assert done.runs == ("energy (verified in b)", "energy (verified in a)")
    parts = provenance_of(tmp_path / "out")["parts"]
    names = [{"energy": f"energy (verified in {k})"} for k in "ab"]
    assert [part["runs"] for part in parts] == names
    radii = load_results(tmp_path / "out").column("energy (verified in b)", "radius_certified")
    np.testing.assert_allclose(radii, other[0]["radius_certified"])


def test_names():
    def names(*runs):
        return merged_names(
            [Named(Path(results), *run, *map(Path, own)) for results, *run, own in runs]
        )

    assert names(("a/v", "x", 1, []), ("b/v", "y", 1, [])) == ["x", "y"]
    assert names(("a/v", "x", 1, []), ("b/v", "x", 2, []), ("b/v", "y", 2, [])) == [
        *("x (seed 1)", "x (seed 2)", "y")
    ]
    assert names(("a/v", "x", None, []), ("b/v", "x", 2, [])) == [
        *("x (verified in a)", "x (verified in b)")
    ]
    taken = ("a/v", "x", 1, []), ("b/v", "x", 2, []), ("c/v", "x (seed 1)", 1, [])
    assert names(*taken) == ["x (seed 1) #2", "x (seed 2)", "x (seed 1)"]
    # The results of a baseline lie in the folder of the run that it was verified beside.
    assert names(("g/v", "x", 0, ["/r/x"]), ("y/v", "x", 0, ["/r/y"])) == ["x (x)", "x (y)"]
    # Trained anew in the same folder, or recorded of one alone: only the results tell them apart.
    for own in (["/r/x"], []):
        assert names(("g/v", "x", 0, ["/r/x"]), ("y/v", "x", 0, own)) == [
            *("x (verified in g)", "x (verified in y)")
        ]
    assert folder_labels([Path("r/a/v"), Path("r/b/v")]) == ["a", "b"]
    alike = ["p/a/1", "q/a/2", "q/a/1"]
    assert folder_labels([*map(Path, alike)]) == alike


@pytest.mark.parametrize("wanted", ["energy", "nobody"])
def test_a_baseline_must_be_one_of_the_names(verified, made, tmp_path, wanted):
    folders = [
        verified(f"s{k}", made.realistic(20, names=("energy",), seed=k), seed=k) for k in (1, 2)
    ]
    with pytest.raises(UsageError, match=r"--baseline: expected one of energy \(seed 1\)"):
        merge_verifications(folders, tmp_path / "out", baseline=wanted)


def test_usage(verified, frames, tmp_path):
    a, b, c = (verified(name, [frame]) for name, frame in zip("abc", frames, strict=True))
    out, file = tmp_path / "out", tmp_path / "file"
    file.write_text("mine")
    for parts, target, words in (
        ([a], out, "two verification folders or more"),
        ([a, a], out, "each folder once"),
        ([a, b], a, "another folder than those compared"),
        ([a, b], c, "holds a verification"),
        ([a, b], file, "but it is a file"),
    ):
        with pytest.raises(UsageError, match=words):
            merge_verifications(parts, target)
    with pytest.raises(RunError, match="there is none"):
        merge_verifications([a, tmp_path / "nothing"], out)


def test_unfinished_parts_make_an_unfinished_whole(verified, frames, tmp_path):
    a = verified("a", frames[:1], complete=False, wanted=90)
    b = verified("b", frames[1:2], complete=True, wanted=40)
    merge_verifications([a, b], tmp_path / "out")
    summary = load_results(tmp_path / "out").summary
    assert (summary.complete, summary.wanted) == (False, 40)


def test_audits_add_up_where_all_have_one(verified, made, frames, tmp_path):
    audit = {"attacks": 3, "certificates": 5, "violations": 0, "steps": 200, "restarts": 12}
    a = verified("a", frames[:1], audit=audit)
    b = verified("b", frames[1:2], audit=audit | {"attacks": 4, "steps": 100})
    merge_verifications([a, b], tmp_path / "out")
    raw = json.loads((tmp_path / "out/summary.json").read_text())
    assert raw["audit"] == {"attacks": 7, "certificates": 10, "violations": 0, "restarts": 12}
    made.put(b, audit=None)
    merge_verifications([a, b], tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["audit"] is None


def test_runs_of_different_scores_are_said_to_be(verified, made, frames, tmp_path):
    a, b = verified("a", frames[:1]), verified("b", frames[1:2], score="max_logit")
    made.put(a, runs__energy__score="energy")
    made.put(b, runs__greg__score="max_logit")
    merge_verifications([a, b], tmp_path / "out")
    (note,) = notes_of(load_results(tmp_path / "out"))
    assert "energy: energy, greg: maximum logit" in note


def test_runs_of_one_name_are_told_apart_by_their_own_folders(verified, made, frames, tmp_path):
    other = made.realistic(40, names=("energy",), seed=9)
    a, b = verified("greg+", frames[:2], baseline="energy"), verified("energy2", other)
    made.put(a, provenance__folders={"energy": "/r/energy", "greg": "/r/greg+"})
    made.put(b, provenance__folders={"energy": "/r/energy2"})
    done = merge_verifications([a, b], tmp_path / "out")
    assert done.runs == ("energy (energy)", "greg", "energy (energy2)")
    assert done.baseline == "energy (energy)"
    folders = provenance_of(tmp_path / "out")["folders"]
    assert folders == dict(zip(done.runs, ("/r/energy", "/r/greg+", "/r/energy2"), strict=True))


@pytest.mark.parametrize("name", ["energy", "energy0"])
def test_one_baseline_in_two_folders_is_kept_once(verified, made, frames, tmp_path, name):
    """What has its title in one verification goes by its folder beside another of that title."""
    a = verified("a", frames[:2], baseline="energy")
    b = verified("b", [frames[0].assign(run=name), frames[2]], baseline=name)
    known = provenance_of(a)["runs"]["energy"]
    made.put(b, **{f"provenance__runs__{name}": known})
    done = merge_verifications([a, b], tmp_path / "out")
    assert done.runs == ("energy", "greg", "greg+")
    assert done.same == {"energy": [str(b)]}
    assert done.baseline == "energy"
    provenance = provenance_of(tmp_path / "out")
    assert [part["runs"] for part in provenance["parts"]] == [
        {"energy": "energy", "greg": "greg"},
        {name: "energy", "greg+": "greg+"},
    ]


def test_the_record_of_each_run_and_part_is_kept(verified, made, frames, tmp_path):
    a, b = verified("a", frames[:1]), verified("b", frames[1:2])
    for folder, run, number in ((a, "energy", 0), (b, "greg", 3)):
        made.put(folder, provenance__seed=number, provenance__python="3.11.8")
        made.put(folder, provenance__weights={run: f"{number}" * 64})
    merge_verifications([a, b], tmp_path / "out")
    record = load_results(tmp_path / "out").summary.provenance
    assert record.seed == "0 / 3"
    assert record.python == "3.11.8"
    assert record.weights == {"energy": "0" * 64, "greg": "3" * 64}
