"""What loaders do with bad data: some forty faults, one at a time, each loader in a process of its own with a timeout.

256 images of 96 pixels in four shards, one fault in a copy of them. The job: every sample once, decoded whole.

    softshard    Loader, faults as they are by default (targets="relabel"); gives up after 20 s without a batch
    webdataset   WebDataset, decode("pilrgb"), WebLoader with one worker, the default handler (the first error is raised)
    wds, warn    the same with handler=warn_and_continue everywhere; run where the default handler ends in an error
    DALI         fn.readers.webdataset with the .idx files, decoders.image

The faults, by what they are in:

    image       zeros, text, nothing, cut short, bad Huffman table, no quantisation table, 65,535 x 65,535 pixels in the
                header, progressive, lossless and 12-bit headers, CMYK, a PNG under `jpg`, wrong entropy-coded data
    label       class not a number, empty, out of range; level vector of floats, out of range; label map with a wrong
                checksum, NaN, a hostile size, another shape  (webdataset and DALI do not read maps and vectors)
    tar         somebody else's, without a manifest: no `jpg`, no `cls`, a member twice
    shard       cut inside a member, cut between two, missing, another one in its place, empty, index missing, another
                shard's index, manifest missing, manifest damaged, cut while it is in use
    storage     a shard that never answers (a pipe without a writer); a web server that breaks every answer once, always,
                or never answers; no room on the disk of the cache; a worker process killed

What is written down: samples served, good ones lost, samples served twice, served with other pixels or another class than
before the fault, and how the process ended: by itself, by an error (which names the shard? the sample?), by a signal, not
at all.

Run: python benchmarks/faults.py [--only NAME ...]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fault_list import (
    FAULTS,
    IN_SAMPLES,
    IN_SHARDS,
    IN_TARS,
    ON_SERVERS,
    SAMPLES,
    SHARD_SAMPLES,
    SIZE,
    TIMEOUT_S,
    VICTIM,
    prepare,
)
from harness import arguments, make_data_set, write_result
from PIL import Image

from softshard.shards import Manifest, ReshardOptions, read_shard, reshard

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import spoiling

from servers.web import SpoiledServer

CONTEND = Path(__file__).with_name("fault_contenders.py")
NOT_READ = ("hier.npy", "lmap")  # by webdataset and DALI
OTHER_PIXELS = 6.0  # mean difference of 0..255 from the pixels before the fault
CONTENDERS = ("softshard", "webdataset", "wds, warn", "DALI")


def means_of(jpeg: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float32)
    return pixels.reshape(8, 12, 8, 12, 3).mean((1, 3)).ravel()


def judge(
    fault: str, lines: list[str], code: int | None, stderr: str, before: dict[str, Any]
) -> dict[str, Any]:
    """One run in figures and in words."""
    victim = before["keys"][VICTIM]
    served, wrong, other_class = Counter(), set(), set()
    for line in lines:
        try:
            key, label, means = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        served[key] += 1
        if key in before["means"]:
            if means is not None and np.abs(np.array(means) - before["means"][key]).mean() > OTHER_PIXELS:
                wrong.add(key)
            if label != before["classes"][key]:
                other_class.add(key)
    # A class that is out of range is the victim's as it stands: whoever serves it serves it wrong.
    in_sample = fault in IN_SAMPLES or fault in IN_TARS
    good = set(before["keys"]) - ({victim} if in_sample else set())
    lost, twice = len(good - served.keys()), sum(count - 1 for count in served.values())
    error = next((line for line in reversed(stderr.splitlines()) if line.strip()), "")[-600:]
    row: dict[str, Any] = {
        "served": len(served),
        "good_lost": lost,
        "twice": twice,
        "wrong_pixels": len(wrong),
        "wrong_class": len(other_class),
        "exit": code,
        "error": error if code else "",
    }
    said = stderr if code else ""
    if code is None:
        row["ended"] = "hangs"
    elif code < 0:
        row["ended"] = f"dies of {signal.Signals(-code).name}"
    elif code:
        sample = victim in said and in_sample
        shard = re.search(r"set-00000\d|manifest.json", said) is not None
        named = " and ".join(word for word, found in (("shard", shard), ("sample", sample)) if found)
        row["ended"] = f"error, names {named or 'neither shard nor sample'}"
    else:
        row["ended"] = "serves"
    return row | {"outcome": in_words(row, victim in served and in_sample)}


def in_words(row: dict[str, Any], served_victim: bool) -> str:
    if row["ended"] != "serves":
        return f"{row['ended']}, {row['served']} served"
    found = []
    if row["good_lost"]:
        found.append(f"loses {row['good_lost']} good")
    if row["twice"]:
        found.append(f"{row['twice']} twice")
    if row["wrong_pixels"]:
        found.append(f"{row['wrong_pixels']} with wrong pixels")
    if row["wrong_class"]:
        found.append(f"{row['wrong_class']} with a wrong class")
    if not found:
        found.append("all served" if served_victim or row["served"] == SAMPLES else "all others served")
    return ", ".join(found)


def skip(contender: str, fault: str) -> str | None:
    """Why a contender is not run."""
    if contender == "softshard":
        return "has no workers" if "worker killed" in fault else None
    if fault in IN_SAMPLES and IN_SAMPLES[fault][0] in NOT_READ:
        return "does not read it"
    if contender != "DALI" and ("manifest" in fault or "index" in fault):
        return "does not read it"
    if contender == "DALI":
        if "manifest" in fault:
            return "does not read it"
        if "worker killed" in fault:
            return "has no workers"
        if fault in ON_SERVERS:
            return "reads local files only"
    return None


def run(contender: str, fault: str, base: Path, before: dict[str, Any]) -> dict[str, Any]:
    if reason := skip(contender, fault):
        return {"outcome": reason}
    work = Path(tempfile.mkdtemp(prefix="softshard-faults-"))
    server = None
    try:
        folder = work / "data" / "set"
        prepare(fault, base, folder)
        known = {}
        for path in folder.glob("*.tar"):
            if path.is_file() and fault not in IN_SHARDS:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if member.name.endswith(".jpg"):
                            data = tar.extractfile(member).read()  # type: ignore[union-attr]
                            known[hashlib.sha256(data).hexdigest()] = member.name[:-4]
        (work / "known.json").write_text(json.dumps(before["known"] | known))
        place = str(folder)
        if fault in ON_SERVERS:
            server = SpoiledServer(work / "data", ON_SERVERS[fault]())
            place = f"{server.url}/set"
        command = [sys.executable, str(CONTEND), contender, place, fault, str(work)]
        with open(work / "out", "w+") as out, open(work / "err", "w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                code = None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers, too
            process.wait()
            out.seek(0), err.seek(0)
            return judge(fault, out.readlines(), code, err.read(), before)
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="faults whose names contain one of these")
    args = parser.parse_args()
    source = make_data_set(args.data, args.photos, size=SIZE, samples=SAMPLES)
    rows = []
    with tempfile.TemporaryDirectory(prefix="softshard-faults-") as folder:
        base = Path(folder) / "set"
        reshard([source], base, ReshardOptions(shard_samples=SHARD_SAMPLES, name="set"))
        # The harness repeats its photographs: a comment in each JPEG makes them distinct.
        number = iter(range(SAMPLES))
        comment = {
            i: {"jpg": lambda data: data[:2] + b"\xff\xfe\x00\x06%04d" % next(number) + data[2:]}
            for i in range(SAMPLES)
        }
        spoiling.rewrite(base, comment)
        samples = [s for record in Manifest.load(base).shards for s in read_shard(base / record.name)]
        before = {
            "keys": [sample.key for sample in samples],
            "classes": {sample.key: int(sample.parts["cls"]) for sample in samples},
            "means": {sample.key: means_of(sample.parts["jpg"]) for sample in samples},
            "known": {hashlib.sha256(sample.parts["jpg"]).hexdigest(): sample.key for sample in samples},
        }
        for fault in FAULTS:
            if not any(word in fault for word in args.only):
                continue
            outcomes = {}
            for contender in CONTENDERS:
                if contender == "wds, warn" and "error" not in outcomes["webdataset"]:
                    continue
                row = run(contender, fault, base, before)
                outcomes[contender] = row["outcome"]
                rows.append({"fault": fault, "contender": contender, **row})
            print(fault, outcomes, flush=True)
    write_result(
        args.out,
        benchmark="faults",
        job=f"{SAMPLES} samples of {SIZE} pixels in {SAMPLES // SHARD_SAMPLES} shards, each once",
        swept={"fault": FAULTS, "contender": CONTENDERS},
        rows=rows,
    )


if __name__ == "__main__":
    main()
