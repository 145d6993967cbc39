"""What an actor does: read, decode, compute and decide the images of a unit, and write its rows."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bcd_ray.archives.formats.jpeg import coarseness
from bcd_ray.archives.images import Decoded, Limits, Pixels, Rejected
from bcd_ray.archives.isolation import Decoder, decode, decode_apart, die_at_once
from bcd_ray.archives.memory import UNITS_AT_A_TIME
from bcd_ray.archives.shards import Entry, digest
from bcd_ray.errors import StorageError
from bcd_ray.hearing import be_heard
from bcd_ray.labels import CLASSES
from bcd_ray.ledger import schema
from bcd_ray.ledger.features import EMBEDDING, column_of
from bcd_ray.ledger.ledger import Ledger
from bcd_ray.ledger.plan import Handed
from bcd_ray.ledger.units import Place, Unit
from bcd_ray.model.bundle import Bundle
from bcd_ray.model.choice import open_engine
from bcd_ray.model.engines.base import EngineName
from bcd_ray.model.quality import MEASURES, measure
from bcd_ray.model.triage import Counts
from bcd_ray.runtime import library_versions
from bcd_ray.scoring.access import check_access
from bcd_ray.scoring.attempts import FIRST, Entries, Start, memory_kills, nobody
from bcd_ray.scoring.copies import Copies, SharedCopies
from bcd_ray.scoring.decided import decided
from bcd_ray.storage import take_retries
from bcd_ray.threads import EngineThreads, Turns, in_chunks, keep_blas_to_its_thread

_NOT_FINITE = "the network gave numbers that are not finite: look at the model, and at the machine or GPU"
_CHUNKS_DECIDED = 32  # at a time, some 500 images: one decision for each chunk would cost an image 1 % of its time
_ASKED = 128  # images at a time that other actors are asked for: a call costs some 4 core milliseconds
_CHUNK_BYTES = 16 << 20  # 8 JPEGs of 5 megapixels; a TIFF of 20 MB goes alone
# Where the logits, quality and embedding of an image begin, behind width, height, compression and cells.
_PARTS = np.cumsum([4, len(CLASSES), len(MEASURES) - 1])
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)
_Floats = npt.NDArray[np.float32]
# Embeddings, logits, quality measures and white cells of some images; -1 cells where the model does not look at them.
_Computed = tuple[_Floats, _Floats, _Floats, Counts]


class Scored(NamedTuple):
    """What came of a unit."""

    rows: int = 0
    error: str = ""
    read_bytes: int = 0
    retries: int = 0  # of requests to the store
    begun: bool = True  # not where the deadline was over

    def as_batch(self) -> dict[str, Any]:
        """As Ray Data takes it: a batch of one row."""
        return {name: np.array([value], object if name == "error" else None) for name, value in self._asdict().items()}


class UnitScorer:
    """Reads, decodes and scores units, and writes their rows; several threads may call it."""

    def __init__(
        self,
        bundle: Bundle,
        engine: EngineName,
        ledger: Ledger,
        limits: Limits,
        threads: int,
        starts: Any,
        withdrawn: Collection[str] = frozenset(),
        keep: bool = False,
    ) -> None:
        """`withdrawn` are contents by digest, and images by id, that are not to be looked at.

        With `keep` the rows have embeddings beside them.
        """
        keep_blas_to_its_thread()
        self._engine = open_engine(engine, bundle, threads)
        self._bundle, self._ledger, self._limits = bundle, ledger, limits
        self._threads = EngineThreads(threads)
        self._made_by = {"engine": engine, "versions": library_versions()}
        self._starts, self._turns = starts, Turns(UNITS_AT_A_TIME)
        self._withdrawn, self._keep, self._copies = withdrawn, keep, Copies()

    def score(self, unit: Unit, start: Start = FIRST, tell: Callable[[str], None] = nobody) -> int:
        """Write the rows of a unit, and return how many; StorageError if they cannot be written.

        Ray starts a unit again, without end, when it killed its worker. So the second attempt decodes plain JPEGs apart
        too, and the next take one image after the other, and `tell` which.
        """
        entries = Entries(unit.shards, self._limits, start, tell, unit.part)
        self._ledger.write_unit(unit, self.rows(entries, start), entries.seen, self._made_by, self._keep)
        return entries.seen.images

    def rows(self, entries: Entries, start: Start = FIRST) -> Iterator[pa.Table]:
        """One row for each entry, of all columns but the run's, some hundred at a time and in their order."""
        decode_one = decode if start.attempt == 1 else decode_apart

        def score_chunk(chunk: list[Entry]) -> tuple[list[_Row], list[_Computed]]:
            described = [_describe(decode_one, self._limits, entry, self._withdrawn, self._copies) for entry in chunk]
            rows, pixels = [row for row, _ in described], [each for _, each in described if each is not None]
            return rows, self._with_copies(rows, self._compute(pixels) if pixels else None)

        chunks = self._chunks(entries)
        scored = (
            map(score_chunk, chunks)
            if entries.one_by_one
            else self._threads.map(score_chunk, chunks, lambda chunk: sum(map(_bytes_in, chunk)), self._limits.window)
        )
        for some in in_chunks(scored, _CHUNKS_DECIDED):
            entries.scored()
            rows, computed = (list(chain.from_iterable(each)) for each in zip(*some, strict=True))
            yield _table(rows, computed, self._bundle, self._keep)

    def _chunks(self, entries: Entries) -> Iterator[list[Entry]]:
        """Lists of entries that are scored together; what other actors computed is asked for more at a time."""
        copies, most = self._copies, 1 if entries.one_by_one else self._engine.chunk
        if entries.one_by_one or not isinstance(copies, SharedCopies):
            return in_chunks(entries, most, _bytes_in, _CHUNK_BYTES)

        def ask(group: list[Entry]) -> Iterator[list[Entry]]:
            named = [
                each if isinstance(each.content, Rejected) else replace(each, sha256=digest(each.content))
                for each in group
            ]
            copies.ask([each.sha256 for each in named if each.sha256])
            return in_chunks(named, most, _bytes_in, _CHUNK_BYTES)

        groups = in_chunks(entries, max(_ASKED, most), _bytes_in, _CHUNK_BYTES)
        return chain.from_iterable(map(ask, groups))  # which hold no group while the next is read

    def _compute(self, pixels: list[Pixels]) -> _Computed:
        embeddings, logits, quality, cells = self._engine.infer(pixels)
        counts = np.full(len(pixels), -1, np.int32) if cells is None else cells
        return embeddings, logits, measure(pixels) if quality is None else quality, counts

    def _with_copies(self, rows: list["_Row"], computed: _Computed | None) -> list[_Computed]:
        """What was computed, in the order of the rows that are scored, among them copies of earlier contents."""
        scored = [row for row in rows if row.status == "scored"]
        copied, numbers = np.array([row.copied is not None for row in scored], bool), np.empty((0, 0), np.float32)
        if computed:
            new = [row for row in scored if row.copied is None]
            sizes = [
                [row.width or 0, row.height or 0, row.compression, cells]
                for row, cells in zip(new, computed[3], strict=True)
            ]
            embeddings, logits, quality, _ = computed
            numbers = np.hstack([np.array(sizes, np.float32), logits, quality, embeddings])
            known = np.array([not row.error for row in new], bool) & np.isfinite(numbers).all(axis=1)
            self._copies.add([row.image_sha256 or "" for row in np.array(new)[known]], numbers[known])
        if not copied.any():
            return [computed] if computed else []
        together = np.stack([numbers[0] if row.copied is None else row.copied for row in scored])
        if computed:
            together[~copied] = numbers
        facts, logits, quality, embeddings = np.split(together, _PARTS, axis=1)
        return [(embeddings, logits, quality, facts[:, -1].astype(np.int32))]


