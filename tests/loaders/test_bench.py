"""`softshard bench` runs and says what it measured. Nothing is timed here."""

import json

import pytest

from softshard.shards.cli import main


def test_bench_writes_options_machine_and_results(packed, tmp_path, capsys):
    out = tmp_path / "bench.json"
    options = ["--batch-size", "16", "--size", "32", "--steps", "2", "--repeats", "2", "--threads", "2"]
    assert main(["bench", str(packed), "--targets", "relabel", *options, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["samples"] == 105
    assert result["options"] == {
        "batch_size": 16,
        "targets": "relabel",
        "side": None,
        "device": "cpu",
        "dtype": "uint8",
        "size": 32,
        "num_threads": 2,
        "warmup": 5,
        "steps": 2,
    }
    assert {"processor", "cores", "python", "packages"} <= result["machine"].keys()
    assert result["machine"]["packages"]["torch"] != "not installed"
    assert result["results"].keys() == {"loader", "decode only"}
    for values in result["results"].values():
        assert 0 < values["low"] <= values["images_per_s"] <= values["high"]
        assert values["images_per_cpu_s"] > 0
        assert values["repeats"] == 2
    assert result["ratio_to_decode_only"] > 0
    shown = capsys.readouterr().out
    assert "105 samples" in shown
    assert "of decoding alone" in shown


def test_bench_refuses_a_batch_larger_than_the_data_set(packed, capsys):
    assert main(["bench", str(packed), "--batch-size", "1000"]) == 2
    said = capsys.readouterr().err
    assert "expected at least one batch of 1000, found 105 samples. Use a smaller --batch-size" in said


@pytest.mark.parametrize("part", ["--dtype", "--targets"])
def test_bench_refuses_unknown_choices(packed, capsys, part):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", str(packed), part, "other"])
    assert stopped.value.code == 2
    assert f"argument {part}: invalid choice: 'other'" in capsys.readouterr().err
