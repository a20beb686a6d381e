import numpy as np
import pytest

from softshard.shards.map_pictures import class_cells, overlay_class, score_range
from softshard.shards.pictures import apply_colormap

IDS = np.array([[[7, 2]], [[2, 5]]], np.uint16)  # [K, P, Q] of 2 classes kept in 1 x 2 cells
SCORES = np.array([[[4.0, 3.0]], [[1.0, -2.0]]], np.float32)


def test_a_class_has_its_score_where_it_is_kept_and_no_number_elsewhere():
    np.testing.assert_array_equal(class_cells(SCORES, IDS, 2), [[1.0, 3.0]])
    np.testing.assert_array_equal(class_cells(SCORES, IDS, 7), [[4.0, np.nan]])
    np.testing.assert_array_equal(class_cells(SCORES, IDS, 0), [[np.nan, np.nan]])


@pytest.mark.parametrize(
    ("scores", "expected"), [(SCORES, (-2.0, 4.0)), (SCORES + 5, (0.0, 9.0)), (SCORES - 5, (-7.0, 0.0))]
)
def test_the_colours_of_a_map_range_over_all_its_scores_and_zero(scores, expected):
    assert score_range(scores) == expected


def test_all_classes_are_coloured_on_one_scale_and_cells_without_the_class_stay_grey():
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 2:] = (200, 100, 0)
    painted = overlay_class(image, SCORES, IDS, 7, alpha=1.0)
    assert (painted[:, :2] == apply_colormap(np.array(1.0))).all()  # the largest score of the map
    assert (painted[:, 2:] == round(0.299 * 200 + 0.587 * 100)).all()
    painted = overlay_class(image, SCORES, IDS, 5, alpha=1.0)
    assert (painted[:, 2:] == apply_colormap(np.array(0.0))).all()  # the smallest


def test_a_map_of_zeros_is_drawn():
    assert overlay_class(
        np.zeros((2, 2, 3), np.uint8), np.zeros((1, 1, 1)), np.zeros((1, 1, 1), int), 0
    ).shape == (2, 2, 3)
