"""A short run of the fuzzer, the same in every run; and one test for each thing that a long run found."""

import io
import json
import pickle
import resource
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fuzz import whole_files as whole
from fuzz.all_targets import all_targets
from fuzz.judge import Target, bounds, judge
from fuzz.mutate import BINARY, JSON, TEXT, mutated

from softshard.loaders.service_address import split_address
from softshard.loaders.state import check_state
from softshard.shards import DataError, LabelTree, UsageError
from softshard.shards.confusion_file import load_confusion
from softshard.shards.files import read_limited
from softshard.shards.html import Page
from softshard.shards.labelmap_published import read_published_map
from softshard.shards.score_file import read_scores
from softshard.shards.sources import open_source
from softshard.shards.storage import open_storage
from softshard.shards.stored_vocabulary import Vocabulary
from softshard.shards.subset_file import SubsetFile
from softshard.shards.webvision_info import read_meta
from softshard.training.checkpoint import load_checkpoint
from softshard.training.label_sets import _read_sets
from softshard.training.steplog import METRICS_COLUMNS, _start_csv

EXAMPLES = 60  # of each parser; `make fuzz` tries as many as fit into its minutes
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def targets():
    return {target.name: target for target in all_targets()}


def names():
    """Without making the whole files, which takes a second: a test below compares."""
    return NAMES.read_text().split("\n")[:-1]


NAMES = Path(__file__).with_name("targets.txt")


def test_the_list_of_parsers_is_complete(targets):
    assert names() == list(targets)


@pytest.mark.parametrize("name", names())
def test_damaged_files_are_read_or_refused_with_an_error_that_names_them(targets, name, tmp_path):
    target = targets[name]
    for seed in target.seeds:
        target.parse(seed, tmp_path)
    for number in range(EXAMPLES):
        assert judge(target, target.example(number), tmp_path) == "", f"number {number}"


@pytest.mark.parametrize("kind", [BINARY, TEXT, JSON])
def test_a_number_decides_the_damage(kind):
    content = json.dumps({"a": [1, 2, {"b": "text"}]}).encode()
    first = [mutated(content, kind, number) for number in range(50)]
    assert first == [mutated(content, kind, number) for number in range(50)]
    assert len(set(first)) > 40
    assert mutated(b"", BINARY, 1) is not None


def test_the_judge_tells_bugs_from_refusals(tmp_path, monkeypatch):
    def run(parse, where="a.txt"):
        return judge(Target("x", parse, (b"",), BINARY, where), b"", tmp_path)

    def raising(error):
        def parse(data, folder):
            raise error

        return parse

    assert run(lambda data, folder: None) == ""
    assert run(raising(DataError("a.txt: expected more"))) == ""
    assert "does not name" in run(raising(UsageError("expected more")))
    assert "KeyError" in run(raising(KeyError("x")))
    assert "MemoryError" in run(lambda data, folder: bytearray(3 << 30))
    monkeypatch.setattr("fuzz.judge.MOST_S", 0.01)
    assert "more than" in run(lambda data, folder: _endless())


def _endless():
    while True:
        pass


def test_the_judge_leaves_the_limits_as_they_were():
    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounds():
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    assert resource.getrlimit(resource.RLIMIT_AS) == before


# What was found.


def test_reading_a_small_file_takes_no_more_memory_than_it_has_bytes(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc" * 1_000_000)
    with bounds():
        assert read_limited(str(file), 1 << 40) == file.read_bytes()
    assert len(read_limited(str(file), 3_000_000)) == 3_000_000
    with pytest.raises(DataError, match="expected at most 2999999 bytes, found more"):
        read_limited(str(file), 2_999_999)


def test_an_index_without_fields_is_refused_although_its_hash_is_right(targets, tmp_path):
    with pytest.raises(
        DataError, match=r"train-000000.idx: expected a line of components for each of \d samples"
    ):
        targets["hashed index"].parse(b"v1.2 4\nabc\nabc\nabc\nabc\n", tmp_path)


def test_a_page_shows_names_that_are_no_text(tmp_path):
    page = Page("caf\udce9")
    page.write(tmp_path / "page.html")
    assert "<h1>caf?</h1>" in (tmp_path / "page.html").read_text("utf-8")


def test_a_json_file_of_webvision_may_have_a_name_that_no_folder_takes(tmp_path):
    with pytest.raises(DataError, match="found: File name too long"):
        read_meta(open_storage(tmp_path), "x" * 300 + ".json")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "train_filelist_google.txt",
            "google/q0001/a\0b.jpg 0",
            "expected a path below the folder and a class",
        ),
        (
            "train_filelist_google.txt",
            "google/q0001/a.jpg " + "1" * 5000,
            "expected a path below the folder and a class",
        ),
        ("queries_synsets_map.txt", "1 " + "1" * 5000, "expected a query and a synset"),
        ("train_meta_list_google.txt", "google/q0001.json " + "1" * 5000, "expected a JSON file and a row"),
    ],
    ids=["NUL", "digits of a class", "digits of a query", "digits of a row"],
)
def test_odd_lines_of_webvision_are_named(targets, tmp_path, name, line, message):
    with pytest.raises(DataError, match=message):
        targets[f"WebVision {name}"].parse(f"{line}\n{line}\n".encode(), tmp_path)


