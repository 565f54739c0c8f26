"""The first line of a plan: what is planned. It costs no more than reading the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latticeforge_operator.cli.yaml_lines import MalformedYAMLError, read_documents


def heading(path: Path) -> str | None:
    """Such as `elle: math (LoRA), cic (Full) from owner/model`.

    Returns:
        None for a file in which that cannot be found; whoever reads it next says why.
    """
    try:
        objects = [document.value for document in read_documents(path.read_text())]
        stack = next(o for o in objects if o["kind"] == "StackedTraining")
        name, model = stack["metadata"]["name"], stack["spec"]["base"]["model"]
        stages = ", ".join(_stage(stage) for stage in stack["spec"]["stages"])
    except (OSError, UnicodeDecodeError, MalformedYAMLError):
        return None
    except (StopIteration, KeyError, TypeError):
        return None
    return f"{name}: {stages} from {model}"


def _stage(stage: dict[str, Any]) -> str:
    return f"{stage['name']} ({stage.get('method', 'LoRA')})"
