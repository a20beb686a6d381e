"""Each operation on pixels against torchvision's, and what is drawn against its table and its definitions."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as oracle
from torchvision.transforms.autoaugment import RandAugment as TorchvisionRandAugment
from torchvision.transforms.autoaugment import _apply_op
from waiting import LONG_S

from softshard.loaders import RANDAUGMENT_21K, Augment, Erasing, RandAugment
from softshard.loaders.augment_batch import AugmentStage
from softshard.loaders.augment_options import RANDAUGMENT_OPS
from softshard.loaders.augment_program import NUM_ARGS, NUMBER, OPS, Program, _randaugment_op, draw_program

SIZE = 57  # odd, and no multiple of a vector's length
BLENDS = ("brightness", "contrast", "color", "sharpness")
TITLES = {op: op.title() for op in RANDAUGMENT_OPS} | {
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
    "autocontrast": "AutoContrast",
}


def pictures(num, size=SIZE, seed=0):
    """uint8 [N, 3, S, S]: smooth with some noise; the second has few levels, the third one channel of one value."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num, 9, 9, 3), dtype=np.uint8)
    smooth = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse])
    pixels = np.clip(smooth.astype(np.int16) + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    if num > 2:
        pixels[1] = 60 + pixels[1] // 64
        pixels[2, :, :, 1] = 77
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def stage(augment=None, **options):
    defaults = {"seed": 1, "dtype": "uint8", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    augment = augment or Augment(size=SIZE, color_jitter=0.4)
    return AugmentStage(augment, **{**defaults, "num_threads": 2, "device": torch.device("cpu"), **options})


def run(images, op, args, augment=None):
    """One operation with one set of numbers for all images: uint8 in, float32 out."""
    program = Program(np.full((len(images), 1), NUMBER[op]), np.zeros((len(images), 1, NUM_ARGS)))
    program.args[:, 0, : len(args)] = args
    return stage(augment).run(images.float().contiguous(), program)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.9])
@pytest.mark.parametrize(
    ("op", "adjust"),
    [
        ("brightness", oracle.adjust_brightness),
        ("contrast", oracle.adjust_contrast),
        ("color", oracle.adjust_saturation),
        ("sharpness", oracle.adjust_sharpness),
    ],
)
def test_blends_equal_torchvisions_on_floats(op, adjust, factor):
    images = pictures(4)
    expected = adjust(images.float() / 255, factor) * 255
    torch.testing.assert_close(run(images, op, [factor]), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("op", "args", "adjust"),
    [
        *[("posterize", [bits], lambda x, bits=bits: oracle.posterize(x, bits)) for bits in (1, 4, 7, 8)],
        *[("solarize", [at], lambda x, at=at: oracle.solarize(x, at)) for at in (0.0, 100.5, 128.0, 255.0)],
        ("equalize", [], oracle.equalize),
        ("invert", [], oracle.invert),
    ],
)
def test_operations_on_levels_equal_torchvisions_on_uint8(op, args, adjust):
    images = pictures(4)
    assert torch.equal(run(images, op, args), adjust(images).float())


