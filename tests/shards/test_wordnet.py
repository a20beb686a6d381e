import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from waiting import LONG_S

from softshard.shards import wordnet as wordnet_module
from softshard.shards.errors import DataError
from softshard.shards.make_wordnet_table import main, published_exceptions, read_dictionary
from softshard.shards.wordnet import (
    TABLE_PATH,
    WordNet,
    wordnet,
)

DICTIONARY = Path(os.environ.get("SOFTSHARD_WORDNET_DICT", "/usr/share/wordnet"))

needs_dictionary = pytest.mark.skipif(
    not (DICTIONARY / "data.noun").is_file(),
    reason="needs a WordNet 3.0 dictionary folder (SOFTSHARD_WORDNET_DICT, or Debian's wordnet-base)",
)

# thing < animal < dog, and rex, an instance of dog; pet stands beside animal and is dog's second parent.
DATA_NOUN = """\
  1 This licence is no part of the data.
00000100 03 n 01 thing 0 000 | anything
00000200 03 n 02 animal 0 living_thing 0 001 @ 00000100 n 0000 | a living one
00000300 03 n 01 pet 0 001 @ 00000100 n 0000 | kept at home
00000400 03 n 02 Dog 0 pooch 0 003 @ 00000200 n 0000 + 00000100 v 0101 @ 00000300 n 0000 | it barks | loudly
00000500 03 n 02 Rex 0 dog 0 001 @i 00000400 n 0000 | a certain dog
"""
INDEX_NOUN = """\
  1 This licence is no part of the data.
animal n 1 1 @ 1 0 00000200
dog n 2 1 @ 2 1 00000500 00000400
living_thing n 1 1 @ 1 0 00000200
pet n 1 1 @ 1 0 00000300
pooch n 1 1 @ 1 0 00000400
rex n 1 1 @ 1 0 00000500
thing n 1 0 1 0 00000100
"""


@pytest.fixture
def dictionary(tmp_path):
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text(DATA_NOUN)
    (folder / "index.noun").write_text(INDEX_NOUN)
    return folder


@pytest.fixture(scope="module")
def is_a_parents(is_a):
    parents = {}
    for line in is_a.read_text().splitlines():
        parent, child = line.split()
        parents.setdefault(child, []).append(parent)
    return parents


def test_hypernyms_come_in_pointer_order():
    assert wordnet().hypernyms("n02084071") == ("n02083346", "n01317541")  # dog: canine, domestic animal
    assert wordnet().hypernyms("n00001740") == ()  # entity


def test_instances_have_hypernyms_too():
    assert wordnet().hypernyms("n09450163") == ("n09444100",)  # sun, an instance of star


def test_senses_come_most_frequent_first():
    assert wordnet().senses("cat")[:2] == ("n02121620", "n10153414")
    assert wordnet().senses("dog")[0] == "n02084071"


@pytest.mark.parametrize("name", ["tabby cat", "tabby_cat", "Tabby Cat", " TABBY  cat "])
def test_names_are_found_whatever_their_case_and_spaces(name):
    assert wordnet().senses(name) == ("n02123045",)


def test_an_unknown_name_has_no_senses():
    assert wordnet().senses("not a noun at all") == ()


def test_lemmas_have_spaces():
    assert wordnet().lemmas("n02123045") == ("tabby", "tabby cat")


def test_membership_is_by_wnid():
    assert "n02084071" in wordnet()
    assert "n00000001" not in wordnet()
    assert "dog" not in wordnet()
    assert len(wordnet()) == len(list(wordnet())) == 82_115


def test_an_unknown_wnid_is_named():
    with pytest.raises(DataError, match=r"'n00000001': not a noun synset of WordNet 3\.0"):
        wordnet().hypernyms("n00000001")


def test_the_packaged_table_is_of_wordnet_3_0():
    assert wordnet().data_noun_sha256 == "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"
    assert TABLE_PATH.stat().st_size < 2_500_000


def test_the_packaged_table_has_fixed_times_and_no_pickle():
    with zipfile.ZipFile(TABLE_PATH) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(TABLE_PATH, allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)
        assert len(archive["published_children"]) == 762


