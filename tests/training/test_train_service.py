"""Training from servers of the data service: one argument is another, and every number is the same."""

import dataclasses
import json

import pytest
import torch
from service_processes import assert_same_batches, serving
from test_soft_targets import make_set

from softshard.loaders import Augment, Loader, RemoteLoader, as_tuples
from softshard.shards.cli import main
from softshard.shards.errors import UsageError
from softshard.training import joint, semantic_softmax
from softshard.training.checkpoint import load_checkpoint, save_checkpoint
from softshard.training.evaluate import evaluation_loader
from softshard.training.train import train


@pytest.fixture(scope="module")
def server(shards):
    with serving(f"train={shards / 'train'}", f"val={shards / 'val'}") as found:
        yield found


def run(dataset, val, out, **options):
    recipe = dataclasses.replace(semantic_softmax(), epochs=2, global_batch=8, image_size=32)
    options = {"model": "test_resnet", "log_steps": 1, "log": lambda line: None, **options}
    return train(recipe, str(dataset), val=val and str(val), out=out, **options)


def test_a_run_on_servers_gives_the_weights_and_numbers_of_a_local_one(server, shards, tmp_path):
    here = run(shards / "train", shards / "val", tmp_path / "here")
    there = run(f"{server.url}/train", f"{server.url}/val", tmp_path / "there")
    assert there.history == here.history
    models = [load_checkpoint(tmp_path / name / "checkpoint.pt").model for name in ("here", "there")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


class Stopped(Exception):
    """Stands for a process that is gone."""


def test_predictions_of_servers_images_are_those_of_the_data_sets(server, shards, tmp_path, capsys):
    checkpoint = str(run(shards / "train", None, tmp_path / "run", epochs=1).checkpoint)
    said = []
    for images in (shards / "val", f"{server.url}/val"):
        assert main(["predict", checkpoint, str(images), "--json", "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 12


def test_a_local_run_continues_on_servers(server, shards, tmp_path, monkeypatch):
    sets = shards / "train", shards / "val"
    whole = run(*sets, tmp_path / "whole")
    saves = []

    def save_and_stop(path, checkpoint):
        save_checkpoint(path, checkpoint)
        saves.append(checkpoint.step)
        if len(saves) == 4:
            raise Stopped

    monkeypatch.setattr("softshard.training.train.save_checkpoint", save_and_stop)
    with pytest.raises(Stopped):
        run(*sets, tmp_path / "part", checkpoint_steps=1)
    assert saves == [1, 2, 3, 4]
    monkeypatch.undo()
    rest = run(f"{server.url}/train", f"{server.url}/val", tmp_path / "part", resume=True)
    assert rest.history == whole.history


def test_the_command_takes_servers_where_it_takes_a_folder(server, tmp_path):
    command = ["train", "semantic-softmax", f"{server.url}/train", "--val", f"{server.url}/val"]
    command += ["--preset", "small", "--model", "test_resnet", "--out", str(tmp_path), "--epochs", "1"]
    assert main([*command, "--global-batch", "16", "--image-size", "32", "--device", "cpu"]) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_is_measured_on_servers_as_on_a_folder(server, shards, tmp_path, capsys):
    run(shards / "train", None, tmp_path, epochs=1)
    checkpoint = str(tmp_path / "checkpoint.pt")
    said = []
    for dataset in (str(shards / "val"), f"{server.url}/val"):
        for ensemble in ([], ["--ensemble", checkpoint]):
            command = ["evaluate", checkpoint, dataset, *ensemble, "--batch-size", "8", "--device", "cpu"]
            assert main([*command, "--json"]) == 0
            said.append(json.loads(capsys.readouterr().out) | {"dataset": None})
    assert said[:2] == said[2:]
    assert main(["evaluate", "timm:resnet18.a1_in1k", f"{server.url}/val"]) == 2
    assert "expected the folder or URL of a data set" in capsys.readouterr().err


def test_keywords_behind_servers_are_judged_as_those_here_are(tmp_path):
    web = make_set(tmp_path / "web", 5)
    recipe = dataclasses.replace(joint(), image_size=32)
    with serving(f"web={web}", threads=1) as server:
        loaders = [
            evaluation_loader(recipe, str(dataset), batch_size=8, device="cpu", with_tags=with_tags)
            for dataset in (web, f"{server.url}/web")
            for with_tags in (True, False)
        ]
        assert [loader.targets for loader in loaders] == ["tags", "none", "tags", "none"]
        assert loaders[0].vocabulary == loaders[2].vocabulary
        for here, there in (loaders[::2], loaders[1::2]):
            assert_same_batches(there, here)
        for loader in loaders:
            loader.close()


def test_side_shards_are_the_servers(server, shards, tmp_path):
    with pytest.raises(UsageError, match=r"Start the servers with softshard serve --side NAME=DIR"):
        run(f"{server.url}/train", f"{server.url}/val", tmp_path, side=shards)


def test_anybodys_loop_takes_a_remote_loader_where_it_takes_a_loader(server, shards):
    losses = []
    for make, dataset in ((Loader, shards / "train"), (RemoteLoader, f"{server.url}/train")):
        with make(dataset, batch_size=8, augment=Augment(size=32), seed=1) as loader:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, loader.num_classes))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            found = []
            for epoch in range(2):
                batches = as_tuples(loader, device="cpu")
                batches.sampler.set_epoch(epoch)
                for images, classes in batches:
                    loss = torch.nn.functional.cross_entropy(model(images), classes)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    found.append(loss.item())
            losses.append(found)
    assert losses[0] == losses[1]
