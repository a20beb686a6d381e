"""Two machines whose commands differ are told so before the first step."""

import dataclasses
import re

import pytest
import timm
import torch
from tiny_runs import run, tiny

from softshard.loaders import Loader
from softshard.shards import UsageError
from softshard.training import single_label
from softshard.training.same_call import STEP, check_same_call, facts_of_call, first_difference

CALL = {"lr": "0.1", "epoch of the data": "0", STEP: "0"}


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([CALL, CALL], None),
        ([CALL, CALL | {"lr": "0.2"}], "process 2 on node2: expected the call of process 0, found another lr "
         "(0.2, not 0.1). Start all with the same options and files"),
        ([CALL | {"lr": "0.2", "new": "1"}] * 2, "process 1 on node1 and 1 more process: expected the call of "
         "process 0, found another lr (0.2, not 0.1), new (1, not None). Start all with the same options and files"),
        ([CALL, CALL | {STEP: "8"}], "process 2 on node2: expected the call of process 0, found another step of the "
         "checkpoint (8, not 0). Start all with the same options and files, and give "
         "--resume an --out that all machines see, such as a shared folder or a copy of it"),
    ],
)  # fmt: skip
def test_the_first_process_with_another_call_is_named(others, told):
    assert first_difference([(f"node{rank}", facts) for rank, facts in enumerate([CALL, *others])]) == told


def test_all_that_decides_a_run_is_compared(shards):
    recipe = tiny(single_label())
    options = dict(batch_size=8, targets="none")
    with Loader(shards / "train", **options) as loader, Loader(shards / "train", seed=1, **options) as other:
        facts = facts_of_call(recipe, loader, None, log_steps=10)
        assert facts == facts_of_call(recipe, loader, None, log_steps=10)
        changed = {
            name
            for found in (
                facts_of_call(dataclasses.replace(recipe, lr=1), loader, None, log_steps=10),
                facts_of_call(recipe, other, None, log_steps=10),
                facts_of_call(recipe, loader, loader, log_steps=10),
                facts_of_call(recipe, loader, None, log_steps=5),
            )
            for name in facts
            if facts[name] != found[name]
        }
    assert changed == {"lr", "seed of the data", "validation set", "log_steps"}


def test_processes_with_other_options_are_all_refused(on_two_ranks, shards, tmp_path):
    def begin(rank):
        try:
            run(tiny(single_label(), lr=0.1 * (1 + rank)), shards, tmp_path, rank=rank, world_size=2)
        except UsageError as error:
            return str(error)
        return "no error"

    told = on_two_ranks(begin)
    assert told[0][1] == told[1][1]
    assert "found another lr (0.2, not 0.1). Start" in told[0][1]


def test_processes_with_other_starting_weights_are_all_refused(on_two_ranks, shards, tmp_path):
    """DDP copies process 0's weights to the others, but not to the averages that they keep."""
    files = [tmp_path / f"start-{rank}.pt" for rank in (0, 1)]
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet", num_classes=6).state_dict(), file)

    def begin(rank):
        try:
            recipe = tiny(single_label(), ema_decay=0.9)
            run(recipe, shards, tmp_path / "out", rank=rank, world_size=2, init_from=files[rank])
        except UsageError as error:
            return str(error)
        return "no error"

    told = on_two_ranks(begin)
    assert told[0][1] == told[1][1]
    assert re.search(r"another starting weights \(hash \w{12}, not hash \w{12}\)\. Start", told[0][1])


class Unpicklable(str):
    """Fails as CUDA does where memory is short: with a RuntimeError that is of no other process."""

    def __reduce__(self):
        raise RuntimeError("CUDA out of memory")


def test_an_error_of_the_own_process_keeps_its_text(on_two_ranks):
    def begin(rank):
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            check_same_call({"lr": Unpicklable()}, 2)
        return "told"

    assert on_two_ranks(begin) == [(0, "told"), (1, "told")]


def test_who_waits_for_a_process_that_ended_is_sent_to_its_messages(on_two_ranks):
    def begin(rank):
        if rank == 1:
            return "left"
        with pytest.raises(UsageError, match="expected all 2 processes to begin, found one gone"):
            check_same_call(CALL, 2)
        return "told"

    assert on_two_ranks(begin) == [(0, "told"), (1, "left")]


def test_a_rank_that_fails_ends_the_test_that_waits_for_it(on_two_ranks, capfd):
    def begin(rank):
        if rank == 1:
            raise ValueError("not this time")
        check_same_call(CALL, 2)

    with pytest.raises(AssertionError, match=r"\[1, 1\]"):
        on_two_ranks(begin)
    assert "ValueError: not this time" in capfd.readouterr().err


def test_one_process_has_nobody_to_agree_with():
    check_same_call(CALL, 1)
