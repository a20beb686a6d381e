"""Small trees."""

from softshard.shards import LabelTree

# The example of Ridnik et al. (2021): chains [0] [1,0] [2,1,0] [3,1,0] [4] [5,4] [6,5,4].
TOY = ("animal", "vertebrate", "bird", "fish", "plant", "tree", "oak")
TOY_PAIRS = [
    ("vertebrate", "animal"),
    ("bird", "vertebrate"),
    ("fish", "vertebrate"),
    ("tree", "plant"),
    ("oak", "tree"),
]

# Two paths to the bat and to the seal.
PATH_LEAVES = ("cat", "bat", "crow", "seal")
PATH_PAIRS = [
    ("mammal", "animal"),
    ("flier", "animal"),
    ("cat", "mammal"),
    ("bat", "mammal"),
    ("bat", "flier"),
    ("crow", "flier"),
    ("seal", "mammal"),
    ("seal", "swimmer"),
]
PATH_TREE = LabelTree.from_table(PATH_LEAVES, PATH_PAIRS, parents="all-paths")


def right_classes(tree, index):
    """The class and all its ancestors, as a walk over all parents finds them."""
    found, ahead = set(), [index]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += tree.all_parents[node]
    return found
