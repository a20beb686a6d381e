"""Fuzzes every parser for some minutes: `python -m fuzz --minutes 15` in the folder `tests`, or `make fuzz`.

Targets take turns of a second or so. A finding is written as `NAME-NUMBER.bin` with what happened; the same number
gives the same bytes again (`--target NAME --number NUMBER`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from .all_targets import all_targets
from .judge import judge

_TURN_S = 1.0
_SHOWN = 3  # findings of one kind


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="of the first inputs")
    parser.add_argument("--target", action="append", help="only this parser; may be given again")
    parser.add_argument("--number", type=int, help="only this input")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    args = parser.parse_args()
    targets = [target for target in all_targets() if not args.target or target.name in args.target]
    tried: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    end = time.monotonic() + 60 * args.minutes
    first = args.seed << 32
    numbers = {target.name: count(first) for target in targets}
    print(f"{len(targets)} parsers for {args.minutes:g} minutes, seed {args.seed}", flush=True)
    with TemporaryDirectory() as folder:
        while (args.number is not None and not tried) or (args.number is None and time.monotonic() < end):
            for target in targets:
                turn = time.monotonic() + _TURN_S
                while args.number is not None or time.monotonic() < turn:
                    number = next(numbers[target.name]) if args.number is None else args.number
                    data = target.example(number)
                    with TemporaryDirectory(dir=folder) as own:
                        problem = judge(target, data, Path(own))
                    tried[target.name] += 1
                    if problem:
                        kind = f"{target.name}: {problem[:60]}"
                        findings[kind] += 1
                        if findings[kind] <= _SHOWN:
                            args.out.mkdir(parents=True, exist_ok=True)
                            file = (
                                args.out / f"{target.name.replace(' ', '-').replace('/', '-')}-{number}.bin"
                            )
                            file.write_bytes(data)
                            print(f"{target.name}, number {number}, {file}: {problem}", flush=True)
                    if args.number is not None:
                        break
    for target in targets:
        print(f"{tried[target.name]:>12,}  {target.name}")
    print(f"{tried.total():>12,}  inputs, {findings.total():,} findings of {len(findings)} kinds")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
