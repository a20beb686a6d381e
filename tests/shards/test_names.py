import hashlib

from hypothesis import given
from hypothesis import strategies as st

from softshard.shards.keys import repeated_keys, sample_key
from softshard.shards.names import Names

name = st.text(st.sampled_from("aAbB_-. é1\udce9"), max_size=6)


@given(st.lists(name, max_size=8))
def test_a_column_of_names_is_the_list_of_them(values):
    names = Names(values)
    assert list(names) == values
    assert names == values
    assert [names[i] for i in range(len(names))] == values
    assert names[1:3] == tuple(values[1:3])
    assert Names(values) == names


@given(st.lists(name, max_size=4), st.lists(name, max_size=4))
def test_columns_feed_a_hash_alike_only_where_they_are_equal(one, other):
    digests = []
    for values in (one, other):
        digests.append(hashlib.sha256())
        Names(values).update(digests[-1])
    assert (digests[0].digest() == digests[1].digest()) == (one == other)


@given(
    st.text(st.sampled_from("aA_"), min_size=1, max_size=3),
    st.sets(st.text(st.sampled_from("aA_1"), max_size=5).map(lambda stem: f"{stem}.jpg"), max_size=8),
)
def test_the_short_cut_finds_what_comparing_all_keys_finds(class_name, files):
    files = sorted(files)
    keys = [sample_key(class_name, file, is_unique=True).lower() for file in files]
    expected = [i for i, key in enumerate(keys) if keys.count(key) > 1]
    assert repeated_keys(class_name, Names(files)).tolist() == expected
