"""softshard doctor: each thing that it looks for is broken for real, where that can be done."""

import _ctypes
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hanging_module import kill_above_what_hangs
from json_page import read_json
from waiting import LONG_S

from softshard.loaders.doctor import check_words, format_report, is_fine, report_json
from softshard.loaders.doctor_decode import run_checks
from softshard.loaders.doctor_finding import Finding
from softshard.loaders.doctor_packages import (
    Requirement,
    check_hidden,
    check_packages,
    check_twice,
    own_requirements,
)

ROOT = Path(__file__).parents[2]


NEEDED = [
    Requirement("numpy", "1.26", ""),
    Requirement("opencv-python-headless", "4.9", ""),
    Requirement("nvidia-dali-cuda120", "2.0", "loaders"),
    Requirement("torch", "2.6", "loaders"),
    Requirement("ruff", "0.17", "dev"),
]


def doctor(**environment):
    """Exit code and findings by name, of the command in a process of its own."""
    code = "import sys; from softshard.shards.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.stdout, done.stderr
    report = read_json("doctor", done.stdout)
    fine = report.pop("fine")
    findings = {one["name"]: Finding(**one) for part in report.values() for one in part}
    assert fine == (done.returncode == 0) == all(one.state != "wrong" for one in findings.values())
    return done.returncode, findings


def elsewhere(check, before=None, **environment):
    """Findings by name, of one check in a process of its own: what it looks at is the process's."""
    module, _, function = check.partition(".")
    code = (
        "import dataclasses, json\n"
        f"from softshard.loaders import {module}\n"
        f"print(json.dumps([dataclasses.asdict(one) for one in {module}.{function}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd="/",
        env={**os.environ, **environment},
        preexec_fn=before,
    )
    assert done.stdout, done.stderr
    return {one["name"]: Finding(**one) for one in json.loads(done.stdout)}


def states(findings):
    return [finding.state for finding in findings]


def test_decodes_for_real_and_looks_at_everything(tmp_path):
    (tmp_path / "tqdm.py").touch()  # something is wrong
    code, found = doctor(PYTHONPATH=str(tmp_path))
    assert code == 1
    assert found["tqdm"].state == "wrong"
    for name in ("simplejpeg", "OpenCV", "Pillow", "DALI on the processor", "numpy", "WordNet"):
        assert found[name].state == "fine", found[name]
    assert {"python", "cores", "memory", "open files", "cache", "temporary files", "GPU"} <= found.keys()
    assert all(one.fix for one in found.values() if one.state != "fine")


def test_limits_and_variables_of_the_process_are_seen():
    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 1000))

    variables = {"OMP_NUM_THREADS": "4096", "MALLOC_ARENA_MAX": "1"}
    found = elsewhere("doctor_machine.check_machine()", before=lower, **variables)
    assert found["open files"] == Finding("open files", "up to 200", "wrong", "ulimit -n 1000")
    assert found["OMP_NUM_THREADS"].state == found["MALLOC_ARENA_MAX"].state == "note"


def test_a_file_of_the_users_that_hides_a_package_is_named(tmp_path):
    assert elsewhere("doctor_packages.check_hidden()") == {}
    (tmp_path / "torch.py").touch()
    found = elsewhere("doctor_packages.check_hidden()", PYTHONPATH=str(tmp_path))
    assert found.keys() == {"torch"}
    assert found["torch"].state == "wrong"
    assert f"rename {tmp_path / 'torch.py'}" in found["torch"].fix


