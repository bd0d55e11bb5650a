"""Which names in a stack of layers are hard links of each other.

One inode may be in several layers, put there by copies that share its bytes: an overlay then
shows one inode number under names that no program has ever linked. Names that were linked are
always in one layer, since linking copies a file up first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class LayerFinder:
    """Tells which layer of a stack shows a path. Blocks.

    Args:
        layers: Folders of the layers, base first.
    """

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = [os.fsencode(layer) + b"/" for layer in layers]

    def __call__(self, path: bytes) -> int:
        """Return the place in the stack of the topmost layer that has ``path`` (relative)."""
        place = len(self._layers) - 1
        while place > 0 and not os.path.lexists(self._layers[place] + path):
            place -= 1
        return place
