"""The bundle: exactly the files that a published repository holds, with sizes and hashes.

Weights and tokenizer come from a sealed artifact; the card, the loss curve, the record and an
adapter's config are generated once per publish and kept in the step's work folder. A publish that
is killed and started again therefore sends the same bytes, whatever the cost reads by then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from latticeforge_trainer.artifacts import FileEntry, Store, sha256_of, write_atomically
from latticeforge_trainer.contract import ModelRef, PublishConfig
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.publishing import curve
from latticeforge_trainer.publishing.card import README, Card, render
from latticeforge_trainer.publishing.lineage import Lineage, gather

RECORD = "latticeforge.json"
"""The record of what was published; also what marks a destination folder as ours."""

CURVE = "loss_curve.png"
ADAPTER_CONFIG = "adapter_config.json"
GENERATED = {README, CURVE, RECORD}
"""What a publish makes itself, beside an adapter's config."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_GENERATION_CONFIG = "generation_config.json"
_PUBLISHABLE = {".safetensors", ".json", ".jinja", ".txt", ".model"}
"""Weights as safetensors, and text: nothing that runs code when it is loaded."""
_LICENCE = "LICENSE"
"""How the names of licence files begin, whatever they end with."""


class Report(Protocol):
    """How progress is told; `Reporter.update` is one."""

    def __call__(
        self, message: str, fraction: float = ..., *, eta_seconds: float | None = ...
    ) -> None:
        """Tell a sentence, the fraction done, and the seconds that are left."""


@dataclass(frozen=True)
class BundleFile:
    """One file to publish."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What a destination will hold: path in the repository → file."""

    files: dict[str, BundleFile]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files.values())

    @property
    def digest(self) -> str:
        """The SHA-256 over names and content hashes, 64 hexadecimal digits."""
        return content_digest({name: file.sha256 for name, file in self.files.items()})


def content_digest(hashes: dict[str, str]) -> str:
    """The SHA-256 over `name → SHA-256` of a set of files, in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def build(config: PublishConfig, store: Store, destination: str, report: Report) -> Bundle:
    """Collect the files, writing those that are generated unless an earlier attempt did.

    Args:
        config: The publish step.
        store: Where the model and the lineage are.
        destination: What loaders are given: a Hub repository or an absolute folder.
        report: Told which file is being checked.

    Raises:
        UserError: The model cannot be published as asked, is missing, damaged or unsafe.
    """
    digest, folder = _weights(config)
    files = _checked(store, digest, folder, report)
    if "tokenizer_config.json" not in files:
        files |= _from_base(config, store)
    generated = store.work(config.digest) / "generated"
    if not (generated / RECORD).exists():
        shutil.rmtree(generated, ignore_errors=True)
        generated.mkdir()
        _generate(generated, config, store, destination, files)
    for path in sorted(generated.iterdir()):
        files[path.name] = BundleFile(path, path.stat().st_size, sha256_of(path))
    return Bundle(files)


def _weights(config: PublishConfig) -> tuple[str, str]:
    """The artifact that holds the weights, and the folder in it."""
    model, kind = config.runtime.model, config.payload.artifact
    if kind == "Merged":
        if model.artifact is None or model.adapter is not None:
            raise UserError(
                f"stage {model.name} ends in an adapter that is not merged: set handoff: Merge on "
                "it, or publish.artifact: Adapter"
            )
        return model.artifact, "model"
    if model.adapter is None:
        raise UserError(
            f"stage {model.name} leaves no adapter behind, it changes all weights: set "
            "publish.artifact: Merged"
        )
    if model.artifact is not None:
        raise UserError(
            f"the adapter of stage {model.name} sits on the weights of an earlier stage, which are "
            "not published: set publish.artifact: Merged"
        )
    return model.adapter, "adapter"


def _checked(store: Store, digest: str, folder: str, report: Report) -> dict[str, BundleFile]:
    """The artifact's files below `folder`, each safe to load and as it was sealed."""
    root = store.require(digest, "the model to publish")
    manifest = store.manifest(digest)
    entries = _below(manifest.files if manifest else {}, folder)
    if not any(name.endswith(".safetensors") for name in entries):
        raise UserError(f"the artifact {digest[:12]} holds no weights in {folder}/")
    total = sum(entry.size for entry in entries.values())
    files, done = {}, 0
    for name, entry in entries.items():
        report(f"checking {name}", done / total)
        path = root / folder / name
        if sha256_of(path) != entry.sha256:
            raise UserError(
                f"{name} in the store is not what was written ({digest[:12]}): the volume is "
                "damaged; delete the artifact's folder and run the stage again"
            )
        files[name] = BundleFile(path, entry.size, entry.sha256)
        done += entry.size
    return files


