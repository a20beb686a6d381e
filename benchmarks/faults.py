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

# Peers are nobody's dependency: they may be missing where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, arguments, make_data_set, write_result

from softshard.shards import Manifest, ReshardOptions, read_shard, reshard

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import spoiling

from servers.web import SpoiledServer

SIZE, SAMPLES, SHARD_SAMPLES, BATCH = 96, 256, 64, 16
VICTIM = 100  # in the second shard
SHARD = "set-000001.tar"
TIMEOUT_S = 45
GIVE_UP_S = 20
OTHER_PIXELS = 6.0  # mean difference of 0..255 from the pixels before the fault
CONTENDERS = ("softshard", "webdataset", "wds, warn", "DALI")

Change = Callable[[bytes], bytes]


def png(jpeg: bytes) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(out, "PNG")
    return out.getvalue()


# In the victim's components; index, hash and manifest follow.
IN_SAMPLES: dict[str, tuple[str, Change]] = {
    "image: zeros": ("jpg", lambda data: bytes(len(data))),
    "image: text": ("jpg", lambda data: b"<html>not found</html>"),
    "image: nothing": ("jpg", lambda data: b""),
    "image: cut short": ("jpg", spoiling.cut_in_the_middle),
    "image: bad Huffman table": ("jpg", spoiling.broken_huffman_table),
    "image: no quantisation table": ("jpg", spoiling.without_segment(0xDB)),
    "image: 65,535 pixels a side": ("jpg", spoiling.with_frame(hw=(65535, 65535))),
    "image: progressive header": ("jpg", spoiling.with_frame(marker=0xC2)),
    "image: lossless header": ("jpg", spoiling.with_frame(marker=0xC3)),
    "image: 12-bit header": ("jpg", spoiling.with_frame(precision=12)),
    "image: CMYK": ("jpg", spoiling.cmyk),
    "image: PNG under jpg": ("jpg", png),
    "image: wrong entropy data": ("jpg", spoiling.noise_in_the_pixels),
    "label: class not a number": ("cls", lambda data: b"cat"),
    "label: class empty": ("cls", lambda data: b""),
    "label: class out of range": ("cls", lambda data: b"99999"),
    "label: levels of floats": ("hier.npy", lambda data: data.replace(b"<i2", b"<f2")),
    "label: levels out of range": ("hier.npy", spoiling.levels_out_of_range),
    "label: map checksum": ("lmap", lambda data: data[:-1] + bytes([data[-1] ^ 255])),
    "label: map with NaN": ("lmap", spoiling.map_with_nan),
    "label: map of a hostile size": ("lmap", spoiling.map_of_hostile_size),
    "label: map of another shape": ("lmap", spoiling.map_of_another_shape),
}
NOT_READ = ("hier.npy", "lmap")  # by webdataset and DALI


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def as_plain_tars(folder: Path, change: Callable[[str], int]) -> None:
    """Somebody else's tars: jpg and cls alone, no index, no manifest; `change` says how often a victim's member comes."""
    number = 0
    for record in Manifest.load(folder).shards:
        members = []
        for sample in list(read_shard(folder / record.name)):
            for suffix in ("jpg", "cls"):
                times = change(suffix) if number == VICTIM else 1
                members += [(f"{sample.key}.{suffix}", sample.parts[suffix])] * times
            number += 1
        write_tar(folder / record.name, members)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".tar":
            path.unlink()


IN_TARS: dict[str, Callable[[str], int]] = {
    "tar: sample without jpg": lambda suffix: 0 if suffix == "jpg" else 1,
    "tar: sample without cls": lambda suffix: 0 if suffix == "cls" else 1,
    "tar: member twice": lambda suffix: 2 if suffix == "jpg" else 1,
}


def cut(folder: Path, *, at_boundary: bool) -> None:
    path = folder / SHARD
    lines = path.with_suffix(".idx").read_text().splitlines()
    offset = int(lines[1 + 32].split()[1])  # of the first component of the shard's 33rd sample
    os.truncate(path, offset - 512 if at_boundary else offset + 700)


