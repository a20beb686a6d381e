"""Label maps of three by three cells, which a small teacher makes of small images in a second."""

from softshard.training.maps import MapOptions

SIZE = 96  # three by three cells of the fixture `map_teacher`
OPTIONS = MapOptions(size=SIZE, top=2, scores="float16", batch_size=2)  # close to the dense logits
NO_SHIFT = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
