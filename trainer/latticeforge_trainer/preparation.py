"""Makes a stage's packed data, and brings its base: the work of a `prepare` step.

The order is that of cost: nothing large moves before everything small has been found right.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    DataFacts,
    ExcessLength,
    ModelFacts,
    PrepareConfig,
    PrepareResult,
    StepKind,
)
from latticeforge_trainer.data.files import DataFile
from latticeforge_trainer.data.formats import read_samples
from latticeforge_trainer.data.layout import Layout, lay_out, lay_out_once
from latticeforge_trainer.data.packed import VALIDATION
from latticeforge_trainer.data.packing import write_packed
from latticeforge_trainer.data.rendering import Renderer
from latticeforge_trainer.data.samples import Learning
from latticeforge_trainer.data.sources import Source
from latticeforge_trainer.data.tokenized import TokenizedSource, tokenize_source
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import quantization_of
from latticeforge_trainer.models.base import Base
from latticeforge_trainer.models.changed import Changes
from latticeforge_trainer.models.facts import (
    check_method,
    check_tokenizer,
    facts_of,
    read_config,
)
from latticeforge_trainer.models.tokenizers import open_tokenizer
from latticeforge_trainer.progress import Reporter

log = logging.getLogger(__name__)

_SPARE_BYTES = 256 << 20
"""Kept free: checkpoints and logs of other steps share the disk."""

_BYTES_PER_TOKEN = 4 + 1 + 4
"""Of the packed arrays: input_ids, loss_mask, position_ids."""


@dataclass
class Preparation:
    """One run that finds no finished artifact; see `steps.prepare`."""

    config: PrepareConfig
    store: Store
    reporter: Reporter
    base: Base
    changes: Changes | None
    sources: list[Source]
    digest: str
    _rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each source: the first that is wanted, and one after the last."""

    def run(self) -> PrepareResult:
        """Check everything, bring everything, and leave the packed data.

        Raises:
            UserError: Something in the spec, the base or the data cannot work.
            NetworkError: The Hub does not answer.
        """
        facts, renderer = self._check_base()
        self.reporter.learned(facts, f"checked {self.base.name}", 0.02)
        files = self._bring_data()
        self._check_data(files, renderer)
        trained, held = self._hold_out(self._tokenize(files, renderer))
        self.reporter.update("packing", 0.4)
        length = self.config.payload.sequence_length
        layout = lay_out([source.lengths for source in trained], self.config.payload)
        need = self.base.missing_bytes() + len(layout.sequences) * length * _BYTES_PER_TOKEN
        self._require_space(need, "the base model and the packed data")
        self._bring_weights()
        return self._write(facts, renderer.pad_token, trained, held, layout)

    def _check_base(self) -> tuple[ModelFacts, Renderer]:
        name, folder = self.base.name, self.base.folder
        self.reporter.update(f"checking {name}", 0.01)
        self.base.bring_small()
        config = read_config(folder, name)
        self._check_method(quantization_of(config))
        header = self.base.header()
        facts = facts_of(
            folder,
            name,
            path=self.store.relative(folder),
            revision=self.base.revision,
            config=config,
            header=header,
        )
        self._check_method(facts.quantization)
        if self.changes is not None:
            folder = self.changes.write(self.base, self.store)
            facts = facts.model_copy(
                update={
                    "path": self.store.relative(folder),
                    "tokenizer": self.changes.digest,
                }
            )
        renderer = Renderer(open_tokenizer(folder, name))
        check_tokenizer(name, renderer.tokens, facts.vocabulary)
        self._require_space(self.base.missing_bytes(), "the base model")
        log.info("%s: licence %s", name, facts.licence or "not stated")
        return facts, renderer

    def _check_method(self, quantization: str | None) -> None:
        runtime = self.config.runtime
        check_method(self.base.name, quantization, runtime.method, merges=runtime.merges)

    def _bring_data(self) -> list[list[DataFile]]:
        files = []
        for source in self.sources:
            total = sum(source.wanted.values())
            self._require_space(total, source.spec.source)
            files.append(source.bring(self._bytes(source.spec.source, total, 0.02, 0.02)))
        return files

    def _check_data(self, files: list[list[DataFile]], renderer: Renderer) -> None:
        """Parse every row of every source, and render the first sample of every file."""
        for number, source in enumerate(self.sources):
            count = 0
            for file in files[number]:
                self.reporter.update(f"reading {file.name}", 0.04)
                for position, located in enumerate(read_samples(file, source.spec)):
                    if position == 0:
                        renderer.tokenize([located], Learning.of(source.spec))
                    count += 1
            start, stop = source.rows.bounds(count)
            if start == stop:
                wanted = f" in {source.spec.split}" if count else ""
                raise UserError(f"{source.spec.source} holds no samples{wanted}")
            self._rows[number] = start, stop

    def _tokenize(self, files: list[list[DataFile]], renderer: Renderer) -> list[TokenizedSource]:
        length, before = self.config.payload.sequence_length, 0
        total = sum(stop - start for start, stop in self._rows.values())
        tokenized = []
        for number, source in enumerate(self.sources):
            start, stop = self._rows[number]
            samples = (s for file in files[number] for s in read_samples(file, source.spec))
            done = tokenize_source(
                islice(samples, start, stop),
                renderer,
                length,
                self._samples(before, total),
                learning=Learning.of(source.spec),
                excess=source.spec.excess_length or ExcessLength.TRUNCATE,
                minimum=source.spec.minimum_length,
            )
            if not len(done):
                raise UserError(
                    f"{source.spec.source}: none of its {done.skipped + done.dropped} samples has "
                    f"anything to learn within {length} tokens: no assistant turn, no completion, "
                    "no text"
                )
            before += stop - start
            tokenized.append(done)
        return tokenized

    def _hold_out(
        self, tokenized: list[TokenizedSource]
    ) -> tuple[list[TokenizedSource], list[TokenizedSource]]:
        """What is trained on, and what is kept for validation; nothing, if none is asked for."""
        share, seed = self.config.payload.validation_share, self.config.payload.seed
        if share is None:
            return tokenized, []
        pairs = [source.hold_out(share, seed + n) for n, source in enumerate(tokenized)]
        held = [away for _, away in pairs]
        if not any(len(away) for away in held):
            raise UserError(
                "validationShare: no source has two samples, so none can be held out: leave it out"
            )
        return [stay for stay, _ in pairs], held

    def _bring_weights(self) -> None:
        total = sum(self.base.weights.values())
        self.base.bring_weights(self._bytes(self.base.name, total, 0.42, 0.5))
        if self.changes is not None:
            self.changes.link_weights(self.base, self.store)

    def _write(
        self,
        facts: ModelFacts,
        pad_token: int,
        trained: list[TokenizedSource],
        held: list[TokenizedSource],
        layout: Layout,
    ) -> PrepareResult:
        self.reporter.update("writing the packed data", 0.93)
        length = self.config.payload.sequence_length
        with self.store.create(self.digest) as staging:
            counts = write_packed(staging.folder, layout.sequences, trained, length, pad_token)
            layout.save_ends(staging.folder)
            result = PrepareResult(
                artifact=self.digest,
                base=facts,
                data=_data_facts(self.sources, trained, held),
                sequences=counts.sequences,
                tokens=counts.tokens,
                target_tokens=counts.target_tokens,
                validation_tokens=_write_held(staging.folder, held, length, pad_token),
            )
            brought = {**self.base.small, **self.base.weights}
            staging.seal(StepKind.PREPARE, result, {"base": brought})
        return result

    def _require_space(self, need: int, what: str) -> None:
        free = shutil.disk_usage(self.store.root).free
        if need and need + _SPARE_BYTES > free:
            raise UserError(
                f"{what} needs {_gib(need)} of disk, but the store {self.store.root} has "
                f"{_gib(free)} free: enlarge storage.size"
            )

    def _bytes(self, what: str, total: int, start: float, share: float) -> Callable[[int], None]:
        def report(here: int) -> None:
            message = f"downloading {what}: {_gib(here)} of {_gib(total)}"
            self.reporter.update(message, start + share * here / max(1, total))

        return report

    def _samples(self, before: int, total: int) -> Callable[[int], None]:
        def report(done: int) -> None:
            message = f"tokenizing: {before + done} of {total} samples"
            self.reporter.update(message, 0.05 + 0.35 * (before + done) / total)

        return report


def _write_held(
    folder: Path, held: list[TokenizedSource], length: int, pad_token: int
) -> int | None:
    """Write what is kept for validation.

    Returns:
        Its tokens; None if there is none.
    """
    if not held:
        return None
    (folder / VALIDATION).mkdir()
    sequences = lay_out_once([source.lengths for source in held], length)
    return write_packed(folder / VALIDATION, sequences, held, length, pad_token).tokens


def _data_facts(
    sources: list[Source], trained: list[TokenizedSource], held: list[TokenizedSource]
) -> list[DataFacts]:
    kept = [len(source) for source in held] or [0] * len(sources)
    return [
        DataFacts(
            source=source.spec.source,
            revision=source.revision,
            samples=len(own),
            tokens=int(own.lengths.sum()),
            truncated=own.truncated,
            dropped=own.dropped,
            skipped=own.skipped,
            held_out=count,
        )
        for source, own, count in zip(sources, trained, kept, strict=True)
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
