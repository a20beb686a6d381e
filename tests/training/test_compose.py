"""docker/compose.yaml without docker: its own commands, against the S3 server of the tests, with names and folders replaced.

What only an engine can show (images, networks, users, memory limits) is not tested here.
"""

import json
import os
import signal
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from waiting import LONG_S, first_line

from servers.swift import ACCESS_KEY, SECRET_KEY

DOCKER = Path(__file__).parents[2] / "docker"
SOFTSHARD = [sys.executable, "-c", "import sys; from softshard.shards.cli import main; sys.exit(main())"]
ONE_SMALL_EPOCH = ["--epochs", "1", "--image-size", "32", "--global-batch", "8"]


@pytest.fixture(scope="module")
def stack():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def put(words, replaced):
    """A service's words, with what stands for its container's names and folders here."""
    for name, here in replaced.items():
        words = [word.replace(name, str(here)) for word in words]
    return list(words)


def environment_of(service):
    """What a service's container would have in its environment of ours: nothing but what compose gives it."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    given = service.get("environment", {})
    here = {
        "${S3_KEY": ACCESS_KEY,
        "${S3_SECRET": SECRET_KEY,
        "http://store:9000": os.environ["AWS_ENDPOINT_URL"],
    }
    return found | {name: here.get(value.partition(":?")[0], value) for name, value in given.items()}


def start(service, replaced, *more, entrypoint=SOFTSHARD, **options):
    """A service's command with its environment, and some words more."""
    command = [*entrypoint, *put(service["command"], replaced), *more]
    return subprocess.Popen(command, text=True, env=environment_of(service), **options)


def is_healthy(service, http):
    """What a service's health check says."""
    kind, python, *words = service["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    command = [sys.executable, *put(words, {"http://127.0.0.1:7071": http})]
    return subprocess.run(command, capture_output=True, timeout=LONG_S).returncode == 0


def make_secrets(folder, names):
    folder.mkdir()
    subprocess.run(["sh", str(DOCKER / "certificates.sh"), str(folder), *names], check=True, timeout=LONG_S)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs pyarrow: pip install '.[service]'")
def test_the_stacks_commands_pack_to_a_store_serve_from_it_and_train(stack, shards, s3_server, tmp_path):
    services = stack["services"]
    secrets, *names = services["certificates"]["command"]
    assert secrets == "/secrets"
    made = make_secrets(tmp_path / "secrets", [*names, "127.0.0.1"])
    assert set(made) == {"token", "ca.pem", "cert.pem", "key.pem"}
    replaced = {
        "/photos": shards.parent / "images",
        "/secrets": tmp_path / "secrets",
        "/runs": tmp_path / "runs",
        "0.0.0.0:7070": "127.0.0.1:0",
    }
    python, *words = services["bucket"]["entrypoint"]
    assert python == "python"
    made = start(services["bucket"], replaced, entrypoint=[sys.executable, *words])
    assert made.wait(LONG_S) == 0
    for _ in range(2):  # as when the stack is started again
        assert start(services["pack"], replaced).wait(LONG_S) == 0
    servers = []
    try:
        for name in names:
            here = {"/cache": tmp_path / name, **replaced}
            more = ["--http", "127.0.0.1:0", "--threads", "1"]
            servers.append(start(services[name], here, *more, stdout=subprocess.PIPE))
        said = [json.loads(first_line(server.stdout)) for server in servers]
        for name, line in zip(names, said, strict=True):
            assert line["listen"].startswith("grpc+tls://")
            assert is_healthy(services[name], line["http"])
            replaced[f"{name}:7070"] = line["listen"].rpartition("/")[2]
        assert "environment" not in services["trainer"]  # it has no key of the store
        replaced["resnet18"] = "test_resnet"
        trainer = start(services["trainer"], replaced, *ONE_SMALL_EPOCH)
        assert trainer.wait(LONG_S) == 0
        assert (tmp_path / "runs" / "first" / "checkpoint.pt").exists()
        for server in servers:
            server.send_signal(signal.SIGTERM)
            assert server.wait(LONG_S) == 0
        assert not is_healthy(services[names[0]], said[0]["http"])
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_a_trainer_that_is_started_again_continues(stack):
    trainer = stack["services"]["trainer"]
    assert trainer["restart"].startswith("on-failure")
    assert "--resume" in trainer["command"]


def test_secrets_are_made_once_are_their_owners_alone_and_the_authoritys_key_is_not_kept(tmp_path):
    made = make_secrets(tmp_path / "secrets", ["server-1", "10.0.0.7"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    again = ["sh", str(DOCKER / "certificates.sh"), str(tmp_path / "secrets"), "server-1"]
    subprocess.run(again, check=True, timeout=LONG_S)
    assert {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()} == made
    shown = [
        "openssl",
        "x509",
        "-in",
        str(tmp_path / "secrets" / "cert.pem"),
        "-noout",
        "-ext",
        "subjectAltName",
    ]
    names = subprocess.run(shown, check=True, capture_output=True, text=True, timeout=LONG_S).stdout
    assert "DNS:server-1" in names
    assert "IP Address:10.0.0.7" in names
    assert "ca.key" not in made


def test_every_service_is_bounded_without_rights_and_out_of_reach(stack):
    for name, service in stack["services"].items():
        assert service["user"] == "1000:1000", name
        assert service["cap_drop"] == ["ALL"], name
        assert "mem_limit" in service, name
        assert "ports" not in service, name
    assert all(network["internal"] for network in stack["networks"].values())
    running = [name for name, service in stack["services"].items() if "restart" in service]
    assert set(running) == {"store", "server-1", "server-2", "trainer"}
    for name in ("store", "server-1", "server-2"):
        assert "healthcheck" in stack["services"][name], name
    assert "storage" not in stack["services"]["trainer"]["networks"]


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="needs check-jsonschema")
def test_the_file_fits_the_schema_of_compose():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run(
        [*command, str(DOCKER / "compose.yaml")], capture_output=True, text=True, timeout=LONG_S
    )
    assert found.returncode == 0, found.stdout
