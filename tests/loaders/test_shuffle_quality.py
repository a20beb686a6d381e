"""`softshard stats --shuffle`: what it measures, against orders whose quality is known."""

import json
import math

import numpy as np
import pytest

from softshard.loaders.order import EpochOrder
from softshard.loaders.shuffle_quality import entropy_bits, mean_move, shuffle_quality
from softshard.shards import UsageError
from softshard.shards.cli import main


def test_nothing_moves_without_shuffle_and_a_full_shuffle_moves_as_far_as_it_can():
    counts = np.full(50, 200)
    assert mean_move(EpochOrder(counts, 0, 0, 1, 100, shuffle=False)) == 0
    assert mean_move(EpochOrder(counts, 0, 0, 1, 10_000)) == pytest.approx(1, abs=0.02)
    one_shard = np.array([10_000])
    # A window of W in one shard moves a sample by W/3 on average.
    assert mean_move(EpochOrder(one_shard, 0, 0, 1, 1_000)) == pytest.approx(0.1, abs=0.01)
    # Whole shards change places, whatever the window; with so many of them that is nearly a full shuffle.
    assert mean_move(EpochOrder(np.full(500, 20), 0, 0, 1, 1)) == pytest.approx(1, abs=0.05)
    # Lanes are served side by side: each sample's time is that of the epoch, not of its lane.
    assert mean_move(EpochOrder(counts, 0, 0, 5, 10_000)) == pytest.approx(1, abs=0.1)


def test_the_entropy_of_a_batch():
    assert entropy_bits(np.full(64, 3)) == 0
    assert entropy_bits(np.arange(64)) == 6
    assert entropy_bits(np.array([0, 0, 0, 1])) == pytest.approx(-0.75 * math.log2(0.75) + 0.5)


def test_a_window_over_everything_in_one_lane_is_as_good_as_a_full_shuffle_and_none_is_none(packed):
    classes = np.load(packed / "classes.npy")
    small, large = (
        shuffle_quality(packed, global_batch=15, window=window, num_lanes=1)["class_entropy_bits"]
        for window in (1, 105)
    )
    stored = [entropy_bits(classes[at : at + 15]) for at in range(0, 105, 15)]
    assert small["no shuffle"] == large["no shuffle"] == round(float(np.mean(stored)), 3)
    assert large["full shuffle"] == small["full shuffle"]
    assert large["loader"] == pytest.approx(large["full shuffle"], abs=0.25)


def test_the_command_says_it_as_text_and_as_json(packed, capsys):
    options = ["stats", str(packed), "--shuffle", "--batch-size", "14", "--window", "40", "--lanes", "2"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "105 samples in 9 shards" in shown
    assert "global batch 14, window 40, lanes 2, seed 0, epoch 0" in shown
    assert "as far as in a full shuffle" in shown
    assert main([*options, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    expected = shuffle_quality(packed, global_batch=14, window=40, num_lanes=2)
    assert result["shuffle"] == expected
    assert result["samples"] == 105
    assert main(["stats", str(packed), "--json"]) == 0
    assert "shuffle" not in json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(("batch", "lanes"), [(106, 1), (15, 2), (0, 1)])
def test_batches_that_cannot_be_are_refused(packed, batch, lanes):
    with pytest.raises(
        UsageError, match=f"expected a batch of 1 to 105 samples that the lanes divide, found {batch}"
    ):
        shuffle_quality(packed, global_batch=batch, window=10, num_lanes=lanes)