def _below(files: dict[str, FileEntry], folder: str) -> dict[str, FileEntry]:
    prefix = f"{folder}/"
    # PEFT leaves a README.md of its own beside an adapter; ours takes its place.
    names = [n for n in files if n.startswith(prefix) and n != f"{prefix}{README}"]
    for name in names:
        path = PurePosixPath(name)
        if path.suffix not in _PUBLISHABLE and not path.name.startswith(_LICENCE):
            raise UserError(
                f"{name} is not published: only safetensors weights and text files are, since "
                "anything else may run code when it is loaded"
            )
    return {name.removeprefix(prefix): files[name] for name in names}


def _from_base(config: PublishConfig, store: Store) -> dict[str, BundleFile]:
    """The base's tokenizer, for an artifact that has none of its own."""
    folder = store.resolve(config.runtime.base_path)
    if folder is None:
        return {}
    wanted = [*TOKENIZER_FILES, *([_GENERATION_CONFIG] if _is_merged(config) else [])]
    paths = [path for name in wanted if (path := folder / name).is_file()]
    return {path.name: BundleFile(path, path.stat().st_size, sha256_of(path)) for path in paths}


def _is_merged(config: PublishConfig) -> bool:
    return config.payload.artifact == "Merged"


def _generate(
    folder: Path,
    config: PublishConfig,
    store: Store,
    destination: str,
    files: dict[str, BundleFile],
) -> None:
    """Write card, curve and adapter config, then the record: its presence means all are there."""
    lineage, runtime = gather(config, store), config.runtime
    drawn = curve.draw(lineage.stages, folder / CURVE)
    card = Card(
        title=runtime.title,
        destination=destination,
        artifact=config.payload.artifact,
        cost=runtime.cost,
        curve=CURVE if drawn else None,
        parts=_parts(runtime.model, lineage),
    )
    write_atomically(folder / README, render(card, lineage).encode())
    if not _is_merged(config):
        adapter_config = _public_adapter_config(files[ADAPTER_CONFIG].path, lineage)
        write_atomically(folder / ADAPTER_CONFIG, adapter_config)
    generated = {path.name: sha256_of(path) for path in folder.iterdir()}
    hashes = {name: file.sha256 for name, file in files.items()} | generated
    write_atomically(folder / RECORD, _record(config, lineage, hashes))


def _parts(model: ModelRef, lineage: Lineage) -> dict[str, str]:
    parts = {"base": lineage.base_revision}
    parts |= {f"stage {stage.record.name}, trained": stage.record.train for stage in lineage.stages}
    if model.adapter:
        return parts | {"published adapter": model.adapter}
    return parts | {"published model": model.artifact or ""}


def _public_adapter_config(path: Path, lineage: Lineage) -> bytes:
    """PEFT's config, naming the base as anyone can load it instead of a path in the store."""
    config: dict[str, Any] = json.loads(path.read_bytes())
    config["base_model_name_or_path"] = lineage.base_reference
    config["revision"] = lineage.base_revision if lineage.base_hub_id else None
    return json.dumps(config, indent=2, sort_keys=True).encode()


def _record(config: PublishConfig, lineage: Lineage, hashes: dict[str, str]) -> bytes:
    record = {
        "digest": config.digest,
        "artifact": config.payload.artifact,
        **lineage.to_json(),
        "files": dict(sorted(hashes.items())),
    }
    return (json.dumps(record, indent=1) + "\n").encode()
