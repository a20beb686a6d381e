"""The help of every command, and completion in the shells themselves."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from softshard.shards.cli import build_parser, main
from softshard.shards.cli_help import EXAMPLES, TASKS, commands_of

ROOT = Path(__file__).parents[1]
# As typed: with variables, a prompt or torchrun before it.
SOFTSHARD = re.compile(r"(\$ )?(\w+=\S+ )*(torchrun .*--no-python )?softshard \w+ ")
COMMANDS = dict(commands_of(build_parser()))
# Options that say in words what holds without them, or that have nothing to hold.
LATE_DEFAULTS = (None, False, [], "")
# What these name is another thing in another command.
SEVERAL = {
    *("--classes", "--images", "--json", "--labels", "--model", "--num-classes", "--out", "--output"),
    *("--side", "--subset", "--teacher", "--threshold", "--tree", "--weights"),
}


def options(parser):
    return [
        one for one in parser._actions if not isinstance(one, (argparse._HelpAction, argparse._VersionAction))
    ]


def inner(parser):
    return [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]


def test_every_command_stands_under_one_task():
    top = list(inner(COMMANDS[""])[0].choices)
    assert sorted(top) == sorted(name for names in TASKS.values() for name in names)
    text = COMMANDS[""].format_help()
    assert all(re.search(rf"^  {name}\s", text, re.MULTILINE) for name in top)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_what_every_option_is(name):
    parser = COMMANDS[name]
    assert parser.description
    assert not [one.dest for one in options(parser) if not one.help and one not in inner(parser)]
    assert parser.format_help()  # a stray % in a help text fails here


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_shown(name):
    for one in options(COMMANDS[name]):
        if one.option_strings and one.default not in LATE_DEFAULTS and not isinstance(one.default, tuple):
            assert "default" in one.help, one.option_strings


def test_one_thing_has_one_metavar():
    names = {}
    for parser in COMMANDS.values():
        for one in options(parser):
            if one.option_strings and one.metavar:
                names.setdefault(one.option_strings[-1], set()).add(one.metavar)
    several = {option: found for option, found in names.items() if len(found) > 1}
    assert not several.keys() - SEVERAL, several


@pytest.mark.parametrize(
    "line", [line for name, lines in EXAMPLES.items() if name for line in lines if "completion" not in name]
)
def test_examples_are_commands_that_the_parser_takes(line):
    words = shlex.split(line)
    args = COMMANDS[""].parse_args(words[words.index("softshard") + 1 :])
    assert args.run


def commands_of_pages():
    """Every whole command of the pages' drawn blocks, its lines joined: page, words after `softshard`."""
    for page in sorted(path for pattern in ("*.md", "*/*.md", "docs/*/*.md") for path in ROOT.glob(pattern)):
        text = page.read_text().replace("\\\n", " ")
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()] + re.findall(
            r"^    (.*)", text, re.MULTILINE
        )
        for line in lines:
            words = shlex.split(re.sub(r"\s#.*|\s&$", "", line)) if SOFTSHARD.match(line) else []
            if words and "..." not in words:
                yield page.relative_to(ROOT).as_posix(), words[words.index("softshard") + 1 :]


def test_commands_of_pages_are_commands_that_the_parser_takes(capsys):
    wrong, pages = [], set()
    for page, words in commands_of_pages():
        pages.add(page)
        try:
            COMMANDS[""].parse_args(words)
        except SystemExit:
            wrong.append((page, words, capsys.readouterr().err.splitlines()[-1]))
    assert wrong == []
    assert {"README.md", "training/README.md", "docs/tutorials/relabel.md"} <= pages


def test_only_commands_have_examples():
    assert EXAMPLES.keys() <= COMMANDS.keys()
    actions = {name for name, parser in COMMANDS.items() if name and not inner(parser)}
    assert {"pack", "train", "doctor", "maps make"} <= EXAMPLES.keys() & actions


@pytest.mark.parametrize("name", [name for name, parser in COMMANDS.items() if inner(parser)])
def test_a_command_without_its_action_is_a_wrong_call(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(name.split())
    assert "required" in capsys.readouterr().err


def test_the_help_needs_neither_opencv_nor_fsspec_nor_torch():
    code = (
        "import sys; from softshard.shards.cli import build_parser; build_parser().format_help()\n"
        "sys.exit(str({'cv2', 'fsspec', 'torch', 'nvidia', 'PIL', 'timm', 'ray', 'shtab'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stderr.strip() == "set()"


# --- completion ---


@pytest.fixture
def script(tmp_path, capsys):
    def write(shell):
        assert main(["completion", shell]) == 0
        file = tmp_path / f"softshard.{shell}"
        file.write_text(capsys.readouterr().out)
        return file

    return write


def complete_in_bash(file, *words, folder="/"):
    """What bash offers for the last word."""
    code = (
        f"source {shlex.quote(str(file))}\n"
        "found=$(complete -p softshard); found=${found##*-F }; found=${found%% *}\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, ('softshard', *words)))}); COMP_CWORD={len(words)}\n"
        f"$found softshard {shlex.quote(words[-1])} {shlex.quote(('softshard', *words)[-2])}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=240, cwd=folder, check=True
    )
    return {word.strip() for word in done.stdout.split()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_choices_and_folders(script, tmp_path):
    file = script("bash")
    assert {"pack", "stats", "doctor"} <= complete_in_bash(file, "")
    assert complete_in_bash(file, "tr") == {"tree", "train"}
    assert complete_in_bash(file, "tree", "b") == {"build"}
    assert complete_in_bash(file, "pack", "--shard") == {"--shard-bytes", "--shard-samples"}
    assert complete_in_bash(file, "pack", "--resize", "s") == {"squish", "short-edge"}
    (tmp_path / "shards-of-mine").mkdir()
    (tmp_path / "shards.txt").touch()
    assert complete_in_bash(file, "verify", "shards", folder=tmp_path) == {"shards-of-mine"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_commands_options_choices_and_folders(script, tmp_path):
    file = script("fish")
    (tmp_path / "shards-of-mine").mkdir()

    def offered(line):
        code = f"source {shlex.quote(str(file))}; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code], capture_output=True, text=True, timeout=240, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return {row.partition("\t")[0] for row in done.stdout.splitlines()}

    assert offered("softshard tr") == {"tree", "train"}
    assert offered("softshard tree b") == {"build"}
    assert offered("softshard pack --shard") == {"--shard-bytes", "--shard-samples"}
    assert offered("softshard pack --resize s") == {"squish", "short-edge"}
    assert offered("softshard verify sha") == {"shards-of-mine/"}


def test_a_shell_that_shtab_does_not_know_is_a_wrong_call(monkeypatch, capsys):
    import shtab

    monkeypatch.setattr(shtab, "SUPPORTED_SHELLS", ["bash", "zsh", "tcsh"])  # shtab 1.7
    assert main(["completion", "fish"]) == 2
    assert "found one for bash, zsh, tcsh. Run: pip install --upgrade shtab" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_its_script(script):
    given = f'eval "$(cat {shlex.quote(str(script("zsh")))})"'  # as the help says; shtab's script wants no `source`
    code = f"autoload -Uz compinit && compinit -u -D; {given}; print $_comps[softshard]"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "softshard" in done.stdout
