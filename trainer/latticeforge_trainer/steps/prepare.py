"""The `prepare` step: everything that can be refused before GPUs are asked for, then the data.

    resolve      which commit of the base and of each source; the artifact's digest follows
    preflight    destination, config, weights, method; the base is reported, so that the operator
                 plans with it; every row of every source; chat template
    tokenize     render, mix, pack in memory
    download     the base's weights
    write        the packed arrays and, last, the manifest

The order is that of cost: nothing large moves before everything small has been found right. A
finished artifact is found by its digest after `resolve`, without a tokenizer or torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import (
    DataFacts,
    ModelFacts,
    PrepareConfig,
    PreparePayload,
    PrepareResult,
    PublishPayload,
    Recipe,
    StepKind,
    StepResult,
    step_digest,
)
from latticeforge_trainer.data.sources import Source, locate_source
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import quantization_of
from latticeforge_trainer.estimate.config_fields import size_fields
from latticeforge_trainer.models.base import Base, locate_base
from latticeforge_trainer.models.facts import (
    check_method,
    check_tokenizer,
    facts_of,
    read_config,
)
from latticeforge_trainer.progress import Reporter

if TYPE_CHECKING:
    from latticeforge_trainer.data.files import DataFile
    from latticeforge_trainer.data.mixing import Order
    from latticeforge_trainer.data.rendering import Renderer, TokenizedSource

log = logging.getLogger(__name__)

_SPARE_BYTES = 256 << 20
"""Kept free: checkpoints and logs of other steps share the disk."""

_BYTES_PER_TOKEN = 4 + 1 + 4
"""Of the packed arrays: input_ids, loss_mask, position_ids."""


def run(config: PrepareConfig, store: Store, reporter: Reporter) -> tuple[PrepareResult, bool]:
    """Prepare a stage's base and data, or find them prepared.

    Raises:
        UserError: Something in the spec, the base or the data cannot work; says what and where.
        NetworkError: The Hub does not answer.
    """
    reporter.update("resolving revisions")
    base = locate_base(config.payload.base, store)
    sources = [locate_source(spec, store) for spec in config.payload.data]
    digest = artifact_digest(config.payload, base, sources)
    if config.runtime.destination:
        check_destination(config.runtime.destination, store)
    result = _finished(store, digest, base)
    if reused := result is not None:
        check_method(
            base.name,
            result.base.quantization,
            config.runtime.method,
            merges=config.runtime.merges,
        )
    else:
        result = _Preparation(config, store, reporter, base, sources, digest).run()
    return result.model_copy(update={"found": look_up(config, digest, store)}), reused


def artifact_digest(payload: PreparePayload, base: Base, sources: Sequence[Source]) -> str:
    """The digest of the packed data: the payload with every revision resolved."""
    data = [source.spec.model_copy(update={"revision": source.revision}) for source in sources]
    resolved = payload.model_copy(
        update={
            "base": payload.base.model_copy(update={"revision": base.revision}),
            "data": data,
        }
    )
    return step_digest(StepKind.PREPARE, resolved.to_json(), [])


def look_up(config: PrepareConfig, digest: str, store: Store) -> dict[str, StepResult]:
    """Results of later steps that are complete in the store, by digest.

    Args:
        config: Its runtime has the recipes, and the digests of prepare steps done earlier.
        digest: Of this step's artifact.
        store: Where to look.
    """
    known = {**config.runtime.known, config.runtime.step_name: digest}
    found: dict[str, StepResult] = {}
    for recipe in config.runtime.lookup:
        if any(name not in known for name in recipe.inputs):
            continue
        known[recipe.name] = recipe_digest(recipe, known)
        manifest = store.manifest(known[recipe.name])
        if manifest and manifest.result:
            found[manifest.digest] = manifest.result
    return found


def recipe_digest(recipe: Recipe, known: dict[str, str]) -> str:
    """The digest of a recipe's result, from those of its inputs."""
    return step_digest(recipe.kind, recipe.payload, [known[name] for name in recipe.inputs])


def check_destination(destination: PublishPayload, store: Store) -> None:
    """Check that the finished model can be published, without writing anything.

    Raises:
        UserError: The folder is not writable, or the token may not write to the repository.
    """
    folder = store.resolve(destination.repository)
    if folder is None:
        from latticeforge_trainer import hub  # noqa: PLC0415  (only for Hub destinations)

        hub.check_destination(destination.repository)
        return
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"publish.repository {destination.repository}: {parent} is not writable")


def _finished(store: Store, digest: str, base: Base) -> PrepareResult | None:
    """The result of an earlier run, if data and base are still there."""
    manifest = store.manifest(digest)
    if manifest is None or not isinstance(manifest.result, PrepareResult):
        return None
    brought: dict[str, int] = manifest.extra["base"]
    whole = all(_size(base.folder / name) == size for name, size in brought.items())
    return _with_config(manifest.result, base) if whole else None


