"""Run by `softshard doctor` in a process of its own: decodes for real, since a decoder that fails may take the process down.

    python -m softshard.loaders.doctor_probe PARENT CHECK...

PARENT is the number of the process that waits for it: it ends with that one. Writes a line of JSON when a check begins
({"begin": its name}) and one for each finding.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from .doctor_finding import NOTE, Finding
from .peer_process import end_with

_SIDE = 64  # pixels of the picture that is decoded


def probe_libraries() -> Iterator[Finding]:
    """The libraries that the sharder decodes, resizes and encodes with: a picture there and back."""
    import cv2
    import numpy as np
    import simplejpeg
    from PIL import Image, features

    picture = _picture()
    stored = simplejpeg.encode_jpeg(picture, quality=95, colorspace="RGB")
    _close(simplejpeg.decode_jpeg(stored, "RGB"), picture)
    yield Finding("simplejpeg", f"{version('simplejpeg')}: encodes and decodes")
    decoded = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("expected a picture from OpenCV's JPEG decoder, found none")
    _close(decoded[:, :, ::-1], picture)
    _close(cv2.resize(picture, (_SIDE // 2, _SIDE // 2), interpolation=cv2.INTER_AREA), picture[::2, ::2])
    yield Finding("OpenCV", f"{cv2.__version__}: decodes and resizes")
    with Image.open(io.BytesIO(stored)) as image:
        _close(np.asarray(image.convert("RGB")), picture)
    turbo = features.version("libjpeg_turbo")
    yield Finding("Pillow", f"{version('pillow')}: decodes" + (f", libjpeg-turbo {turbo}" if turbo else ""))


def probe_cpu() -> Iterator[Finding]:
    """One batch of one picture through the loader's own CPU path."""
    yield Finding("DALI on the processor", _decode_with_dali("cpu"))


def probe_numba() -> Iterator[Finding]:
    """Whether label maps will be pooled by compiled loops, and expanded by them."""
    try:
        import numba
    except ImportError as error:
        fix = "pip install --upgrade numba; without it numpy pools, three times as slowly"
        yield Finding("numba", f"cannot be imported: {error}", NOTE, fix)
    else:
        if numba.config.DISABLE_JIT:  # pyright: ignore
            yield Finding("numba", f"{numba.__version__}: compiles nothing, as NUMBA_DISABLE_JIT says", NOTE)
        else:
            yield Finding("numba", f"{numba.__version__}: compiles label pooling")
            yield _libzstd()


def _libzstd() -> Finding:
    """The system's, which only compiled loops call."""
    try:
        from .expand_kernel import library_version

        return Finding("libzstd", f"{library_version()}: expands label maps")
    except Exception as error:  # there is none; it is another library, or too old; or numba is another one
        fix = "apt-get install libzstd1 (dnf install libzstd); without it label maps take a tenth longer to pool"
        return Finding("libzstd", f"cannot be used: {error}", NOTE, fix)


def probe_gpu() -> Iterator[Finding]:
    """The GPUs that torch can use, and one picture through the loader's own GPU path."""
    import torch

    if not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} is built without CUDA")
        )
        fix = "fine without one. With one: see that nvidia-smi lists it, and docker run --gpus all in a container"
        yield Finding("GPU", f"none that torch can use; {built}", NOTE, fix)
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Finding(
            f"cuda:{index}",
            f"{gpu.name}, {gpu.total_memory / 1024**3:.0f} GiB, compute capability {gpu.major}.{gpu.minor}, CUDA "
            f"{torch.version.cuda}",
        )
    yield Finding("DALI on the GPU", _decode_with_dali("cuda"))


def _decode_with_dali(device: str) -> str:
    import numpy as np
    import simplejpeg

    from .decode import MEAN, STD, create_decoder, usable_device

    picture = _picture()
    jpeg = np.frombuffer(simplejpeg.encode_jpeg(picture, quality=95, colorspace="RGB"), np.uint8)
    decoder = create_decoder(
        usable_device(device),
        pin_memory=False,
        batch_size=1,
        size=_SIDE,
        dtype="uint8",
        mean=MEAN,
        std=STD,
        num_threads=1,
    )
    try:
        decoder.submit([jpeg], np.array([[0, 0, _SIDE, _SIDE]], np.int32), np.zeros(1, bool))
        images = decoder.take(np.zeros(1, np.int64), 1)
        _close(images[0].permute(1, 2, 0).cpu().numpy(), picture)
    finally:
        decoder.close()
    from nvidia.dali import __version__

    return f"{__version__}: decodes"


def _picture() -> Any:
    """Colours that change slowly, uint8 [64, 64, 3]."""
    import numpy as np

    ramp = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    across, down = np.meshgrid(ramp, ramp)
    return np.ascontiguousarray(np.stack([across, down, 255 - across], axis=-1))


def _close(found: Any, expected: Any) -> None:
    """Decoders differ by a few steps of 255; a wrong order of channels or rows by many.

    Raises:
        RuntimeError: the pictures differ.
    """
    difference = abs(found.astype(float) - expected).mean()
    if difference > 4:
        raise RuntimeError(f"expected the picture that was encoded, found one {difference:.0f} of 255 away")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "libraries": probe_libraries,
    "DALI on the processor": probe_cpu,
    "numba": probe_numba,
    "GPU": probe_gpu,
}

if __name__ == "__main__":
    end_with(int(sys.argv[1]))  # as when a health check takes too long
    for name in sys.argv[2:]:
        print(json.dumps({"begin": name}), flush=True)
        for finding in CHECKS[name]():
            print(json.dumps(dataclasses.asdict(finding)), flush=True)