def never_answers(folder: Path) -> None:
    for path in (folder / SHARD, (folder / SHARD).with_suffix(".idx")):
        path.unlink()
        os.mkfifo(path)


def damage_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-200])


def another_index(folder: Path) -> None:
    shutil.copy(folder / "set-000002.idx", folder / "set-000001.idx")


def another_shard(folder: Path) -> None:
    """Of the same length: what lies behind its end is zeros, or cut."""
    size = (folder / SHARD).stat().st_size
    shutil.copy(folder / "set-000002.tar", folder / SHARD)
    os.truncate(folder / SHARD, size)


IN_SHARDS: dict[str, Callable[[Path], object]] = {
    "shard: cut inside a member": lambda folder: cut(folder, at_boundary=False),
    "shard: cut between two members": lambda folder: cut(folder, at_boundary=True),
    "shard: missing": lambda folder: (folder / SHARD).unlink(),
    "shard: another in its place": another_shard,
    "shard: empty": lambda folder: os.truncate(folder / SHARD, 0),
    "shard: index missing": lambda folder: (folder / "set-000001.idx").unlink(),
    "shard: another shard's index": another_index,
    "shard: manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "shard: manifest damaged": damage_manifest,
    "shard: cut while in use": lambda folder: None,
    "storage: never answers": never_answers,
    "storage: a worker killed": lambda folder: None,
}


def break_once() -> Callable[[str, int, bytes], bytes | None]:
    seen: set[tuple[str, int]] = set()

    def spoil(name: str, start: int, answer: bytes) -> bytes | None:
        if not name.endswith(".tar") or (name, start) in seen:
            return answer
        seen.add((name, start))
        return None

    return spoil


def answer_never(name: str, start: int, answer: bytes) -> bytes | None:
    if name == SHARD:
        threading.Event().wait(2 * TIMEOUT_S)
    return answer


ON_SERVERS: dict[str, Callable[[], Any]] = {
    "storage: web server, every answer broken once": break_once,
    "storage: web server, a shard always broken": lambda: (
        lambda name, start, answer: None if name == SHARD else answer
    ),
    "storage: web server, a shard never comes": lambda: answer_never,
    "storage: no room for the cache": lambda: lambda name, start, answer: answer,
}
FAULTS = (*IN_SAMPLES, *IN_TARS, *IN_SHARDS, *ON_SERVERS)


# ---- The contenders: run in a process of their own, a line of JSON for every sample


def say(key: str, pixels: np.ndarray | None, label: int | None) -> None:
    means = None if pixels is None else np.asarray(pixels, np.float32).reshape(8, 12, 8, 12, 3).mean((1, 3))
    print(json.dumps([key, label, None if means is None else means.round(1).ravel().tolist()]), flush=True)


