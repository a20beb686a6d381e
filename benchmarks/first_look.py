"""What looking for damage inside of JPEGs costs (`Faults(check_images=True)`), and how much of it there is to find.

    cost     one look at a stored image, whole, in CPU time of the one thread that looks: swept over the stored side
    damage   of photographs at 224 pixels, damaged once at a random place of their entropy-coded data: the share that is
             refused, that decodes to other pixels without an error, and that decodes to the same

Run: python benchmarks/first_look.py [--photos DIR]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from harness import arguments, cpu_s, photographs, sweep, write_result

from softshard.loaders.first_look import _decode
from softshard.shards.images import ImageRecipe, store_image

SIDES = (224, 500)
COST_IMAGES = 40

Damage = Callable[[bytearray, int, np.random.Generator], None]  # of a JPEG, at a byte


def other_bytes(num: int, value: int | None) -> Damage:
    """So many bytes become a value, or noise."""

    def damage(jpeg: bytearray, at: int, rng: np.random.Generator) -> None:
        num_there = min(num, len(jpeg) - 2 - at)  # the end marker stays
        jpeg[at : at + num_there] = bytes([value] * num_there) if value is not None else rng.bytes(num_there)

    return damage


def other_bit(jpeg: bytearray, at: int, rng: np.random.Generator) -> None:
    jpeg[at] ^= 1 << int(rng.integers(8))


DAMAGES: dict[str, Damage] = {
    "512 bytes of noise": other_bytes(512, None),
    "512 zeros": other_bytes(512, 0),
    "64 zeros": other_bytes(64, 0),
    "one bit": other_bit,
}


def outcome(whole: bytes, damaged: bytes) -> str:
    try:
        _decode(memoryview(damaged))
    except ValueError:
        return "refused"
    pixels = [simplejpeg.decode_jpeg(jpeg, "RGB") for jpeg in (whole, damaged)]
    return "same" if np.array_equal(*pixels) else "other_pixels"


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    photos = list(photographs(args.photos))

    def stored(side: int, num: int | None = None) -> list[bytes]:
        recipe = ImageRecipe(size=side, upscale=True)
        return [store_image(photo, recipe).jpeg for photo in photos[:num]]

    def cost(pixels: int) -> dict[str, Any]:
        jpegs = [memoryview(jpeg) for jpeg in stored(pixels, COST_IMAGES)]
        one_s = cpu_s(lambda: [_decode(jpeg) for jpeg in jpegs], args.repeats) / len(jpegs)
        return {"ms_an_image": round(1e3 * one_s, 3), "images_per_s_at_most": round(1 / one_s)}

    whole, rng = stored(SIDES[0]), np.random.default_rng(0)

    def found(damage: str) -> dict[str, Any]:
        outcomes = []
        for jpeg in whole:
            damaged = bytearray(jpeg)
            DAMAGES[damage](damaged, int(rng.integers(jpeg.index(b"\xff\xda") + 14, len(jpeg) - 2)), rng)
            outcomes.append(outcome(jpeg, bytes(damaged)))
        shares = {name: outcomes.count(name) / len(outcomes) for name in ("refused", "other_pixels", "same")}
        return {"images": len(outcomes)} | {name: round(share, 3) for name, share in shares.items()}

    swept = {"pixels": list(SIDES), "damage": list(DAMAGES)}
    write_result(
        args.out,
        benchmark="first_look",
        job=f"{COST_IMAGES} photographs squished, looked at; {len(photos)} at {SIDES[0]} pixels damaged once each",
        swept=swept,
        rows=sweep({"pixels": SIDES}, cost) + sweep({"damage": list(DAMAGES)}, found),
        repeats=args.repeats,
        photographs="given folder" if args.photos else "scikit-image and scikit-learn",
    )


if __name__ == "__main__":
    main()
