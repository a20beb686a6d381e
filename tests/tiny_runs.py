"""Trainings that take a second, and what they leave behind."""

import csv
import dataclasses
import json

import torch
from packed_files import write_again

from softshard.loaders import Augment, Loader
from softshard.shards import LabelTree, Manifest
from softshard.shards.teacher_levels import encode_teacher_levels
from softshard.training import step as step_module
from softshard.training.checkpoint import load_checkpoint
from softshard.training.distillation import teacher_levels
from softshard.training.level_layout import LevelLayout
from softshard.training.train import train


def tiny(recipe, **changes):
    return dataclasses.replace(recipe, **{"epochs": 1, "global_batch": 8, "image_size": 32, **changes})


def run(recipe, shards, out, **options):
    options = {"model": "test_resnet", "log_steps": 1, "log": lambda line: None, **options}
    return train(recipe, str(shards / "train"), out=out, **options)


def metric_lines(out):
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(out):
    return [float(line["loss"]) for line in metric_lines(out)]


def history(out):
    return json.loads((out / "summary.json").read_text())["history"]


def weights(out):
    return load_checkpoint(out / "checkpoint.pt").model


def assert_same_weights(out, other):
    expected, found = weights(out), weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def whole_pass(folder, **options):
    """A loader of every sample once, in order, in batches of five."""
    plain = {"augment": Augment.evaluation(size=32), "shuffle": False, "last_batch": "pad", "batch_size": 5}
    return Loader(folder, **(plain | options))


def taught_at_random(dataset, folder):
    """Write a copy of a data set with the component `kd`; its tree, the teacher's logits, and each key's row of them."""
    manifest, tree = Manifest.load(dataset), LabelTree.load(dataset / "tree.json")
    logits = 3 * torch.randn(manifest.num_samples, manifest.num_classes, generator=torch.manual_seed(0))
    made, row = teacher_levels(logits, LevelLayout(tree)), {}

    def taught(sample):
        i = row[sample.key] = len(row)
        said = encode_teacher_levels(*(part[i].numpy() for part in made), tree.level_sizes)
        return {**sample.parts, "kd": said}

    write_again(dataset, folder, taught, [*manifest.components, "kd"])
    return tree, logits, row


class Killed(Exception):
    """Stands for a process that is gone: nothing after it runs."""


def before_micro_batch(monkeypatch, number, action):
    """Do something in the middle of a run, before its training sees the micro-batch of that number, counted from 1."""
    plain, taken = step_module.model_input, []

    def model_input(images, normalise):
        taken.append(1)
        if len(taken) == number:
            action()
        return plain(images, normalise)

    monkeypatch.setattr(step_module, "model_input", model_input)


def kill_at(monkeypatch, number):
    """Let the process die before that micro-batch."""

    def die():
        raise Killed

    before_micro_batch(monkeypatch, number, die)
