"""Recipes for noisy web labels (Yan et al., WebVision 2020): pretraining, fine-tuning, larger images, pseudo labels.

    weakly_tagged | label_weighted | joint  ->  fine_tune  ->  larger_images      softshard pseudo make  ->  pseudo

The slides give the losses and the numbers of fine-tuning. Of pretraining they give none, so it is as in ReLabel's
recipe, the one of the other papers that trains from scratch.
"""

from __future__ import annotations

import dataclasses

from .recipes import Recipe, relabel

# Of an image's keywords, or weighted classes, the largest. Texts with more are rare, and `softshard tags weigh` keeps 20
# classes unless it is told otherwise (`--top`); `--set keep_targets=none` keeps all.
MOST_TARGETS = 100


def weakly_tagged() -> Recipe:
    """Pretraining on the keywords of an image's own text: softmax cross-entropy summed over them.

    The model's outputs are the data set's vocabulary; classes are not looked at. About five keywords an image make
    the loss, and its gradient, about five times that of one class, which the learning rate of 0.1 for a batch of 1024
    (of one class commonly 0.4) leaves room for.
    """
    return dataclasses.replace(
        relabel(),
        name="weakly-tagged",
        loss="weakly-tagged",
        targets="tags",
        keep_targets=MOST_TARGETS,
        epochs=100,
        warmup=5 / 100,
    )


def label_weighted() -> Recipe:
    """Pretraining on classes weighted by how near they are to an image's label and text: sum_t w_t CE_t."""
    return dataclasses.replace(
        weakly_tagged(), name="label-weighted", loss="label-weighted", targets="weights"
    )


def joint() -> Recipe:
    """Both at once, which the slides leave to future work: one backbone, outputs for the classes and, after them, for
    the keywords. `tag_weight` balances the two losses."""
    return dataclasses.replace(weakly_tagged(), name="joint", loss="joint", targets="weights+tags")


def fine_tune() -> Recipe:
    """A pretrained model for the classes themselves: a new head, SGD with momentum (not Nesterov's), 0.01, times 0.1
    every 90 epochs, batch 256, gradients accumulated over 8 micro-batches.

    The batch of 256 is that of a step of the optimizer, cut into 8; where 8 batches of 256 are meant to make a step,
    say `--global-batch 2048`. The slides give no number of epochs: 270 see three learning rates.
    """
    return dataclasses.replace(
        relabel(),
        name="fine-tune",
        loss="single-label",
        targets="none",
        optimizer="momentum",
        lr=0.01,
        schedule="step",
        step_epochs=90,
        step_factor=0.1,
        warmup=0.0,
        epochs=270,
        global_batch=256,
        accumulate=8,
        new_head=True,
    )


def larger_images() -> Recipe:
    """A fine-tuned model goes on with larger images, its own head, and the learning rate that its schedule ended with:
    `--init-from` its checkpoint.

    Sizes and numbers of epochs are ours: 320 pixels, 10 epochs at a constant rate.
    """
    return dataclasses.replace(
        fine_tune(),
        name="larger-images",
        image_size=320,
        schedule="constant",
        lr_of_start=True,
        epochs=10,
        new_head=False,
    )


def pseudo() -> Recipe:
    """fine_tune on what models said of the images (`softshard pseudo make`), instead of the labels they came with.

    An image that was given no label adds nothing.
    """
    return dataclasses.replace(
        fine_tune(), name="pseudo", loss="label-weighted", targets="pseudo", keep_targets=MOST_TARGETS
    )
