"""What happens where DALI or torch is not installed, and what is imported before it is needed."""

import subprocess
import sys

import pytest

BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(script, blocked=()):
    script = BLOCK.format(blocked=tuple(blocked)) + script
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("blocked", "name", "module"),
    [
        ("torch", "Loader", "torch"),
        ("nvidia", "Loader", "nvidia"),
        ("nvidia.dali", "Loader", "nvidia.dali"),
        ("torch", "pool_label_maps", "torch"),
    ],
)
def test_a_missing_module_is_an_error_that_names_the_pip_command(blocked, name, module):
    done = run(f"from softshard.loaders import {name}", [blocked])
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1] == (
        f"softshard.shards.errors.MissingExtraError: softshard.loaders.{name} needs the module '{module}', "
        "which is not installed. Run: pip install 'softshard[loaders]' (in a clone: pip install '.[loaders]')"
    )


@pytest.mark.parametrize(
    ("command", "blocked", "extra"),
    [
        (["bench"], ["nvidia.dali"], "loaders"),
        (["inspect", "--serve"], ["uvicorn", "starlette"], "inspect"),
        (["serve"], ["pyarrow"], "service"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else each,
)
def test_a_command_without_its_extra_names_the_pip_command(packed_plain, command, blocked, extra):
    done = run(
        f"from softshard.shards.cli import main; sys.exit(main({[*command, str(packed_plain)]!r}))", blocked
    )
    assert done.returncode == 2
    assert (
        f"softshard {' '.join(command)} needs the module '{blocked[0]}', which is not installed"
        in done.stderr
    )
    assert f"pip install 'softshard[{extra}]'" in done.stderr


def test_augment_needs_neither_torch_nor_dali():
    done = run("from softshard.loaders import Augment; Augment(size=8)", ["torch", "nvidia"])
    assert done.returncode == 0, done.stderr


def test_importing_the_package_and_its_commands_imports_no_torch():
    script = "import softshard.loaders, softshard.loaders.cli; sys.exit('torch' in sys.modules)"
    assert run(script).returncode == 0


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import softshard.loaders

    with pytest.raises(AttributeError, match="has no attribute 'Loder'"):
        softshard.loaders.Loder  # noqa: B018
