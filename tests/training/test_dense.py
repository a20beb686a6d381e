"""Dense teacher predictions of timm models: the mean over cells is the model's own output, or a refusal says why not."""

from inspect import signature

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from softshard.shards.errors import UsageError
from softshard.training.dense import DenseTeacher, mean_of_teachers, top_k_map
from softshard.training.dense_head import norm_as_affine, token_grid

SMALL_SWIN = dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 1, 1), window_size=1)
SMALL_VIT = dict(depth=1, embed_dim=32, num_heads=2)


def teacher(name, **options):
    """Random weights, none of which is a one or a zero: an untouched norm would be the identity."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=11, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.5, 0.3)
        classifier = model.get_classifier()
        if isinstance(classifier, nn.Linear):  # some begin as zeros
            classifier.weight.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize(
    ("name", "options", "size", "cells"),
    [
        # convolutional networks, channels first
        ("test_resnet", {"drop_rate": 0.5}, (96, 64), (3, 2)),
        ("resnet10t", {}, (64, 64), (2, 2)),
        ("regnetx_002", {}, (64, 96), (2, 3)),
        ("regnety_002", {}, (64, 64), (2, 2)),
        ("test_efficientnet", {"drop_rate": 0.5}, (96, 64), (3, 2)),
        ("mobilenetv2_035", {}, (64, 64), (2, 2)),
        ("test_byobnet", {}, (64, 64), (2, 2)),
        ("test_nfnet", {}, (64, 64), (2, 2)),
        ("dla46_c", {}, (64, 64), (2, 2)),  # its classifier is a 1x1 convolution
        ("mobilevit_xxs", {}, (64, 64), (2, 2)),
        # a norm between pooling and classifier
        ("test_convnext", {}, (64, 96), (2, 3)),
        ("test_convnext2", {}, (64, 64), (2, 2)),
        ("convnextv2_atto", {}, (64, 64), (2, 2)),
        # channels last
        ("swin_tiny_patch4_window7_224", {"img_size": (32, 64), **SMALL_SWIN}, (32, 64), (1, 2)),
        # tokens
        ("test_vit", {"global_pool": "avg"}, (160, 160), (10, 10)),  # a class token that the head leaves out
        (
            "test_vit2",
            {"dynamic_img_size": True},
            (48, 64),
            (3, 4),
        ),  # without class token, registers in front
        ("test_vit4", {}, (64, 64), (4, 4)),
        ("beit_base_patch16_224", {"img_size": 64, **SMALL_VIT}, (64, 64), (4, 4)),
        ("deit_tiny_patch16_224", {"global_pool": "avg", "img_size": 64, **SMALL_VIT}, (64, 64), (4, 4)),
        ("mixer_s32_224", {"img_size": 96}, (96, 96), (3, 3)),
    ],
)
def test_mean_over_cells_is_the_models_own_output(name, options, size, cells):
    model = teacher(name, **options)
    images = torch.randn(2, 3, *size)
    dense = DenseTeacher(model)(images)
    assert dense.shape == (2, 11, *cells)
    with torch.no_grad():
        own = model.eval()(images)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))
    if cells != (1, 1):
        assert dense.std(dim=(2, 3)).min() > 0  # the cells differ: it is no copy of the answer


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_without_weights_is_run_cell_by_cell_too(norm):
    model = teacher("test_vit2")
    model.fc_norm = norm(model.num_features, elementwise_affine=False)
    images = torch.randn(2, 3, 64, 64)
    dense = DenseTeacher(model)(images)
    with torch.no_grad():
        torch.testing.assert_close(dense.mean(dim=(2, 3)), model(images), rtol=1e-4, atol=1e-4)


LATER_TIMM = pytest.mark.skipif(
    "pool_include_prefix" not in signature(VisionTransformer).parameters,
    reason="this timm's pooling always leaves the class token out",
)
BETWEEN = "there is {} between its last map and its classifier"


@pytest.mark.parametrize(
    ("name", "options", "size", "reason"),
    [
        ("mobilenetv3_small_050", {}, 64, BETWEEN.format("Conv2d, Hardswish")),
        ("mobilenetv4_conv_small_035", {}, 64, BETWEEN.format("Conv2d, ReLU, BatchNormAct2d")),
        ("ghostnet_050", {}, 64, BETWEEN.format("Conv2d, ReLU")),
        ("test_mambaout", {}, 64, BETWEEN.format("LayerNorm, Linear, GELU")),
        ("test_vit", {}, 160, "its answer is made of its class token"),
        pytest.param(
            "test_vit", {"global_pool": "avg", "pool_include_prefix": True}, 160, "pooling includes the class token",
            marks=LATER_TIMM,
        ),
        ("test_vit2", {"global_pool": "max"}, 64, "it pools otherwise than by the mean"),
        ("test_vit2", {"global_pool": "map"}, 64, "between its last map and its classifier"),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, **SMALL_VIT}, 64, "2 heads, as of a distilled model"),
        ("levit_128s", {}, 224, "2 heads, as of a distilled model"),
        ("test_resnet", {"global_pool": "max"}, 64, "it pools otherwise than by the mean"),
        ("test_resnet", {"global_pool": "avgmax"}, 64, "it pools otherwise than by the mean"),
        ("test_resnet", {"global_pool": "catavgmax"}, 64, "another pooling than the mean, or layers between"),
    ],
)  # fmt: skip
def test_other_heads_are_refused_with_the_reason(name, options, size, reason):
    with pytest.raises(UsageError, match=f"expected a head of global average pooling.*{reason}"):
        DenseTeacher(teacher(name, **options))(torch.randn(2, 3, size, size))


def test_an_operation_that_no_module_shows_is_found_by_its_numbers():
    class Squared(type(timm.create_model("test_resnet"))):
        def forward_head(self, x, pre_logits=False):
            return super().forward_head(x, pre_logits) ** 2

    model = teacher("test_resnet")
    model.__class__ = Squared
    with pytest.raises(UsageError, match=r"the mean over its cells is .* from its own answer"):
        DenseTeacher(model)(torch.randn(2, 3, 64, 64))


def test_a_model_without_classifier_is_refused():
    model = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UsageError, match="its classifier is Identity"):
        DenseTeacher(model)


def test_a_size_that_the_model_cannot_take_is_refused_with_what_to_choose():
    with pytest.raises(
        UsageError, match=r"images of 100 x 100 pixels, found that it cannot .*Choose a --size"
    ):
        DenseTeacher(teacher("test_vit", global_pool="avg"))(torch.randn(1, 3, 100, 100))


@pytest.mark.parametrize(("axis", "cells"), [(3, (3, 5)), (2, (5, 3))])
@pytest.mark.parametrize(
    ("name", "options"),
    [("test_resnet", {}), ("test_convnext", {}), ("test_vit2", {"dynamic_img_size": True})],
)
def test_cells_run_along_the_image_as_rows_and_columns(name, options, axis, cells):
    """What changes at one edge of the image changes the cells there most."""
    model = teacher(name, **options)
    scale = 16 if name == "test_vit2" else 32
    torch.manual_seed(1)
    images = torch.rand(1, 3, cells[0] * scale, cells[1] * scale)
    changed = images.clone()
    changed.narrow(axis, 4 * scale, scale).mul_(-3)
    difference = (DenseTeacher(model)(changed) - DenseTeacher(model)(images)).abs().sum(dim=(0, 1))
    assert difference.shape == cells
    assert difference.sum(dim=3 - axis).argmax() == 4


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_mixed_precision_keeps_the_head_exact_and_stays_near_float32(name):
    model = teacher(name)
    images = torch.randn(2, 3, 64, 64)
    plain, mixed = DenseTeacher(model)(images), DenseTeacher(model, amp="bfloat16")(images)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, plain)
    assert (mixed - plain).abs().max() < 0.1 * plain.abs().max()


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="amp: expected one of bfloat16, float16, found 'int8'"):
        DenseTeacher(teacher("test_resnet"), amp="int8")


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False), nn.RMSNorm(6), nn.BatchNorm1d(6), nn.GroupNorm(1, 6)],
    ids=lambda norm: f"{type(norm).__name__}-{norm.weight is not None}",
)  # fmt: skip
def test_a_norm_is_an_affine_map_with_the_pooled_vectors_statistics(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    if isinstance(norm, nn.BatchNorm1d):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    pooled = torch.randn(4, 6) * 3 + 1
    scale, shift = norm_as_affine(norm.eval(), pooled)
    torch.testing.assert_close(pooled * scale + shift, norm(pooled))


def test_a_module_that_is_no_norm_has_no_affine_map():
    assert norm_as_affine(nn.ReLU(), torch.zeros(1, 3)) is None
    assert norm_as_affine(nn.GroupNorm(2, 4), torch.zeros(1, 4)) is None


@pytest.mark.parametrize(
    ("num", "image_hw", "grid"),
    [(196, (224, 224), (14, 14)), (12, (48, 64), (3, 4)), (7, (224, 224), None), (0, (64, 64), None), (1, (9, 9), (1, 1))],
)  # fmt: skip
def test_tokens_are_laid_out_in_the_images_proportions(num, image_hw, grid):
    assert token_grid(num, image_hw) == grid


def test_several_teachers_are_averaged_on_one_grid_only():
    a, b = torch.randn(2, 11, 2, 3), torch.randn(2, 11, 2, 3)
    torch.testing.assert_close(mean_of_teachers([a, b], ["a", "b"]), (a + b) / 2)
    with pytest.raises(UsageError, match="on one grid of cells, found a 2 x 3, c 4 x 6"):
        mean_of_teachers([a, torch.randn(2, 11, 4, 6)], ["a", "c"])


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
