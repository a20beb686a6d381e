"""The models that teach label maps: what they are loaded from, and at which size."""

from dataclasses import replace

import pytest
import timm
import torch

from softshard.shards import DataError, Manifest, UsageError
from softshard.training.checkpoint import load_checkpoint, save_checkpoint, state_sha256
from softshard.training.maps import load_teacher, load_teachers
from softshard.training.recipes import single_label
from softshard.training.train import train


def test_a_checkpoint_of_another_architecture_is_refused(noisy, noisy_checkpoint):
    with pytest.raises(DataError, match="expected a checkpoint of resnet10t, found one of test_resnet"):
        load_teacher("resnet10t", Manifest.load(noisy), size=32, checkpoint=noisy_checkpoint)


@pytest.fixture(scope="module")
def trained_vit(noisy, tmp_path_factory):
    recipe = replace(single_label(), epochs=1, global_batch=3, image_size=32)
    out = tmp_path_factory.mktemp("vit")
    return train(recipe, str(noisy), model="test_vit", out=out, log=lambda line: None).checkpoint


def test_position_embeddings_are_resampled_for_another_size(noisy, trained_vit):
    manifest = Manifest.load(noisy)
    own_size = load_teacher("test_vit", manifest, checkpoint=trained_vit)
    assert own_size.model.patch_embed.img_size == (32, 32)
    larger = load_teacher("test_vit", manifest, size=64, checkpoint=trained_vit)
    assert larger.model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert own_size.weights_sha256 == larger.weights_sha256


def test_averaged_weights_are_resampled_for_another_size_too(noisy, trained_vit, tmp_path):
    manifest, path = Manifest.load(noisy), tmp_path / "checkpoint.pt"
    saved = load_checkpoint(trained_vit)
    nothing_learnt = {name: torch.zeros_like(weight) for name, weight in saved.model.items()}
    save_checkpoint(path, replace(saved, model=nothing_learnt, model_ema=saved.model))
    averaged, plain = (
        load_teacher("test_vit", manifest, size=64, checkpoint=each) for each in (path, trained_vit)
    )
    assert state_sha256(averaged.model) == state_sha256(plain.model)


def test_an_architecture_that_timm_cannot_resample_is_refused_at_another_size(
    noisy, trained_vit, monkeypatch
):
    monkeypatch.setattr(timm.models.vision_transformer, "checkpoint_filter_fn", lambda state, model: state)
    with pytest.raises(DataError, match=r"for images of 64 pixels.*built for one size\. Run with --size 32"):
        load_teacher("test_vit", Manifest.load(noisy), size=64, checkpoint=trained_vit)


def test_each_teacher_wants_a_checkpoint_or_none_does(noisy):
    with pytest.raises(UsageError, match=r"expected a --checkpoint for each of 2 teachers.*found 1"):
        load_teachers(["resnet10t", "test_resnet"], ["a.pt"], Manifest.load(noisy), size=32)