def test_reading_wordnet_imports_neither_nltk_nor_torch():
    code = (
        "import sys; from softshard.shards.wordnet import wordnet; wordnet().senses('cat'); "
        "assert not {'nltk', 'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG_S)


def test_last_kind_pointer_and_published_parent_differ_for_762_synsets():
    exceptions = wordnet()._published
    assert exceptions is not None
    assert len(exceptions) == 762


def test_a_synset_with_instance_pointers_only_is_a_published_root():
    assert wordnet().published_parent("n09450163") is None


@pytest.mark.shared
def test_published_parents_agree_with_every_last_line_of_the_list(is_a_parents):
    assert len(is_a_parents) == 74_389
    expected = {wnid: is_a_parents[wnid][-1] if wnid in is_a_parents else None for wnid in wordnet()}
    assert {wnid: wordnet().published_parent(wnid) for wnid in wordnet()} == expected


@pytest.mark.shared
def test_1422_children_of_the_list_have_several_parents(is_a_parents):
    several = {child for child, parents in is_a_parents.items() if len(parents) > 1}
    assert len(several) == 1_422
    assert all(set(is_a_parents[child]) <= set(wordnet().hypernyms(child)) for child in several)


@pytest.mark.shared
def test_the_packaged_exceptions_follow_from_the_list(is_a):
    with np.load(TABLE_PATH, allow_pickle=False) as archive:
        table = {name: archive[name] for name in archive.files}
    found = published_exceptions(table, is_a)
    assert np.array_equal(found["published_children"], table["published_children"])
    assert np.array_equal(found["published_parents"], table["published_parents"])


@needs_dictionary
def test_a_full_rebuild_gives_the_packaged_arrays():
    rebuilt = read_dictionary(DICTIONARY)
    with np.load(TABLE_PATH, allow_pickle=False) as packaged:
        assert set(packaged.files) - set(rebuilt) == {"published_children", "published_parents"}
        for name, array in rebuilt.items():
            assert array.dtype == packaged[name].dtype, name
            assert np.array_equal(array, packaged[name]), name


def test_the_script_writes_a_table_that_reads_back(dictionary, tmp_path, capsys):
    (tmp_path / "is_a.txt").write_text("n00000300 n00000400\nn00000200 n00000400\nn00000100 n00000200\n")
    table_path = tmp_path / "tiny.npz"
    assert main([str(dictionary), "--is-a", str(tmp_path / "is_a.txt"), "-o", str(table_path)]) == 0
    assert "5 synsets, 5 hypernym pointers, 8 lemmas, 2 published exceptions" in capsys.readouterr().out
    table = WordNet.load(table_path)
    assert list(table) == ["n00000100", "n00000200", "n00000300", "n00000400", "n00000500"]
    assert table.hypernyms("n00000400") == ("n00000200", "n00000300")
    assert table.hypernyms("n00000500") == ("n00000400",)
    assert table.lemmas("n00000400") == ("Dog", "pooch")
    assert table.lemmas("n00000200") == ("animal", "living thing")
    assert table.senses("dog") == ("n00000500", "n00000400")
    # The list's last line for the dog is not its last pointer; the pet stands in no line.
    parents = {wnid: table.published_parent(wnid) for wnid in table}
    assert parents == {
        "n00000100": None,
        "n00000200": "n00000100",
        "n00000300": None,
        "n00000400": "n00000200",
        "n00000500": None,
    }


def test_the_script_writes_the_same_bytes_again(dictionary, tmp_path):
    for name in ("a.npz", "b.npz"):
        assert main([str(dictionary), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_table_without_the_list_knows_no_published_parents(dictionary, tmp_path):
    assert main([str(dictionary), "-o", str(tmp_path / "tiny.npz")]) == 0
    with pytest.raises(DataError, match=r"does not record the published parents.*--is-a"):
        WordNet.load(tmp_path / "tiny.npz").published_parent("n00000400")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("data.noun", "02 Dog", "09 Dog", r"data\.noun: line 5: expected a synset"),
        ("data.noun", "@ 00000200", "@ 00000999", r"pointers lead to synsets that are not there: \[999\]"),
        ("data.noun", "00000300 03", "00000150 03", r"expected synsets with ascending offsets"),
        ("index.noun", "pooch n 1", "pooch n 2", r"index\.noun: line 6: expected a lemma"),
        ("index.noun", "pooch", "pouch", r"index\.noun: no entry for 'pooch'.*different versions"),
    ],
)
def test_a_broken_dictionary_is_refused(dictionary, name, old, new, message):
    path = dictionary / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_dictionary(dictionary)


def test_a_broken_list_is_refused_by_line(dictionary, tmp_path, capsys):
    (tmp_path / "is_a.txt").write_text("n00000100 n00000200\nn00000100\n")
    assert main([str(dictionary), "--is-a", str(tmp_path / "is_a.txt"), "-o", str(tmp_path / "x.npz")]) == 1
    assert "is_a.txt: line 2: expected `parent child`" in capsys.readouterr().err


def test_a_missing_dictionary_is_a_wrong_call(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "x.npz")]) == 2
    assert "data.noun: cannot be read; No such file or directory" in capsys.readouterr().err


def test_a_table_of_another_format_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", format=np.array("softshard-wordnet 2"))
    with pytest.raises(DataError, match=r"format 'softshard-wordnet 1', found 'softshard-wordnet 2'"):
        WordNet.load(tmp_path / "other.npz")


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no table")
    with pytest.raises(DataError, match="expected a WordNet table"):
        WordNet.load(tmp_path / "text.npz")


def test_the_packaged_table_is_read_once():
    assert wordnet_module.wordnet() is wordnet_module.wordnet()