def names_of(folder: str) -> list[str]:
    return [f"{folder}/set-{number:06d}.tar" for number in range(SAMPLES // SHARD_SAMPLES)]


def run_softshard(folder: str, fault: str, work: str) -> None:
    from softshard.loaders import Augment, Cache, Faults, Loader

    with Loader(
        folder,
        batch_size=BATCH,
        targets="none" if fault in IN_TARS or "manifest missing" in fault else "relabel",
        augment=Augment(size=SIZE, scale=None, flip=False),
        dtype="uint8",
        shuffle=False,
        last_batch="pad",
        num_threads=2,
        prefetch=1,
        cache=Cache(f"{work}/cache", deadline_s=8),
        faults=Faults(give_up_s=GIVE_UP_S),
    ) as loader:
        for number, batch in enumerate(loader):
            pixels = batch.images.permute(0, 2, 3, 1).numpy()
            for i, (key, valid) in enumerate(zip(batch.keys, batch.valid.tolist(), strict=True)):
                if valid:
                    say(key, pixels[i], int(batch.classes[i]))
            in_use(folder, fault, number)


def in_use(folder: str, fault: str, number: int) -> None:
    if fault == "shard: cut while in use" and number == 0:
        for name in names_of(folder):
            os.truncate(name, 4096)


def as_array(sample: dict[str, Any]) -> dict[str, Any]:
    image = np.asarray(sample["jpg"])
    if image.shape != (SIZE, SIZE, 3):
        raise ValueError(f"expected {SIZE} x {SIZE} pixels, found {image.shape}")
    return {"__key__": sample["__key__"], "jpg": image, "cls": sample["cls"]}


def run_webdataset(folder: str, fault: str, work: str, warn: bool) -> None:
    import multiprocessing

    import webdataset as wds

    handler = wds.warn_and_continue if warn else wds.reraise_exception
    urls = names_of(folder)
    if folder.startswith("http"):
        urls = [f"pipe:curl -s -f -L {url}" for url in urls]
    cached = {"cache_dir": f"{work}/wds"} if "cache" in fault else {}
    if cached:
        Path(f"{work}/wds").mkdir()
    data = (
        wds.WebDataset(urls, shardshuffle=False, handler=handler, **cached)
        .decode("pilrgb", handler=handler)
        .map(as_array, handler=handler)
        .to_tuple("__key__", "jpg", "cls", handler=handler)
        .batched(BATCH, partial=True, collation_fn=list)
    )
    for number, batch in enumerate(wds.WebLoader(data, batch_size=None, num_workers=1)):
        for key, pixels, label in batch:
            say(key, pixels, int(label))
        in_use(folder, fault, number)
        if "worker killed" in fault and not number:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def run_dali(folder: str, fault: str, work: str, known: dict[str, str]) -> None:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    urls = names_of(folder)
    indexes = None if fault in IN_TARS else [name[:-3] + "idx" for name in urls]
    pipe = Pipeline(batch_size=BATCH, num_threads=2, device_id=None, prefetch_queue_depth=1)
    with pipe:
        jpegs, classes = fn.readers.webdataset(
            paths=urls,
            index_paths=indexes,
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            pad_last_batch=True,
            name="reader",
        )
        pipe.set_outputs(jpegs, fn.decoders.image(jpegs, output_type=types.RGB), classes)
    pipe.build()
    left = pipe.epoch_size("reader")
    number = 0
    while left > 0:
        jpegs, images, classes = pipe.run()
        for i in range(min(BATCH, left)):
            jpeg = np.asarray(jpegs[i]).tobytes()
            key = known.get(hashlib.sha256(jpeg).hexdigest(), "?")
            say(key, np.asarray(images[i]), int(np.asarray(classes[i]).tobytes().decode()))
        left -= BATCH
        in_use(folder, fault, number)
        number += 1


def contend(contender: str, folder: str, fault: str, work: str) -> None:
    """In a process of its own."""
    if "no room" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))  # EFBIG, which Python turns into an error
    if contender == "softshard":
        run_softshard(folder, fault, work)
    elif contender == "DALI":
        run_dali(folder, fault, work, json.loads(Path(work, "known.json").read_text()))
    else:
        run_webdataset(folder, fault, work, contender.endswith("warn"))


# ---- What came of it


def means_of(jpeg: bytes) -> np.ndarray:
    from PIL import Image

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


def prepare(fault: str, base: Path, folder: Path) -> None:
    shutil.copytree(base, folder)
    if fault in IN_SAMPLES:
        suffix, change = IN_SAMPLES[fault]
        spoiling.rewrite(folder, {VICTIM: {suffix: change}})
    elif fault in IN_TARS:
        as_plain_tars(folder, IN_TARS[fault])
    elif fault in IN_SHARDS:
        IN_SHARDS[fault](folder)


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
        command = [sys.executable, __file__, "--contend", contender, place, fault, str(work)]
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
    if sys.argv[1:2] == ["--contend"]:
        contend(*sys.argv[2:6])
        return
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
        args.out or RESULTS / "faults.json",
        benchmark="faults",
        job=f"{SAMPLES} samples of {SIZE} pixels in {SAMPLES // SHARD_SAMPLES} shards, each once",
        swept={"fault": FAULTS, "contender": CONTENDERS},
        rows=rows,
    )


if __name__ == "__main__":
    main()
