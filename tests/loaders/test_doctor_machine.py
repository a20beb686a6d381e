"""softshard doctor: what it makes of a machine, from the files and numbers that the system gives."""

import resource
from pathlib import Path

import pytest

from softshard.loaders.doctor_decode import check_driver, parse_smi
from softshard.loaders.doctor_finding import Finding
from softshard.loaders.doctor_machine import (
    check_cores,
    check_folder,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_system,
    check_variables,
    filesystem_of,
    memory_limit,
)
from softshard.shards.cores import cores_to_run_on, cpu_quota, own_cgroups, usable_cores

# From `nvidia-smi -q`; a GPU without an engine says N/A.
SMI = """
Driver Version                            : 570.86.15
CUDA Version                              : 12.8

Attached GPUs                             : 2
GPU 00000000:01:00.0
    Product Name                          : NVIDIA H100 80GB HBM3
    Utilization
        GPU                               : 0 %
        Encoder                           : N/A
        Decoder                           : 0 %
        JPEG                              : 0 %
GPU 00000000:02:00.0
    Product Name                          : Tesla P100
    Utilization
        GPU                               : 0 %
        Decoder                           : 0 %
        JPEG                              : N/A
"""


@pytest.mark.parametrize(
    ("system", "libc", "state"), [("linux", "glibc", "fine"), ("linux", "", "wrong"), ("darwin", "", "wrong")]
)
def test_wheels_need_linux_and_glibc(system, libc, state):
    assert check_system(system, libc, "x86_64").state == state


def test_a_quota_below_the_cores_is_a_note_with_the_number_of_threads():
    assert check_cores(64, 64, None).state == check_cores(4, 64, 4.0).state == "fine"
    found = check_cores(64, 64, 3.5)
    assert found.state == "note"
    assert "OMP_NUM_THREADS=4:" in found.fix
    assert "OMP_NUM_THREADS=1:" in check_cores(2, 2, 0.5).fix


def test_limits_are_read_from_both_versions_of_cgroups(tmp_path):
    two = tmp_path / "two"
    (two / "pod").mkdir(parents=True)
    (two / "pod" / "cpu.max").write_text("max 100000\n")
    (two / "pod" / "memory.max").write_text("1073741824\n")
    (two / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cgroup").write_text("0::/pod\n")
    groups = own_cgroups(str(tmp_path / "cgroup"), str(two))
    assert cpu_quota(groups) == 1.5
    assert usable_cores(groups) == min(2, cores_to_run_on())
    assert memory_limit(groups) == 2**30

    one = tmp_path / "one"
    for name, file, text in (
        ("cpu", "cpu.cfs_quota_us", "400000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("memory", "memory.limit_in_bytes", "5"),
    ):
        (one / name).mkdir(parents=True, exist_ok=True)
        (one / name / file).write_text(text)
    (tmp_path / "cgroup").write_text("4:memory:/docker/ab\n1:cpu,cpuacct:/docker/ab\n")
    groups = own_cgroups(str(tmp_path / "cgroup"), str(one))
    assert (cpu_quota(groups), memory_limit(groups)) == (4.0, 5)
    assert own_cgroups(str(tmp_path / "none")) == []
    (one / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(groups) is None


def test_a_container_with_little_memory_is_a_note():
    assert check_memory(64 * 2**30, None).found == "64.0 GiB"
    found = check_memory(64 * 2**30, 2**30)
    assert (found.state, found.found) == ("note", "1.0 GiB, the container's limit (the machine has 64.0)")
    assert check_memory(64 * 2**30, 2**62).state == "fine"  # version 1's word for no limit


def test_open_files_between_few_and_enough_are_a_note():
    assert check_open_files(1024, 4096).state == "fine"
    assert check_open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).found == "no limit"
    assert check_open_files(512, 100_000) == Finding("open files", "up to 512", "note", "ulimit -n 4096")
    assert "administrator" in check_open_files(512, 512).fix


def test_missing_shared_memory_is_a_note(tmp_path):
    assert check_shared_memory(str(tmp_path / "none")).state == "note"


def test_folders_that_cannot_be_written_or_are_full_are_wrong(tmp_path):
    assert check_folder("temporary files", tmp_path / "not yet" / "there", "fix").state == "fine"
    (tmp_path / "file").touch()
    assert check_folder("cache", tmp_path / "file" / "cache", "fix").found.endswith("cannot be written")
    assert check_folder("cache", Path("/proc/self"), "fix").state == "wrong"  # nothing free there
    assert filesystem_of(Path("/proc/self")) == "proc"


def test_a_cache_on_a_network_file_system_is_told(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert filesystem_of(tmp_path / "cache", str(mounts)) == "nfs4"
    assert filesystem_of(Path("/"), str(mounts)) == "ext4"


def test_variables_that_slow_things_down_are_notes():
    assert [one.state for one in check_variables({}, 8)] == ["fine"]
    (fine,) = check_variables({"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}, 8)
    assert fine.state == "fine"
    assert check_variables({"OMP_NUM_THREADS": "1"}, 8)[0].fix == "unset OMP_NUM_THREADS"
    assert "more than the 8 cores" in check_variables({"OMP_NUM_THREADS": "64"}, 8)[0].found


def test_the_driver_tells_which_engines_decode():
    assert parse_smi(SMI) == {
        "NVIDIA driver": "570.86.15, for CUDA up to 12.8",
        "decoder engines of cuda:0": "JPEG: yes, video (NVDEC): yes",
        "decoder engines of cuda:1": "JPEG: no, video (NVDEC): yes",
    }


def test_an_nvidia_smi_that_fails_is_wrong(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    (found,) = check_driver(str(smi))
    assert found.state == "wrong"
    assert "9" in found.found
