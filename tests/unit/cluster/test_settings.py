"""What the environment tells the operator, and what a platform chooses for its stacks."""

from __future__ import annotations

import pytest
from tests.unit.core.builders import spec, stack

from latticeforge_operator.cluster.settings import DEFAULT_TRAINER_IMAGE, Settings

ENVIRONMENT = {
    "LATTICEFORGE_TRAINER_IMAGE": "trainer:1",
    "LATTICEFORGE_TRAINER_PULL_SECRETS": "a,b",
    "LATTICEFORGE_PROGRESS_INTERVAL": "5",
    "LATTICEFORGE_STORAGE_CLASS": "block",
    "LATTICEFORGE_SHARED_STORAGE_CLASS": "files",
    "LATTICEFORGE_QUEUE": "research",
    "HF_ENDPOINT": "https://hub",
}


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert Settings.from_environment() == Settings(trainer_image=DEFAULT_TRAINER_IMAGE)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment(("team",)) == Settings(
        trainer_image="trainer:1",
        pull_secrets=("a", "b"),
        progress_interval="5",
        storage_class="block",
        shared_storage_class="files",
        queue="research",
        hub_endpoint="https://hub",
        namespaces=("team",),
    )


@pytest.mark.parametrize(
    ("named", "default", "queue"),
    [(None, None, None), (None, "shared", "shared"), ("own", "shared", "own")],
)
def test_stacks_that_name_no_queue_go_to_the_platforms(
    named: str | None, default: str | None, queue: str | None
) -> None:
    training = stack(spec(compute={"gpus": 2} | ({"queue": named} if named else {})))
    compute = Settings(queue=default).completed(training).spec.compute
    assert (compute.queue, compute.gpus) == (queue, 2)
