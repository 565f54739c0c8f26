"""Keys that say what a stage learns from, and how its data is brought."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from latticeforge_operator.axolotl.datasets import EXCESS, entry_lines
from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.rules import Key, decided, harmless, keys, refused, switches
from latticeforge_operator.axolotl.settings import (
    Settings,
    WrongValueError,
    mappings,
    shown,
    text,
    whole,
)


def _datasets(_key: str, value: list[dict[str, Any]], settings: Settings) -> Iterator[Line]:
    place = 0
    for number, entry in enumerate(value):
        lines = entry_lines(number, entry, settings, place)
        place += sum(path.endswith(".source") for line in lines for path in line.fields)
        yield from lines
    if place > 1:
        sentence = "every sample once per epoch, whatever the data set"
        yield mapped("datasets", sentence, {"mixing": "Concatenate"})


def _tests(key: str, _value: Any, _settings: Settings) -> Iterable[Line]:
    yield ignored(key, "only measured on, never learned from; evaluate gates say how good it is")


def _strategy(value: Any) -> str:
    found = text(value)
    if found not in EXCESS:
        raise WrongValueError(f"must be one of {', '.join(EXCESS)}, not {shown(value)}")
    return found


def _minimum(key: str, value: int, _settings: Settings) -> Iterable[Line]:
    if value > 1:
        yield mapped(key, f"data.minimumLength {value}", {})
    else:
        yield ignored(key, "keeps every sample")


DATA: dict[str, Key] = {
    **keys("datasets", _datasets, mappings),
    **keys("test_datasets", _tests, mappings),
    **keys(
        "excess_length_strategy",
        lambda key, value, _: [mapped(key, f"data.excessLength {EXCESS[value]}", {})],
        _strategy,
    ),
    **switches(
        "train_on_inputs",
        lambda key, value, _: [
            mapped(key, f"data.trainOn: prompts are {'' if value else 'not '}learned", {})
        ],
    ),
    **keys("min_sample_len", _minimum, whole),
    **keys("max_prompt_len", harmless("belongs to preference training")),
    **switches(
        "shuffle_merged_datasets",
        lambda key, value, _: [
            implied(key, "samples are shuffled")
            if value
            else unsupported(key, "samples keep the file's order; shuffled here")
        ],
    ),
    **keys("shuffle_before_merging_datasets", decided("samples are shuffled")),
    **switches("dataset_exact_deduplication", refused("repeated samples are kept here")),
    **keys("dataset_shard_num dataset_shard_idx", refused("a part of the rows; write a slice")),
    **switches("streaming", decided("rows are read as a stream")),
    **keys(
        "dataset_prepared_path num_dataset_shards_to_save skip_prepare_dataset "
        "push_dataset_to_hub is_preprocess preprocess_iterable",
        decided("prepared data is kept in the store, under its digest"),
    ),
    **keys(
        "dataset_processes dataset_num_proc dataset_keep_in_memory dataloader_pin_memory "
        "dataloader_num_workers dataloader_prefetch_factor streaming_multipack_buffer_size "
        "pretrain_multipack_buffer_size",
        decided("data is packed before training, and read from memory-mapped arrays"),
    ),
    **keys("dataloader_drop_last", decided("every sample of an epoch is learned from")),
    **keys("remove_unused_columns", decided("columns without use are left alone")),
    **keys("total_num_tokens total_supervised_tokens", decided("counted exactly by prepare")),
    **keys("hf_use_auth_token", decided("HF_TOKEN is used where it is set")),
}
"""Keys of this module, with their rules."""
