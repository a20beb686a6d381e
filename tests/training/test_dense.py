"""Dense teacher predictions of small timm models: the mean over cells is the model's own output."""

import pytest
import timm
import torch

from softshard.shards.errors import UsageError
from softshard.training.dense import DenseTeacher, dense_logits, top_k_map


def teacher(name, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=11, **options)
    for module in model.modules():  # untouched running statistics would make a batch norm the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize(
    ("name", "options", "size", "cells"),
    [
        ("test_resnet", {"drop_rate": 0.5}, (96, 64), (3, 2)),
        ("resnet10t", {}, (64, 64), (2, 2)),
        ("test_efficientnet", {"drop_rate": 0.5}, (96, 64), (3, 2)),
        ("regnetx_002", {}, (64, 96), (2, 3)),
    ],
)
def test_mean_over_cells_is_the_models_own_output(name, options, size, cells):
    model = teacher(name, **options)
    images = torch.randn(2, 3, *size)
    dense = dense_logits(model, images)
    assert dense.shape == (2, 11, *cells)
    with torch.no_grad():
        torch.testing.assert_close(dense.mean(dim=(2, 3)), model.eval()(images), rtol=1e-4, atol=1e-4)


def test_cells_run_along_the_image_as_rows_and_columns():
    """What changes at the right edge of the image changes the last column most."""
    model = teacher("test_resnet")
    images = torch.zeros(1, 3, 96, 160)
    changed = images.clone()
    changed[..., 140:] = 3.0
    difference = (dense_logits(model, changed) - dense_logits(model, images)).abs().sum(dim=(0, 1))
    assert difference.shape == (3, 5)
    assert difference.sum(dim=0).argmax() == 4


def test_channels_last_features_are_turned():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=11,
        img_size=(32, 64),
        window_size=1,
        depths=(1, 1, 1, 1),
        embed_dim=24,
        num_heads=(1, 1, 1, 1),
    )
    assert dense_logits(model, torch.randn(1, 3, 32, 64)).shape == (1, 11, 1, 2)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mobilenetv3_small_050", {}, "its last map has|from its own answer"),
        ("test_convnext", {}, "from its own answer"),
        ("test_vit", {}, "its features are tokens"),
        ("test_resnet", {"global_pool": "max"}, "from its own answer"),
        ("test_resnet", {"global_pool": "catavgmax"}, "its last map has"),
    ],
)
def test_other_heads_are_refused_with_the_reason(name, options, reason):
    model = teacher(name, **options)
    with torch.no_grad():  # a fresh norm's weights are ones and zeros, a trained one's are not
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.3)
    with pytest.raises(UsageError, match=rf"expected a head of global average pooling.*({reason})"):
        dense_logits(model, torch.randn(2, 3, 64, 64))


def test_a_model_without_classifier_is_refused():
    model = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UsageError, match="its classifier is Identity"):
        DenseTeacher(model)


def test_top_k_map_keeps_the_best_classes_of_every_cell():
    dense = torch.randn(2, 11, 3, 4)
    scores, ids = top_k_map(dense, 5)
    assert (scores.dtype, ids.dtype, scores.shape, ids.shape) == (
        torch.float32,
        torch.int64,
        (2, 5, 3, 4),
        (2, 5, 3, 4),
    )
    torch.testing.assert_close(dense.gather(1, ids), scores)
    assert scores.diff(dim=1).max() <= 0
    kept = torch.zeros_like(dense, dtype=torch.bool).scatter(1, ids, True)
    assert dense.masked_fill(kept, -100).amax(dim=1).lt(scores[:, -1]).all()


def test_top_k_map_refuses_more_than_there_are_classes():
    with pytest.raises(UsageError, match="expected k between 1 and 11"):
        top_k_map(torch.zeros(1, 11, 1, 1), 12)
