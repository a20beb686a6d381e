"""The pictures on the page of `softshard inspect`: the stored image, its crops and their targets, its label map.

What is drawn on photographs has the same colours in light and dark, with a dark rim, and a number or letter beside the
colour. Shape letters: K classes kept per cell, P Q label-map rows and columns.
"""

from __future__ import annotations

import string

import cv2
import numpy as np

from ..shards.errors import ImageError
from ..shards.figures import Drawing, Figure
from ..shards.images import resample
from ..shards.jpeg import read_jpeg_header
from ..shards.map_pictures import overlay_class, score_range
from ..shards.pictures import VIRIDIS, data_uri, image_data_uri
from ..shards.text_limits import shortened
from ..shards.tree_build import shown_name
from .inspect_views import CropView, Inspection, MapView, SampleView

MAX_NAME, MAX_TITLE = 80, 300  # characters of a class's name: beside a picture, and where it stands alone
MAP_CLASSES = 5  # overlays of one label map, at most
MIN_MAP_SHARE = 0.01  # of the map's own target; overlays of classes below it are left out after the third
FEW_MAP_CLASSES = 3
MAX_GRID_CELLS = 4096
DRAWN_PX = 320  # longest side of what is drawn, in the units of its drawing
# Okabe and Ito's colours without the dark ones: told apart with any kind of colour vision.
COLORS = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#009e73", "#d55e00")
_LETTERS = string.ascii_uppercase[:MAP_CLASSES]


class ClassNames:
    """How the page calls classes: by name, and in words where the name is WordNet's.

    Args:
        found: whose data set has the classes.
    """

    def __init__(self, found: Inspection) -> None:
        names, tree = found.manifest.class_names, found.tree
        same = tree is not None and tree.classes == names
        self._shown = tree.names if tree is not None and same else tuple(map(shown_name, names))
        self._names = names
        self.tree_fits = same  # its classes are the data set's
        maps = found.manifest.label_maps
        self.tags = found.tags
        self._map_fits = maps is not None and maps.num_classes == len(names)

    def title(self, class_index: int) -> str:
        """Name and words, cut where they are long."""
        return shortened(self._title(class_index), MAX_TITLE)

    def short(self, class_index: int) -> str:
        """Words, or the name, cut where they are long."""
        return shortened(self._shown[class_index], MAX_NAME)

    def has(self, class_index: int, text: str) -> bool:
        """Whether name and words, in full, hold a text, whatever its case."""
        return text.casefold() in self._title(class_index).casefold()

    def of_target(self, index: int) -> str:
        """What a target's column stands for: a tag, or a class."""
        return shortened(self.tags[index], MAX_NAME) if self.tags else self.short(index)

    def of_map(self, class_index: int) -> str:
        """A class of the label maps' teacher, whose class list may be another one."""
        return self.short(class_index) if self._map_fits else f"the teacher's class {class_index}"

    def _title(self, class_index: int) -> str:
        name, shown = self._names[class_index], self._shown[class_index]
        return name if shown == name else f"{name} {shown}"


def stored_figure(sample: SampleView, names: ClassNames, budget: int) -> Figure | None:
    """The stored image with the windows of its crops; of a damaged sample the image alone, where it has a size."""
    if sample.jpeg is None:
        return None
    try:
        header = read_jpeg_header(sample.jpeg)
    except ImageError:
        return None
    height, width = header.height, header.width
    caption = "The stored image"
    if len(sample.jpeg) <= budget:
        uri = data_uri("jpeg", sample.jpeg)
    elif sample.image is not None:
        uri = image_data_uri(shrunk(sample.image, 2 * DRAWN_PX))
        caption += f", drawn smaller: its {len(sample.jpeg):,} bytes are too many for this page"
    else:
        return None
    scale = DRAWN_PX / max(height, width)
    drawn_width, drawn_height = width * scale, height * scale
    body = _svg_image(uri, drawn_width, drawn_height)
    windows = [
        _window(number, crop, drawn_width, drawn_height) for number, crop in enumerate(sample.crops, 1)
    ]
    body += "".join(outline for outline, _ in windows) + "".join(mark for _, mark in windows)
    if sample.crops:
        caption += f" and the {'window of its crop' if len(sample.crops) == 1 else 'windows of its crops'}"
    return Figure([Drawing(drawn_width, drawn_height, body)], caption)


def shrunk(image: np.ndarray, longest_px: int) -> np.ndarray:
    """The image, no longer than that on either side."""
    height, width = image.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    return resample(image, max(1, round(height * scale)), max(1, round(width * scale)))


def _svg_image(uri: str, width: float, height: float) -> str:
    return f'<image href="{uri}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>'


def _window(number: int, crop: CropView, width: float, height: float) -> tuple[str, str]:
    """A crop's outline; and its number in a corner, each crop's in another, so that numbers do not meet."""
    x0, y0, x1, y1 = (
        fraction * side for fraction, side in zip(crop.crop_xyxy, (width, height) * 2, strict=True)
    )
    shape = f'x="{x0:.2f}" y="{y0:.2f}" width="{x1 - x0:.2f}" height="{y1 - y0:.2f}" fill="none"'
    corner = (number - 1) % 4
    left, upper = corner in (0, 3), corner in (0, 1)
    anchor = f'x="{x0 + 5 if left else x1 - 5:.1f}" y="{y0 + 21 if upper else y1 - 7:.1f}"'
    color = COLORS[(number - 1) % len(COLORS)]
    outline = (
        f'<rect {shape} stroke="#000" stroke-width="4.5"/><rect {shape} stroke="{color}" stroke-width="2.5"/>'
    )
    mark = (
        f'<text class="mark" style="fill:{color}" {anchor} text-anchor="{"start" if left else "end"}">'
        f"{_crop_mark(number, crop)}</text>"
    )
    return outline, mark