def test_autocontrast_equals_torchvisions_before_it_rounds():
    images = pictures(4)
    expected = oracle.autocontrast(images.float() / 255) * 255
    found = run(images, "autocontrast", [])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert torch.equal(found[2, 1], images[2, 1].float())  # one value: it stays


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [(0, 0, 0), (250, 120, 7)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("op", ["shear-x", "shear-y", "translate-x", "translate-y", "rotate"])
def test_movements_equal_torchvisions(op, sign, fill, interpolation):
    images = pictures(4).float()
    options = RandAugment(2, 17, fill=fill, interpolation=interpolation)
    name, args = _randaugment_op(op, np.array([17 / 30]), np.array([sign]), SIZE)
    found = run(images, name, args[0], Augment(size=SIZE, randaugment=options))
    magnitude = sign * float(
        TorchvisionRandAugment()._augmentation_space(31, (SIZE, SIZE))[TITLES[op]][0][17]
    )

    def apply(pixels, outside):
        mode = InterpolationMode(interpolation)
        return _apply_op(pixels, TITLES[op], magnitude, interpolation=mode, fill=outside)

    expected = apply(images, [float(value) for value in fill] if any(fill) else None)
    # torchvision darkens pixels that lie halfway outside before it fills them.
    within = apply(torch.ones_like(images), None)
    whole = (within > 0.99999) | (within < 0.00001)
    assert whole.float().mean() > 0.9
    # The nearest pixel of a point halfway between two may be either.
    wrong = ((found - expected).abs() > 0.01)[whole].float().mean()
    assert wrong <= (0.002 if interpolation == "nearest" else 0)
    assert ((expected - images).abs() > 0.5).float().mean() > 0.5  # it does move something


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
def test_the_table_of_magnitudes_is_torchvisions(magnitude):
    images = pictures(3)
    space = TorchvisionRandAugment()._augmentation_space(31, (SIZE, SIZE))
    assert sorted(space) == sorted(TITLES.values())
    for op in RANDAUGMENT_OPS:
        if op == "identity" or "-" in op or op == "rotate":
            continue  # no numbers; compared above
        magnitudes, signed = space[TITLES[op]]
        for sign in (1.0, -1.0) if signed else (1.0,):
            value = sign * float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            name, args = _randaugment_op(op, np.array([magnitude / 30]), np.array([sign]), SIZE)
            floats = op in (*BLENDS, "autocontrast")  # on uint8 torchvision rounds these down
            pixels = images.float() / 255 if floats else images
            expected = _apply_op(pixels, TITLES[op], value, InterpolationMode.NEAREST, None)
            expected = expected * 255 if floats else expected.float()
            torch.testing.assert_close(run(images, name, args[0]), expected, rtol=0, atol=1e-2)


def test_each_image_gets_its_own_operations_whatever_else_is_in_the_batch():
    images = pictures(8)
    augment = Augment(
        size=SIZE,
        color_jitter=0.4,
        lighting=0.1,
        cutout=0.5,
        randaugment=RANDAUGMENT_21K,
        erasing=Erasing(prob=0.5),
    )
    samples = np.array([5, 9, 100, 7, 2**40, 12, 13, 0])
    options = {"mean": (0.5, 0.4, 0.3), "seed": 3, "epoch": 4}
    program = draw_program(augment, samples, **options)
    together = stage(augment).run(images.float().contiguous(), program)
    for i in range(len(samples)):
        one = draw_program(augment, samples[i : i + 1], **options)
        assert np.array_equal(one.ops[0], program.ops[i])
        assert np.array_equal(one.args[0], program.args[i])
        alone = stage(augment).run(images[i : i + 1].float().contiguous(), one)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-3)
    assert len(np.unique(program.ops)) > 8


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 5}, {"occurrence": 1}])
def test_draws_depend_on_seed_epoch_and_occurrence(change):
    augment = Augment(
        size=SIZE, color_jitter=0.4, lighting=0.1, cutout=0.5, randaugment=RandAugment(), erasing=Erasing()
    )
    samples = np.arange(50)
    options = {"mean": (0.5, 0.4, 0.3), "seed": 3, "epoch": 4}
    one, other = (
        draw_program(augment, samples, **options),
        draw_program(augment, samples, **{**options, **change}),
    )
    same = (one.args == other.args).all(axis=2) & (one.ops == other.ops)
    # Jitter, lighting and Cutout always have numbers of their own; the rest may be the same by chance.
    assert not same[:, :5].any()
    assert same[:, 5:].mean() < 0.7