@pytest.mark.parametrize(("text", "error"), [("child,parent\n", UsageError), ("a\x7f,b\n", DataError)])
def test_a_table_that_makes_no_tree_is_named(tmp_path, text, error):
    (tmp_path / "tree.csv").write_text(text)
    with pytest.raises(error, match=r"tree\.csv: tree: "):
        LabelTree.from_file(tmp_path / "tree.csv")


def test_scores_of_a_class_beyond_any_list_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"softshard": "scores", "version": 1, "fingerprint": "f", "samples": 1}\n'
        '{"key": "a", "class": 3000000000, "probability": 0.5, "half": 0, "trained_on": 1}\n'
    )
    with pytest.raises(DataError, match="line 2: expected a key and a class index"):
        read_scores(tmp_path / "a.jsonl")


def test_a_vocabulary_with_thousands_of_digits_is_refused(tmp_path):
    (tmp_path / "vocabulary.tsv").write_text("tag\timages\ncat\t" + "9" * 5000 + "\n")
    with pytest.raises(DataError, match="line 2: expected a tag, a tab and a number"):
        Vocabulary.load(tmp_path / "vocabulary.tsv")


def test_a_narrow_confusion_matrix_of_many_lines_takes_no_square_of_them(tmp_path):
    (tmp_path / "a.csv").write_text("1\n" * 30_000)
    with bounds(), pytest.raises(DataError, match="line 1: expected 30,000 cells, found 1"):
        load_confusion(tmp_path / "a.csv", ["a"])


def test_a_header_of_numpy_that_is_no_python_is_refused(tmp_path):
    content = bytearray(whole.npy(np.zeros((2, 2))))
    content[20:21] = b"("
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: expected an array of numpy\.save's"):
        load_confusion(tmp_path / "a.npy", ["a", "b"])


@pytest.mark.parametrize("notes", [7, {"a": 1}, "text", None])
def test_notes_of_a_subset_that_are_no_list_count_for_nothing(targets, notes):
    content = json.loads(targets["subset"].seeds[0]) | {"notes": notes}
    assert SubsetFile.from_json(content).notes == ()


@pytest.mark.parametrize(
    "change",
    [{"shards": [{"name": "../../other.tar", "samples": 1}]}, {"label_maps": {"top": "5"}}],
    ids=list,
)
def test_side_shards_are_files_of_their_own_folder(targets, tmp_path, change):
    content = json.loads(targets["side shards"].seeds[0]) | change
    with pytest.raises(DataError, match=r"label_maps\.json: expected a description of side shards, found"):
        targets["side shards"].parse(json.dumps(content).encode(), tmp_path)


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_that_cannot_be_is_the_states_fault(epoch):
    with pytest.raises(UsageError, match="loader state: expected an epoch from 0"):
        check_state({"version": 1, "seed": 0, "epoch": epoch, "taken": 0}, {"seed": 0}, 10)


def test_a_published_map_that_asks_for_gradients_is_read(tmp_path):
    planes = torch.stack([torch.rand(3, 2, 2), torch.zeros(3, 2, 2)]).requires_grad_()
    torch.save(planes, tmp_path / "a.pt")
    scores, _ = read_published_map(tmp_path / "a.pt", 10)
    assert np.array_equal(scores, planes[0].detach().numpy())


