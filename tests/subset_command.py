"""`softshard subset` as tests call it."""

from softshard.shards.cli import main

CREATURE = "pet: [dog]\ncreature: [oak, bird]\n"  # groups of classes, as a file of them is written


def run_subset(*arguments, code=0):
    """Run it in this process; it ends with that code."""
    assert main(["subset", *map(str, arguments)]) == code