def test_jitter_factors_and_orders_are_spread_evenly():
    program = draw_program(
        Augment(size=8, color_jitter=(0.4, 0.1, 1.5)), np.arange(6000), mean=(0, 0, 0), seed=0, epoch=0
    )
    orders, counts = np.unique(program.ops, axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 850
    for op, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.9, 1.1), ("color", 0.0, 2.5)):
        factors = program.args[..., 0][program.ops == NUMBER[op]]
        assert len(factors) == 6000
        assert low <= factors.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < factors.max() <= high
        assert abs(factors.mean() - (low + high) / 2) < 0.02 * (high - low)


def test_lighting_has_the_covariance_of_the_published_components():
    program = draw_program(Augment(size=8, lighting=0.1), np.arange(40_000), mean=(0, 0, 0), seed=2, epoch=0)
    offsets = program.args[:, 0, :3] / 255
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(offsets.T), expected, atol=0.03 * expected.max())
    assert abs(offsets.mean()) < 5e-4
    images = pictures(1)
    found = run(images, "lighting", [10, -20, 3])
    assert torch.equal(found, images + torch.tensor([10.0, -20.0, 3.0])[:, None, None])


def test_cutout_is_a_square_in_one_colour_that_may_reach_over_the_border():
    augment = Augment(size=SIZE, cutout=0.5)
    program = draw_program(augment, np.arange(3000), mean=(0, 0, 0), seed=0, epoch=0)
    top, _, height, width = program.args[:, 0, :4].T
    assert (height <= 28).all()
    assert height.max() == width.max() == 28  # int(57 * 0.5 + 0.5) is 29, and half of it 14
    assert height.min() == width.min() == 14  # centred on a corner
    assert (top >= 0).all()
    assert (top + height <= SIZE).all()
    images = pictures(1)
    found = run(images, "box", [3, 5, 20, 10, 1, 2, 3], augment)
    assert torch.equal(
        found[0, :, 3:23, 5:15], torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 20, 10)
    )
    found[0, :, 3:23, 5:15] = images[0, :, 3:23, 5:15].float()
    assert torch.equal(found, images.float())


def test_randaugment_draws_every_operation_as_often_and_obeys_its_options():
    options = RandAugment(2, 9, bins=10, prob=0.5, uniform=True, ops=("invert", "brightness", "posterize"))
    program = draw_program(
        Augment(size=SIZE, randaugment=options), np.arange(9000), mean=(0, 0, 0), seed=0, epoch=0
    )
    assert program.ops.shape == (9000, 2)
    shares = {OPS[op]: (program.ops == op).mean() for op in np.unique(program.ops)}
    assert shares.keys() == {"identity", *options.ops}
    assert abs(shares["identity"] - 0.5) < 0.02
    assert all(abs(shares[op] - 1 / 6) < 0.01 for op in options.ops)
    bits = program.args[..., 0][program.ops == NUMBER["posterize"]]
    np.testing.assert_array_equal(np.unique(bits), [4, 5, 6, 7, 8])
    factors = program.args[..., 0][program.ops == NUMBER["brightness"]]
    np.testing.assert_allclose(np.unique(np.abs(factors - 1).round(9)), np.linspace(0.1, 0.9, 9))
    assert abs((factors > 1).mean() - 0.5) < 0.03


