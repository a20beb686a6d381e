"""The rule of `softshard bench`: which ceiling is nearest, and the setting to change."""

import pytest

from softshard.loaders.verdict import WORDS, Situation, judge

FAST = {"read": 1e5, "labels": 1e5, "crops": 1e4, "resample": 1e4, "copy": 1e5}


def situation(loader=4000.0, ceilings=None, stage="decode", **changes):
    options = {
        "num_threads": 4, "cores": 4, "batch_size": 128, "dtype": "float32", "size": 224, "stored_side": 256, **changes,
    }  # fmt: skip
    return Situation(loader, {**FAST, **(ceilings or {})}, stage, **options)


@pytest.mark.parametrize(
    ("found", "nearest", "setting"),
    [
        (situation(ceilings={"crops": 5e3}), "crops", None),
        (situation(ceilings={"crops": 5e3}, cores=16), "crops", "num_threads"),
        (situation(ceilings={"crops": 5e3}, stored_side=500), "crops", "stored size"),
        (situation(ceilings={"crops": 5e3}, other_gpu=True), "crops", "device"),
        (situation(ceilings={"resample": 5e3}), "resample", "dtype"),
        (situation(ceilings={"resample": 5e3}, dtype="uint8"), "resample", None),
        (situation(ceilings={"resample": 5e3}, cores=5), "resample", "num_threads"),
        (situation(ceilings={"resample": 5e3}, stored_side=500), "resample", "stored size"),
        (situation(ceilings={"labels": 6e3}), "labels", None),
        (situation(ceilings={"labels": 6e3}, batch_size=8), "labels", "batch_size"),
        (situation(ceilings={"pool": 6e3}), "pool", None),
        (situation(ceilings={"pool": 6e3}, cores=6), "pool", "num_threads"),
        (situation(ceilings={"copy": 6e3}), "copy", "dtype"),
        (situation(ceilings={"copy": 6e3}, dtype="uint8"), "copy", None),
        (situation(ceilings={"read": 5e3}), "read", "cache"),
        (situation(1000, ceilings={"fetch": 1e3}), "fetch", "num_fetchers"),
        # Far below what the parts make together: none of them.
        (situation(1000), "crops", "prefetch"),
        (situation(1000, batch_size=16), "crops", "batch_size"),
        (situation(1000, stage="storage", batch_size=16), "crops", "window"),
    ],
)
def test_the_slowest_part_and_the_options_choose_the_setting(found, nearest, setting):
    verdict = judge(found)
    assert (verdict.nearest, verdict.setting) == (nearest, setting)
    assert WORDS[nearest] in verdict.text


def test_the_sentence_has_the_numbers():
    ceilings = {"read": 1e6, "labels": 1e6, "crops": 5e3, "resample": 1e4}
    verdict = judge(Situation(2850, ceilings, "decode", 2, 8, 128, "uint8", 224, 224))
    assert verdict.text == (
        "The nearest ceiling is decoding the crops: 5,000 images/s, of which the loader makes 2,850. One after the other on "
        "2 threads its parts make about 3,311; the loader reaches 0.86 of that. Change num_threads: 2 -> 8, the cores that "
        "this process may use"
    )


def test_a_loader_that_beats_its_slowest_part_is_measured_again():
    verdict = judge(situation(4000, ceilings={"copy": 260}))
    assert (verdict.nearest, verdict.setting) == ("copy", None)
    assert "4,000 images/s and copying the images alone 260, which cannot be" in verdict.text


def test_fetching_runs_beside_the_rest():
    assert situation(ceilings={"fetch": 2e3}).together == 2e3
    assert situation(ceilings={"fetch": 1e9}).together == situation().together
