"""A server of the data service in this process, and what it says to clients that ask in words of their own."""

import json
from contextlib import contextmanager

import pyarrow.flight as flight
from waiting import LONG_S

from softshard.loaders import Augment
from softshard.loaders.service_desk import Desk, ServedSet
from softshard.loaders.service_protocol import Refusal
from softshard.loaders.service_recipe import BatchRecipe
from softshard.loaders.service_server import BatchServer

IN_TIME = flight.FlightCallOptions(timeout=LONG_S)
RECIPE = BatchRecipe("small", 4, augment=Augment(size=16))


@contextmanager
def desk_of(dataset, limits=None):
    """What makes batches, without the network."""
    desk = Desk({"small": ServedSet(dataset)}, num_threads=1, limits=limits)
    try:
        yield desk
    finally:
        desk.close()


@contextmanager
def served(dataset, limits=None, cache=None, **options):
    """A server; the options are a BatchServer's."""
    desk = Desk({"small": ServedSet(dataset)}, num_threads=1, limits=limits, cache=cache)
    server = BatchServer(desk, **options)
    try:
        yield server
    finally:
        server.close(5)


def client_of(server):
    return flight.FlightClient(server.address)


def act(server, name, content):
    """What an action answers, or the code and message of its refusal."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    with client_of(server) as client:
        try:
            (result,) = client.do_action(flight.Action(name, content), IN_TIME)
        except flight.FlightError as error:
            refusal = Refusal.from_bytes(bytes(error.extra_info))
            return refusal.code, refusal.message
        return json.loads(result.body.to_pybytes())


def get(server, ticket):
    """The rows of a ticket, or the code and message of its refusal."""
    with client_of(server) as client:
        try:
            return client.do_get(flight.Ticket(ticket), IN_TIME).read_all()
        except flight.FlightError as error:
            refusal = Refusal.from_bytes(bytes(error.extra_info))
            return refusal.code, refusal.message


def open_recipe(server, recipe=RECIPE, **changes):
    return act(server, "open", {"protocol": 1, "recipe": recipe.to_json() | changes})