@pytest.mark.parametrize("fill", ["noise", "color", "mean"])
def test_erasing_overwrites_a_rectangle_of_some_images(fill):
    augment = Augment(size=SIZE, erasing=Erasing(prob=0.4, scale=(0.1, 0.3), ratio=(0.5, 2.0), fill=fill))
    program = draw_program(augment, np.arange(4000), mean=(0.5, 0.4, 0.3), seed=0, epoch=0)
    erased = program.ops[:, 0] != NUMBER["identity"]
    assert abs(erased.mean() - 0.4) < 0.03
    top, left, height, width = program.args[erased, 0, :4].T
    assert ((top >= 0) & (top + height <= SIZE) & (left >= 0) & (left + width <= SIZE)).all()
    areas, ratios = height * width / SIZE**2, height / width
    assert 0.09 < areas.min() < 0.11 < 0.29 < areas.max() < 0.31
    assert 0.45 < ratios.min() < 0.55 < 1.8 < ratios.max() < 2.2
    images = pictures(3)
    number = int(np.flatnonzero(erased)[0])
    found = run(images, OPS[program.ops[number, 0]], program.args[number, 0], augment)
    rows, columns = (slice(int(a), int(a + b)) for a, b in ((top[0], height[0]), (left[0], width[0])))
    inside = found[:, :, rows, columns]
    if fill == "mean":
        expected = 255 * torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        torch.testing.assert_close(inside, expected.expand_as(inside))
    elif fill == "color":
        assert (inside.amax(dim=(2, 3)) == inside.amin(dim=(2, 3))).all()
    else:  # the same field for images with the same numbers, normal once it is normalised
        mean, std = (torch.tensor(row)[:, None, None] for row in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
        normalised = (inside / 255 - mean) / std
        assert torch.equal(inside[0], inside[1])
        assert abs(normalised.mean()) < 0.15
        assert abs(normalised.std() - 1) < 0.15
    found[:, :, rows, columns] = images[:, :, rows, columns].float()
    assert torch.equal(found, images.float())


def test_no_operation_gives_the_decoders_own_normalisation():
    images = pictures(4).contiguous(memory_format=torch.channels_last)
    augment = Augment(size=SIZE, erasing=Erasing(prob=0.0))
    for dtype in ("float32", "float16"):
        one = stage(augment, dtype=dtype)
        found = one.augment(images, np.arange(4), np.arange(4), epoch=0)
        one.close()
        scale = np.float32(1 / (255 * np.array([0.2, 0.25, 0.3])))
        shift = np.float32(-np.array([0.5, 0.4, 0.3]) / np.array([0.2, 0.25, 0.3]))
        expected = images.numpy() * scale[:, None, None] + shift[:, None, None]
        assert expected.dtype == np.float32
        np.testing.assert_array_equal(found.numpy(), expected.astype(dtype))
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_torchs_threads_are_left_as_they_were():
    import threading

    before = torch.get_num_threads()
    one = stage()
    one.augment(
        pictures(4).contiguous(memory_format=torch.channels_last), np.arange(4), np.arange(4), epoch=0
    )
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join(LONG_S)
    one.close()
    assert [torch.get_num_threads(), *found] == [before, before]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Augment(color_jitter=-0.1), "color_jitter from 0"),
        (lambda: Augment(color_jitter=(0.1, 0.2)), "color_jitter from 0"),
        (lambda: Augment(lighting=float("nan")), "lighting from 0"),
        (lambda: Augment(cutout=3), "cutout as a share of the side, 0 to 2, found 3"),
        (lambda: Augment(randaugment=(2, 9)), r"randaugment as RandAugment\(...\), found \(2, 9\)"),
        (lambda: Augment(cutmix=1.0), r"cutmix as CutMix\(...\), found 1.0"),
        (lambda: Augment(mix_until_epoch=3), "mix_until_epoch from 0, with mixup or cutmix"),
        (lambda: Augment(centre=0.875), "scale=None"),
        (lambda: RandAugment(2, 31), "a magnitude from 0 to bins - 1, found 2, 31 and 31"),
        (lambda: RandAugment(ops=("blur",)), "expected ops of identity"),
        (lambda: RandAugment(interpolation="cubic"), "interpolation of nearest, bilinear, found 'cubic'"),
        (lambda: RandAugment(fill=(0, 0, 256)), "three values from 0 to 255"),
        (lambda: Erasing(prob=1.5), "prob: expected a share from 0 to 1, found 1.5"),
        (lambda: Erasing(scale=(0.5, 0.2)), r"scale \(low, high\)"),
        (lambda: Erasing(fill="grey"), "fill of noise, color, mean, found 'grey'"),
    ],
)
def test_wrong_options_are_refused_when_they_are_built(build, message):
    from softshard.shards import UsageError

    with pytest.raises(UsageError, match=message):
        build()