def _crop_mark(number: int, crop: CropView) -> str:
    return f"{number} ↔" if crop.flip else str(number)


def crop_figure(number: int, crop: CropView, sample: SampleView, names: ClassNames, top: int) -> Figure:
    x0, y0, x1, y1 = crop.crop_xyxy
    caption = (
        f"Crop {_crop_mark(number, crop)}, epoch {crop.epoch}{', mirrored' if crop.flip else ''}: {x0:.1%} to {x1:.1%} "
        f"across, {y0:.1%} to {y1:.1%} down"
    )
    if crop.target is None:
        return Figure([crop.image], caption)
    best = np.argsort(-crop.target, kind="stable")[:top].tolist()
    best = [index for index in best if crop.target[index] > 0]
    own = None
    if sample.class_index is not None and not names.tags:
        best += [] if sample.class_index in best else [sample.class_index]
        own = best.index(sample.class_index)
    bars = [(names.of_target(index), float(crop.target[index])) for index in best]
    return Figure([crop.image], caption, bars, own)


def heaviest_classes(label_map: MapView) -> list[int]:
    """The map's 3 to 5 classes with the largest probabilities over the whole image, the largest first."""
    order = np.argsort(-label_map.whole, kind="stable")[:MAP_CLASSES].tolist()
    held = set(np.unique(label_map.ids).tolist())
    return [
        index
        for place, index in enumerate(order)
        if index in held and (place < FEW_MAP_CLASSES or label_map.whole[index] >= MIN_MAP_SHARE)
    ]


def map_figures(image: np.ndarray, label_map: MapView, names: ClassNames) -> list[Figure]:
    small = shrunk(image, DRAWN_PX)
    rows, columns = label_map.ids.shape[1:]
    shown = heaviest_classes(label_map)
    figures = [_overlay(small, label_map, index, names) for index in shown]
    if rows * columns <= MAX_GRID_CELLS:
        figures.append(_best_cells(small, label_map, shown, names))
    return figures


def _overlay(image: np.ndarray, label_map: MapView, index: int, names: ClassNames) -> Figure:
    """One class over the image, and below it the colours of the scores."""
    height, width = _drawn_size(image)
    low, high = score_range(label_map.scores)
    picture = overlay_class(image, label_map.scores, label_map.ids, index)
    step = width / len(VIRIDIS)
    bars = "".join(
        f'<rect x="{i * step:.2f}" y="{height + 6:g}" width="{step + 0.5:.2f}" height="8" '
        f'fill="rgb({",".join(f"{value:.0f}" for value in color)})"/>'
        for i, color in enumerate(VIRIDIS)
    )
    style = f'y="{height + 33:g}" class="value" style="font-size:17px"'
    text = (
        f'<text x="0" {style}>{low:.1f}</text><text x="{width:g}" {style} text-anchor="end">{high:.1f}</text>'
    )
    held = label_map.ids == index
    scores, num_cells = label_map.scores[held], held[0].size
    num_held = int(held.any(axis=0).sum())
    others = " (the others are grey)" if num_held < num_cells else ""
    return Figure(
        [Drawing(width, height + 38, _svg_image(image_data_uri(picture), width, height) + bars + text)],
        f"{names.of_map(index)}: {label_map.whole[index]:.2f} of the whole map's target; kept in {num_held} of "
        f"{num_cells} cells{others}, scores {scores.min():.1f} to {scores.max():.1f}",
    )


def _best_cells(image: np.ndarray, label_map: MapView, shown: list[int], names: ClassNames) -> Figure:
    """Every cell in the colour of its best class, with a letter: not everybody sees the colours."""
    height, width = _drawn_size(image)
    rows, columns = label_map.ids.shape[1:]
    best = np.take_along_axis(label_map.ids, label_map.scores.argmax(axis=0)[None], axis=0)[0]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    body = _svg_image(image_data_uri(grey), width, height)
    row_px, column_px = height / rows, width / columns
    for color, index in enumerate(shown):
        cells = "".join(
            f"M{column * column_px:.1f} {row * row_px:.1f}h{column_px:.1f}v{row_px:.1f}h-{column_px:.1f}z"
            for row, column in np.argwhere(best == index).tolist()
        )
        if cells:
            body += f'<path fill="{COLORS[color]}" fill-opacity="0.6" d="{cells}"/>'
    letter_px = min(0.75 * row_px, 0.75 * column_px, 20.0)
    letters = dict(zip(shown, _LETTERS, strict=False))
    centres = " ".join(f"{(column + 0.5) * column_px:.1f}" for column in range(columns))
    for row in range(rows):
        text = "".join(letters.get(index, "·") for index in best[row].tolist())
        body += (
            f'<text class="mark" x="{centres}" y="{(row + 0.5) * row_px + letter_px * 0.36:.1f}" text-anchor="middle" '
            f'style="fill:#fff;stroke-width:{letter_px / 6:.1f}px;font-size:{letter_px:.1f}px">{text}</text>'
        )
    shares = [(f"{letters[index]} {names.of_map(index)}", float((best == index).mean())) for index in shown]
    others = float((~np.isin(best, shown)).mean())
    return Figure(
        [Drawing(width, height, body)],
        f"The best class of each of the {rows} x {columns} cells; bars: their share of the cells",
        shares + ([("· other classes", others)] if others else []),
    )


def _drawn_size(image: np.ndarray) -> tuple[float, float]:
    """(height, width) of a drawing of the image."""
    height, width = image.shape[:2]
    scale = DRAWN_PX / max(height, width)
    return height * scale, width * scale
