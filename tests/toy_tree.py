"""The example of Ridnik et al. (2021): chains [0] [1,0] [2,1,0] [3,1,0] [4] [5,4] [6,5,4]."""

TOY = ("animal", "vertebrate", "bird", "fish", "plant", "tree", "oak")
TOY_PAIRS = [
    ("vertebrate", "animal"),
    ("bird", "vertebrate"),
    ("fish", "vertebrate"),
    ("tree", "plant"),
    ("oak", "tree"),
]
