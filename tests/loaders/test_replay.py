"""`softshard replay`: any batch of a run, from a line of its log."""

import json
import shlex

import pytest

from softshard.loaders import Augment, Loader, Mixture, Subset
from softshard.loaders.replay import replay, replay_command
from softshard.shards.cli import main

RUN = {
    "batch_size": 12,
    "augment": Augment(size=32, scale=(0.2, 0.9)),
    "last_batch": "pad",
    "seed": 7,
    "lanes": 3,
    "window": 20,
    "balance": 0.5,
    "num_threads": 2,
}


def shown_by(words, capsys):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def slots_of(batch):
    return [
        {
            "key": key or None,
            "class": int(batch.classes[i]) if key else None,
            "crop_xyxy": [round(float(edge), 4) for edge in batch.crops[i]] if key else None,
            "flip": bool(batch.flips[i]) if key else None,
        }
        for i, key in enumerate(batch.keys)
    ]


def without(rows, *names):
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_the_command_of_every_step_shows_that_steps_batch(packed, capsys):
    with Loader(packed, **RUN) as loader:
        loader.set_epoch(2)
        batches = list(loader)
        commands = [replay_command(loader, 2, step) for step in range(len(batches))]
    assert commands[1] == (
        f"softshard replay {packed} --epoch 2 --step 1 --seed 7 --batch-size 12 --lanes 3 --window 20 --balance 0.5 "
        "--size 32 --scale 0.2 0.9"
    )
    assert any(None in [row["key"] for row in slots_of(batch)] for batch in batches)
    for command, batch in zip(commands, batches, strict=True):
        found = shown_by(shlex.split(command)[1:], capsys)
        assert without(found["slots"], "slot", "class_name") == slots_of(batch)


def test_each_rank_sees_its_own_part(packed, capsys):
    words = ["replay", str(packed), "--batch-size", "12", "--step", "2"]
    whole = shown_by(words, capsys)["slots"]
    parts = [
        shown_by([*words, "--rank", str(rank), "--world-size", "3"], capsys)["slots"] for rank in range(3)
    ]
    assert without(parts[0] + parts[1] + parts[2], "slot") == without(whole, "slot")


def test_a_state_shows_the_batch_that_follows_it(packed, tmp_path, capsys):
    with Loader(packed, **RUN) as loader:
        loader.set_epoch(1)
        running = iter(loader)
        next(running)
        state = json.dumps(loader.state_dict())
        following = next(running)
        running.close()
    (tmp_path / "state.json").write_text(state)
    options = ["--size", "32", "--scale", "0.2", "0.9"]
    for given in (state, str(tmp_path / "state.json")):
        found = shown_by(["replay", str(packed), "--state", given, *options], capsys)
        assert without(found["slots"], "slot", "class_name") == slots_of(following)


def test_other_options_of_a_run_have_words_too(packed, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("oak\ncat\n")
    for augment, words in (
        (Augment.evaluation(16), "--size 16 --whole-image --no-flip"),
        (Augment(), ""),
    ):
        options = {"augment": augment, "labels": ["oak", "cat"], "shuffle": False}
        with Loader(packed, batch_size=10, **options) as loader:
            command = replay_command(loader, 0, 1, str(labels))
            batch = list(loader)[1]
        assert (
            command
            == (
                f"softshard replay {packed} --epoch 0 --step 1 --seed 0 --batch-size 10 --no-shuffle "
                f"--labels {labels} {words}"
            ).rstrip()
        )
        found = shown_by(shlex.split(command)[1:], capsys)
        assert without(found["slots"], "slot", "class_name") == slots_of(batch)
        assert {row["class_name"] for row in found["slots"]} <= {"oak", "cat"}


def test_what_cannot_be_typed_is_replayed_in_python(packed):
    for dataset, options in (
        (packed, {"subset": Subset(fraction=0.5)}),
        (Mixture({packed: 1}), {}),
        (packed, {"labels": ["cat", "oak"]}),
    ):
        with Loader(dataset, batch_size=6, last_batch="pad", augment=Augment(size=16), **options) as loader:
            assert replay_command(loader, 0, 0) is None
            loader.set_epoch(3)
            batches = list(loader)
        with Loader(dataset, batch_size=6, last_batch="pad", augment=Augment(size=16), **options) as loader:
            again = replay(loader, 3, 12)
        assert again.keys == batches[2].keys
        assert (again.images == batches[2].images).all()


def test_text_and_page_show_every_sample(packed, tmp_path, capsys):
    page = tmp_path / "batch.html"
    words = ["replay", str(packed), "--epoch", "1", "--step", "8", "--batch-size", "12", "--size", "48"]
    assert main([*words, "--out", str(page)]) == 0
    shown, html = capsys.readouterr().out, page.read_text()
    assert "epoch 1, step 8, seed 0, global batch 12" in shown
    rows = shown_by(words, capsys)["slots"]
    real = [row for row in rows if row["key"]]
    assert 0 < len(real) < 12  # 105 samples: the last batch has empty slots
    assert shown.count("(empty)") == 12 - len(real)
    for row in real:
        assert row["key"] in shown
        assert row["key"] in html
        assert row["class_name"] in shown
    assert html.count("<img") == 2 * len(real)
    assert "--size 48" in html


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "9", "--batch-size", "12"], "expected a step from 0 to 8 of 105 samples, found 9"),
        (["--step", "-1"], "expected a step from 0 to 0 of 105 samples, found -1"),
        (["--world-size", "5"], "expected a world size that divides the global batch 256, found 5"),
        (["--state", "[1]"], "expected a loader's state as JSON or a file of it, found"),
        (["--state", '{"version": 0}'], "expected a state of version 1, found 0"),
        (
            ["--state", '{"version": 1, "subset": {"fraction": 0.5}}'],
            "expected a state of a loader with the data set's own samples and labels, found subset",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused(packed, words, message, capsys):
    assert main(["replay", str(packed), *words]) == 2
    assert message in capsys.readouterr().err
