"""Any engine, of fields whose background is mapped to one white first."""

from collections.abc import Sequence

from bcd_ray.archives.images import Pixels
from bcd_ray.model.cells import whitened
from bcd_ray.model.engines.base import Engine, Outputs


class WhitenedEngine:
    """`base.Engine` of a model that was trained with `--white`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def chunk(self) -> int:
        """As the engine's."""
        return self._engine.chunk

    def infer(self, images: Sequence[Pixels]) -> Outputs:
        """As `Engine.infer`; quality is measured of the fields as they came, and not here."""
        return self._engine.infer([whitened(image) for image in images])._replace(quality=None)