class ScoringActor(UnitScorer):
    """Ray Data actor of a `UnitScorer`."""

    def __init__(
        self,
        bundle_ref: Any,
        folders: list[str],
        handed: Handed,
        share: bool,
        engine: EngineName,
        ledger: Ledger,
        *others: Any,
    ) -> None:
        """`bundle_ref` refers to a `Bundle`: the arguments themselves are printed by Ray Data, tensors in 2.4 s.

        Actors that `share` compute no content that another has computed.
        """
        import ray

        be_heard()
        check_access(folders, ledger.output)
        super().__init__(ray.get(bundle_ref), engine, ledger, *others)
        self._handed = handed
        if share:
            self._copies = SharedCopies(lambda *copies: ray.get(self._starts.exchange.remote(*copies)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        place = Place(*(batch[name].tolist()[0] for name in Place._fields))
        die_at_once()  # here, not when it is made: only in an actor does somebody start it again
        context = ray.get_runtime_context()
        with self._turns.turn(alone=ray.get(self._starts.known.remote(place.unit_id))):
            mine = context.get_worker_id(), context.get_node_id(), memory_kills()
            start = ray.get(self._starts.count.remote(place.unit_id, *mine))
            if start is None:
                return Scored(begun=False).as_batch()
            try:
                unit = self._handed.unit(place)
                if start.attempt > 1 and self._ledger.is_finished(unit):  # it died after this unit, in another
                    return Scored().as_batch()
                at = self._starts.at
                rows = self.score(unit, start, lambda step: ray.get(at.remote(unit.unit_id, step)))
                return Scored(rows, "", unit.size, take_retries()).as_batch()
            except StorageError as error:  # the other units may do better: the driver tells at the end
                return Scored(error=str(error), retries=take_retries()).as_batch()


def _bytes_in(entry: Entry) -> int:
    return 0 if isinstance(entry.content, Rejected) else len(entry.content)


def _describe(
    decode_one: Decoder, limits: Limits, entry: Entry, withdrawn: Collection[str], copies: Copies
) -> "tuple[_Row, Pixels | None]":
    sha256 = None if isinstance(entry.content, Rejected) else entry.sha256 or digest(entry.content)
    if withdrawn and (sha256 in withdrawn or entry.image_id in withdrawn):
        return _Row(entry, None, Rejected(schema.WITHDRAWN, "")), None
    if isinstance(entry.content, Rejected):
        return _Row(entry, None, entry.content), None
    if sha256 and (known := copies.find(sha256)) is not None:
        row = _Row(entry, sha256, Decoded(_NO_PIXELS, int(known[0]), int(known[1])))
        row.compression, row.copied = float(known[2]), known
        return row, None
    decoded = decode_one(entry.content, limits)
    row = _Row(entry, sha256, decoded)
    if isinstance(decoded, Decoded):
        row.compression = coarseness(entry.content, decoded.width, decoded.height)
    return row, None if isinstance(decoded, Rejected) else decoded.pixels


class _Row:
    """What is known of an image before it is scored; it keeps neither bytes nor pixels."""

    compression = 0.0
    copied: _Floats | None = None  # of a copy: width, height, compression and cells, and what was computed

    def __init__(self, entry: Entry, digest: str | None, result: Decoded | Rejected) -> None:
        self.image_id, self.image_uri = entry.image_id, entry.image_uri
        self.shard_uri, self.shard_etag = entry.shard_uri, entry.shard_etag
        self.image_sha256, self.width, self.height = digest, result.width, result.height
        self.status = result.status if isinstance(result, Rejected) else "scored"
        self.error = (result.error if isinstance(result, Rejected) else result.damage) or None


def _table(rows: list[_Row], computed: list[_Computed], bundle: Bundle, keep: bool) -> pa.Table:
    scored = np.array([row.status == "scored" for row in rows], bool)
    if computed:
        embeddings, logits, measures, cells = (np.concatenate(parts) for parts in zip(*computed, strict=True))
        compression = np.array([row.compression for row in rows if row.status == "scored"], np.float32)
        measures = np.column_stack([measures, compression])
        finite = np.logical_and.reduce([np.isfinite(each).all(axis=1) for each in (embeddings, logits, measures)])
        for index in np.flatnonzero(scored)[~finite].tolist():
            rows[index].status, rows[index].error = "not_finite", _NOT_FINITE
        scored[scored] = finite
        embeddings, logits, measures, cells = (each[finite] for each in (embeddings, logits, measures, cells))
    else:
        embeddings, logits, measures = (np.empty((0, size), np.float32) for size in (0, len(CLASSES), len(MEASURES)))
        cells = np.empty(0, np.int32)
    damaged = np.array([bool(row.error) for row, ok in zip(rows, scored, strict=True) if ok], bool)
    names = ("image_id", "image_uri", "shard_uri", "shard_etag", "image_sha256", "width", "height", "status", "error")
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], schema.PREDICTIONS.field(name).type) for name in names
    }
    statuses = [row.status for row in rows]
    columns |= decided(bundle, statuses, embeddings, logits, measures, cells, damaged)
    quality, found = np.full((len(rows), len(MEASURES)), np.nan, np.float32), np.full(len(rows), -1, np.int32)
    quality[scored], found[scored] = measures, cells
    columns |= {name: pa.array(quality[:, index], mask=~scored) for index, name in enumerate(MEASURES)}
    columns["cells"] = pa.array(found, mask=found < 0)
    if keep:
        columns[EMBEDDING.name] = column_of(embeddings, scored)
    return pa.table(columns)
