"""A base with another chat template, vocabulary or special tokens, as a model folder of its own.

The folder holds the changed tokenizer, and links to everything else of the base. All later steps
start from it, so training, evaluation and the published model use the same tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from latticeforge_trainer.artifacts import Store, write_atomically
from latticeforge_trainer.contract import TokenizerChanges, digest_of
from latticeforge_trainer.models.base import Base, locate_base
from latticeforge_trainer.models.tokenizers import (
    open_tekken,
    open_tokenizer,
    set_special_tokens,
    template_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION, TOKENIZER_CONFIG = "generation_config.json", "tokenizer_config.json"

_OF_LOADING = frozenset({"is_local", "local_files_only"})
"""How the tokenizer was opened, which transformers writes down beside what it is."""

_REWRITTEN = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""What a tokenizer is saved as; what it no longer writes is not taken over from the base."""


@dataclass(frozen=True)
class Changes:
    """What a stack changes of its base's tokenizer.

    Attributes:
        spec: As its user wrote it.
        model: Whose chat template is taken, if that is asked for.
    """

    spec: TokenizerChanges
    model: Base | None

    @classmethod
    def locate(cls, spec: TokenizerChanges | None, store: Store) -> Changes | None:
        """Find what the changes need, at the revision it has now; None if nothing is changed.

        Raises:
            UserError: The model with the chat template is not there or may not be read.
            NetworkError: The Hub does not answer.
        """
        if spec is None:
            return None
        source = spec.chat_template and spec.chat_template.model
        return cls(spec, locate_base(source, store) if source else None)

    @property
    def resolved(self) -> TokenizerChanges:
        """The changes with the revision that was found."""
        template = self.spec.chat_template
        if template is None or template.model is None or self.model is None:
            return self.spec
        model = template.model.model_copy(update={"revision": self.model.revision})
        changed = template.model_copy(update={"model": model})
        return self.spec.model_copy(update={"chat_template": changed})

    @property
    def digest(self) -> str:
        """Names exactly these changes."""
        return digest_of("tokenizer", self.resolved.to_json())

    def folder(self, base: Base, store: Store) -> Path:
        """Where the changed base lives; made if missing."""
        return store.model_folder(
            digest_of("changed", str(base.folder), base.revision, self.digest)
        )

    def write(self, base: Base, store: Store) -> Path:
        """Write the changed tokenizer beside links to the base's other small files.

        Raises:
            UserError: There is no such token or template, or no usable tokenizer.
        """
        folder = self.folder(base, store)
        opened = open_tekken if self.spec.vocabulary == "Tekken" else open_tokenizer
        tokenizer = opened(base.folder, base.name)
        if self.spec.chat_template is not None:
            source = None
            if self.model is not None:
                self.model.bring_small()
                source = self.model.folder
            tokenizer.chat_template = template_text(self.spec.chat_template, source)
        if self.spec.special_tokens is not None:
            set_special_tokens(tokenizer, self.spec.special_tokens, base.name)
        _save(tokenizer, folder)
        kept = [n for n in base.small if not any(fnmatch(n, pattern) for pattern in _REWRITTEN)]
        self._link(base, {*kept} - {GENERATION}, store)
        generation = _generation_config(base.folder / GENERATION, tokenizer.eos_token_id)
        write_atomically(folder / GENERATION, generation)
        return folder

    def link_weights(self, base: Base, store: Store) -> None:
        """Link the weights, once they are there."""
        self._link(base, base.weights, store)

    def _link(self, base: Base, names: Iterable[str], store: Store) -> None:
        folder = self.folder(base, store)
        inside = base.folder.is_relative_to(store.root)  # the volume may be mounted elsewhere later
        for name in names:
            source = base.folder / name
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(os.path.relpath(source, folder) if inside else source)


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files over whatever is there; a link is replaced, not followed."""
    with TemporaryDirectory(dir=folder.parent) as staging:
        tokenizer.save_pretrained(staging)
        config = Path(staging) / TOKENIZER_CONFIG
        fields: dict[str, Any] = json.loads(config.read_text())
        kept = {name: value for name, value in fields.items() if name not in _OF_LOADING}
        config.write_text(json.dumps(kept, indent=1))
        for path in Path(staging).iterdir():
            path.replace(folder / path.name)


def _generation_config(path: Path, end: int | None) -> bytes:
    """A base's generation config in which the tokenizer's end token comes first."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    ends = document.get("eos_token_id")
    known = ends if isinstance(ends, list) else [ends]
    document["eos_token_id"] = list(dict.fromkeys(e for e in (end, *known) if e is not None))
    return json.dumps(document, indent=1).encode()