def test_a_clone_on_the_path_offers_its_folders_under_names_of_the_users(tmp_path):
    for name in ("loaders", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert elsewhere("doctor_packages.check_hidden()", PYTHONPATH=str(tmp_path)) == {}  # the user's own
    found = elsewhere("doctor_packages.check_hidden()", PYTHONPATH=str(ROOT))
    assert found["import loaders"].state == "note"
    assert f"take {ROOT} off PYTHONPATH" in found["import loaders"].fix


def test_two_builds_of_one_library_are_wrong(tmp_path):
    for name, version in (("opencv_python", "4.11.0.86"), ("nvidia_dali_cuda130", "2.4.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    check = "doctor_packages.check_twice(doctor_packages.installed_packages())"
    assert elsewhere(check) == {}
    found = elsewhere(check, PYTHONPATH=str(tmp_path))
    assert "opencv-python-headless and opencv-python are both installed" in found["cv2"].found
    assert "pip uninstall -y opencv-python-headless opencv-python" in found["cv2"].fix
    assert found["nvidia.dali"].state == "wrong"


def test_a_torch_that_cannot_be_imported_is_wrong_and_the_rest_is_tried(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {one.name: one for one in run_checks(["libraries", "DALI on the processor", "numba"])}
    assert found["DALI on the processor"].state == "wrong"
    assert "libcudart.so.12" in found["DALI on the processor"].found
    assert found["OpenCV"].state == found["numba"].state == "fine"


def test_a_decoder_that_takes_its_process_down_is_named(tmp_path, monkeypatch):
    (tmp_path / "simplejpeg.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, *rest = run_checks(["libraries", "numba"])
    assert (first.name, first.state) == ("libraries", "wrong")
    assert "died of SIGILL" in first.found
    assert rest[0].name == "numba"


def test_a_decoder_that_hangs_ends_with_the_doctor(tmp_path):
    """A container's engine kills a health check that takes too long, and asks again: what hangs would pile up."""
    code = "from softshard.loaders.doctor_decode import run_checks; run_checks(['libraries'])"
    kill_above_what_hangs(tmp_path, "simplejpeg", code)


def test_the_libzstd_of_the_system_is_tried():
    try:
        ctypes.CDLL("libzstd.so.1")
    except OSError:
        pytest.skip("needs libzstd.so.1")
    numba, libzstd = run_checks(["numba"])
    assert (numba.state, libzstd.state) == ("fine", "fine")
    assert re.fullmatch(r"1\.\d+\.\d+: expands label maps", libzstd.found)


def test_where_nothing_is_compiled_no_library_is_said_to_be_used(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    (numba,) = run_checks(["numba"])
    assert numba.state == "note"
    assert numba.found.endswith(": compiles nothing, as NUMBA_DISABLE_JIT says")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: path.touch(), "file too short"),
        (lambda path: path.symlink_to(Path(_ctypes.__file__)), "undefined symbol: ZSTD_"),
    ],
    ids=["damaged", "another library"],
)
def test_a_libzstd_that_cannot_be_used_is_a_note(tmp_path, monkeypatch, make, found):
    make(tmp_path / "libzstd.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    numba, libzstd = run_checks(["numba"])
    assert (numba.state, libzstd.state) == ("fine", "note")
    assert libzstd.found.startswith("cannot be used: ")
    assert found in libzstd.found
    assert "apt-get install libzstd1" in libzstd.fix


def test_the_report_of_a_person_and_of_a_program():
    report = {"machine": [Finding("cores", "2"), Finding("cache", "full", "wrong", "free some")]}
    assert format_report(report).splitlines() == [
        "machine",
        "  ok     cores: 2",
        "  WRONG  cache: full",
        "         -> free some",
        "1 wrong, 0 notes",
    ]
    assert not is_fine(report)
    assert report_json(report)["machine"][1]["fix"] == "free some"
    assert is_fine({"machine": [Finding("cores", "2", "note", "more")]})


def test_what_the_base_lacks_is_wrong_and_what_an_extra_lacks_a_note():
    found = {one.name: one for one in check_packages({"softshard": "0.1.0", "numpy": "2.0.1"}, NEEDED)}
    assert found["numpy"].state == "fine"
    assert found["opencv-python-headless"].fix == "pip install 'opencv-python-headless>=4.9'"
    assert found["opencv-python-headless"].state == "wrong"
    assert found["extra loaders"] == Finding(
        "extra loaders",
        "not installed: nvidia-dali-cuda120, torch",
        "note",
        "where it is wanted: pip install 'softshard[loaders]'",
    )
    assert "extra dev" not in found


@pytest.mark.parametrize(
    ("version", "state"),
    [("1.26", "fine"), ("1.26.0", "fine"), ("1.25.9", "wrong"), ("10.0", "fine"), ("2.0.0rc1", "fine")],
)
def test_a_package_that_is_too_old_is_wrong(version, state):
    found = check_packages({"numpy": version, "opencv-python-headless": "4.9.0.80"}, NEEDED)
    assert next(one for one in found if one.name == "numpy").state == state


def test_another_build_of_a_library_will_do():
    installed = {
        "numpy": "2.0",
        "opencv-python": "4.10",
        "nvidia-dali-cuda130": "2.4.0",
        "torch": "2.6.0+cu124",
    }
    assert set(states(check_packages(installed, NEEDED))) == {"fine"}
    assert check_twice(installed) == []


def test_requirements_are_read_from_the_metadata():
    lines = [
        "numpy>=1.26",
        'torch>=2.6; extra == "loaders"',
        "numba>=0.61; python_version < '3.15' and extra == 'loaders'",
        "old>=1; python_version < '3.0' and extra == 'loaders'",
        'softshard[loaders]; extra == "training"',
        'Timm>=1.0.15; extra == "training"',
        'softshard[training]; extra == "demo"',
    ]
    found = own_requirements(lines)
    assert Requirement("numpy", "1.26", "") in found
    assert {one.package for one in found if one.extra == "demo"} == {"torch", "numba", "timm"}
    assert {one.package for one in own_requirements() if not one.extra} >= {"numpy", "fsspec", "pillow"}


def test_sources_above_the_clone_that_hide_the_installed_package_are_named(tmp_path):
    clone = tmp_path / "softshard"
    places = {"softshard.loaders": clone / "loaders"}
    (found,) = check_hidden(places.get, lambda _: tmp_path / "site-packages")
    assert found.state == "wrong"
    assert f"pip install -e {clone}" in found.fix
    assert check_hidden(places.get, lambda _: tmp_path) == []


@pytest.mark.parametrize(
    ("origin", "hidden"),
    [
        ('{"url": "file:///clone", "dir_info": {"editable": true}}', False),  # as pip writes it
        ('{"url":"file:///clone","dir_info":{"editable":true}}', False),  # as uv does
        ('{"url":"file:///clone","dir_info":{"editable":false}}', True),
    ],
)
def test_a_clone_that_is_installed_hides_no_package(tmp_path, monkeypatch, origin, hidden):
    metadata = tmp_path / "softshard-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: softshard\nVersion: 0.1.0\n")
    (metadata / "direct_url.json").write_text(origin)
    monkeypatch.syspath_prepend(tmp_path)
    assert ("softshard" in {one.name for one in check_hidden()}) == hidden


def test_data_of_nltk_are_looked_for_where_it_looks(tmp_path, monkeypatch):
    nltk_data = pytest.importorskip("nltk.data")
    monkeypatch.setattr(nltk_data, "path", [str(tmp_path)])
    assert states(check_words(True)) == ["fine", "note"]
    (tmp_path / "taggers" / "averaged_perceptron_tagger_eng").mkdir(parents=True)
    assert states(check_words(True)) == ["fine", "fine"]
