"""What spreads the work, where it is not there; and errors on their way back from it."""

import pickle
import sys

import pytest

from softshard.shards import DataError, UsageError, pack
from softshard.shards.engine_ray import connected
from softshard.shards.errors import ImageError, MissingExtraError


def test_a_ray_that_does_not_start_is_a_wrong_call():
    class Busy:
        __version__ = "2.60.0"
        is_initialized = staticmethod(bool)

        @staticmethod
        def init(**settings):
            raise Exception("The current node timed out during startup.")  # Ray's own class for it

    with (
        pytest.raises(
            UsageError, match=r"this machine: .* 2\.60\.0, found: The current node .*--engine local"
        ),
        connected(Busy, 1, "local"),
    ):
        pass


def test_without_ray_nothing_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError):
        pack(source, tmp_path / "set", engine="ray")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    "error",
    [
        ImageError("x.jpg: expected more", kind="truncated"),
        DataError("x.tar: expected more"),
        UsageError("x: expected less"),
        MissingExtraError("s3:// sources", "s3", ImportError("No module named 's3fs'", name="s3fs")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_through_a_pickle_as_it_is(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert getattr(copy, "kind", None) == getattr(error, "kind", None)


def test_an_engine_that_is_not_there_is_a_wrong_call(source, tmp_path):
    with pytest.raises(UsageError, match="engine: expected one of local, ray, found 'spark'"):
        pack(source, tmp_path / "set", engine="spark")
    assert not (tmp_path / "set").exists()