@pytest.mark.parametrize("data", [b"\x80\x02.", b"\x80\x02K", b"\x80\x02(lt.", b"\x80\x02X\xff\xff"])
def test_pickles_that_are_none_are_refused_under_right_checksums(targets, tmp_path, data):
    for name in ("checkpoint behind its checksum", "published label map behind its checksum"):
        with pytest.raises(DataError, match=targets[name].where):
            targets[name].parse(data, tmp_path)


def test_a_checkpoint_with_fields_of_other_types_is_refused(targets, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(targets["checkpoint"].seeds[0])
    fields = torch.load(path, weights_only=True)
    torch.save({**fields, "step": "17", "class_names": 3}, path)
    with pytest.raises(
        DataError, match=r"expected the fields of a checkpoint, found others in class_names, step;"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["manifest", "tree.json", "subset", "plan.json", "label sets"])
def test_json_that_nests_too_deep_is_refused(targets, tmp_path, name):
    with pytest.raises(DataError, match=targets[name].where):
        targets[name].parse(DEEP.encode(), tmp_path)


@pytest.mark.parametrize("name", ["receipt", "kept listing"])
def test_what_a_run_keeps_for_itself_is_made_again_where_it_nests_too_deep(targets, tmp_path, name):
    targets[name].parse(DEEP.encode(), tmp_path)


def test_a_list_of_servers_that_nests_too_deep_is_refused(targets, tmp_path):
    with pytest.raises(UsageError, match=r"servers\.json: expected"):
        targets["list of servers"].parse(DEEP.encode(), tmp_path)


def test_a_port_with_thousands_of_digits_is_none():
    with pytest.raises(UsageError, match="expected an address such as"):
        split_address("127.0.0.1:" + "7" * 5000)


def test_rows_of_metrics_that_are_none_are_left_out(tmp_path):
    path, end = tmp_path / "metrics.csv", ",0" * (len(METRICS_COLUMNS) - 1)
    first = "\u00b2", "9" * 5000, "7", "1"
    path.write_text("".join(f"{cell}{end}\n" for cell in first) + '"\0' + "x" * 200_000, "utf-8")
    _start_csv(path, 5)
    assert path.read_text().splitlines()[1:] == [f"1{end}"]


@pytest.mark.parametrize("name", ["plan of scores", "plan of a study", "plan of a reshard", "import.json"])
@pytest.mark.parametrize("content", [b"[", b"7", b'{"sha256": 7, "shape": ["a", 1, 2]}'])
def test_what_an_earlier_run_left_is_refused_and_no_bug(targets, tmp_path, name, content):
    with pytest.raises((DataError, UsageError)):
        targets[name].parse(content, tmp_path)


# The threats of docs/security.md that no other test shows.


class Harm:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["checkpoint", "a"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, name):
    path, harmed = tmp_path / f"{name}.pt", tmp_path / "harmed"
    torch.save({"recipe": Harm(harmed), "version": 4}, path)
    with pytest.raises(DataError, match="cannot"):
        load_checkpoint(path) if name == "checkpoint" else read_published_map(path, 10)
    assert not harmed.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["../../escaped.jpg", "/escaped.jpg"])
def test_no_member_of_a_tar_leads_out_of_the_folder(targets, tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    data = whole.tar({f"{whole.CLASSES[0]}/a.jpg": whole.jpeg(), name: whole.jpeg()})
    assert judge(targets["source tar"], data, inner) == ""
    assert {path.name for path in tmp_path.rglob("*")} == {"inner", "whole.tar"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_shard_with_links_or_devices_is_refused(targets, tmp_path, kind):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar: expected plain files only, found 'a\.jpg'"):
        targets["tar"].parse(file.getvalue(), tmp_path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../other/a.jpg", "file:///etc/passwd", "~/a.jpg", "s3://other/a.jpg"]
)
def test_a_list_from_a_server_chooses_no_files_of_this_machine(path):
    fsspec.filesystem("memory").pipe("/listed/list.csv", f"path,label\n{path},cat\n".encode())
    with pytest.raises(DataError, match="line 2: expected a"):
        open_source("memory://listed/list.csv")


def test_sets_of_labels_are_read(tmp_path):
    (tmp_path / "sets.json").write_text('{"a.jpg": ["cat", 1]}')
    assert _read_sets(str(tmp_path / "sets.json")) == {"a.jpg": ["cat", 1]}