def _with_config(result: PrepareResult, base: Base) -> PrepareResult:
    """The result with the base's sizes, which earlier versions did not keep."""
    if result.base.config is not None:
        return result
    sizes = size_fields(read_config(base.folder, base.name))
    return result.model_copy(update={"base": result.base.model_copy(update={"config": sizes})})


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@dataclass
class _Preparation:
    """One run that finds no finished artifact."""

    config: PrepareConfig
    store: Store
    reporter: Reporter
    base: Base
    sources: list[Source]
    digest: str
    _counts: dict[int, int] = field(default_factory=dict)

    def run(self) -> PrepareResult:
        facts, renderer = self._check_base()
        self.reporter.learned(facts, f"checked {self.base.name}", 0.02)
        files = self._bring_data()
        self._check_data(files, renderer)
        tokenized = self._tokenize(files, renderer)
        sequences = self._pack(tokenized)
        length = self.config.payload.sequence_length
        need = self.base.missing_bytes() + len(sequences) * length * _BYTES_PER_TOKEN
        self._require_space(need, "the base model and the packed data")
        self._bring_weights()
        return self._write(facts, renderer, tokenized, sequences)

    def _check_base(self) -> tuple[ModelFacts, Renderer]:
        from latticeforge_trainer.data.rendering import load_renderer  # noqa: PLC0415  (heavy)

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
        renderer = load_renderer(folder, name)
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
        from latticeforge_trainer.data.formats import read_samples  # noqa: PLC0415  (as above)

        for number, source in enumerate(self.sources):
            count = 0
            for file in files[number]:
                self.reporter.update(f"reading {file.name}", 0.04)
                for position, located in enumerate(read_samples(file)):
                    if position == 0:
                        renderer.tokenize([located])
                    count += 1
            if count == 0:
                raise UserError(f"{source.spec.source} holds no samples")
            self._counts[number] = count

    def _tokenize(self, files: list[list[DataFile]], renderer: Renderer) -> list[TokenizedSource]:
        from latticeforge_trainer.data.formats import read_samples  # noqa: PLC0415  (as above)
        from latticeforge_trainer.data.rendering import tokenize_source  # noqa: PLC0415  (as above)

        length, total, before = self.config.payload.sequence_length, sum(self._counts.values()), 0
        tokenized = []
        for number, source in enumerate(self.sources):
            samples = (located for file in files[number] for located in read_samples(file))
            done = tokenize_source(samples, renderer, length, self._samples(before, total))
            if not len(done):
                raise UserError(
                    f"{source.spec.source}: none of its {done.skipped} samples has anything to "
                    f"learn within {length} tokens: no assistant turn, no completion, no text"
                )
            before += self._counts[number]
            tokenized.append(done)
        return tokenized

    def _pack(self, tokenized: list[TokenizedSource]) -> list[Order]:
        import numpy as np  # noqa: PLC0415  (as above)

        from latticeforge_trainer.data.mixing import mixed_epochs  # noqa: PLC0415  (as above)
        from latticeforge_trainer.data.packing import pack_epoch  # noqa: PLC0415  (as above)

        payload = self.config.payload
        self.reporter.update("packing", 0.4)
        lengths = [source.lengths for source in tokenized]
        sizes, weights = [len(s) for s in tokenized], [s.weight for s in payload.data]
        sequences: list[Order] = []
        for epoch, order in enumerate(mixed_epochs(sizes, weights, payload.epochs, payload.seed)):
            own = np.array([lengths[source][sample] for source, sample in order.tolist()])
            seed = payload.seed + epoch
            sequences += pack_epoch(order, own, payload.sequence_length, seed)
        return sequences

    def _bring_weights(self) -> None:
        total = sum(self.base.weights.values())
        self.base.bring_weights(self._bytes(self.base.name, total, 0.42, 0.5))

    def _write(
        self,
        facts: ModelFacts,
        renderer: Renderer,
        tokenized: list[TokenizedSource],
        sequences: list[Order],
    ) -> PrepareResult:
        from latticeforge_trainer.data.packing import write_packed  # noqa: PLC0415  (as above)

        self.reporter.update("writing the packed data", 0.93)
        length = self.config.payload.sequence_length
        with self.store.create(self.digest) as staging:
            counts = write_packed(staging.folder, sequences, tokenized, length, renderer.pad_token)
            result = PrepareResult(
                artifact=self.digest,
                base=facts,
                data=[_data_facts(*pair) for pair in zip(self.sources, tokenized, strict=True)],
                sequences=counts.sequences,
                tokens=counts.tokens,
                target_tokens=counts.target_tokens,
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


def _data_facts(source: Source, tokenized: TokenizedSource) -> DataFacts:
    return DataFacts(
        source=source.spec.source,
        revision=source.revision,
        samples=len(tokenized),
        tokens=int(tokenized.lengths.sum()),
        truncated=tokenized.truncated,
        skipped=tokenized.skipped,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
