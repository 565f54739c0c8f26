"""Writes what the chart takes from the code: `python -m charts.sync`, or `make chart`.

CRDs, permissions and the schema of a pool are said once, in the API models and in the operator's
list of permissions. The chart holds copies, because Helm reads nothing outside of it; `make check`
and a test refuse copies that are out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from charts.dashboard import dashboard

from latticeforge_operator.api.crds import all_crds, schema_of
from latticeforge_operator.api.pool import GPUPoolSpec
from latticeforge_operator.cli.crds import to_yaml
from latticeforge_operator.cluster import access

CHART = Path(__file__).parent / "latticeforge"

_NOTE = "{{- /* Generated; `make chart` writes it anew. */ -}}\n"
_CRD_HEAD = """\
{{- if .Values.crds.install }}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: %s
  labels:
    {{- include "latticeforge.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    # Without its definition every object of a kind is gone: uninstalling must not do that.
    helm.sh/resource-policy: keep
  {{- end }}
"""


def generated() -> dict[str, str]:
    """The text of every generated file, by its path in the chart."""
    return {
        **{f"templates/crds/{name}": _crd(crd) for name, crd in all_crds().items()},
        "templates/_rules.tpl": _rules(),
        "values.schema.json": _schema(),
        "files/dashboard.json": _json(dashboard()),
    }


def _crd(crd: dict[str, Any]) -> str:
    body = to_yaml({"spec": crd["spec"]})
    if "{{" in body:
        raise ValueError(f"{crd['metadata']['name']}: Helm would take {{{{ for its own")
    return f"{_NOTE}{_CRD_HEAD % crd['metadata']['name']}{body}{{{{- end }}}}\n"


def _rules() -> str:
    """Named templates of the operator's permissions, each rule with what it is needed for."""
    lists = {
        "inNamespace": access.IN_NAMESPACE,
        "inCluster": access.IN_CLUSTER,
        "everywhere": access.EVERYWHERE,
    }
    return _NOTE + "".join(_defined(name, rules) for name, rules in lists.items())


def _defined(name: str, rules: Sequence[access.Rule]) -> str:
    items = "".join(f"# {rule.why}\n{_flow([rule.to_json()])}" for rule in rules)
    return f'{{{{- define "latticeforge.rules.{name}" -}}}}\n{items}{{{{- end }}}}\n'


def _flow(document: Any) -> str:
    """YAML whose innermost lists stand on one line."""
    text: str = yaml.safe_dump(document, default_flow_style=None, sort_keys=False, width=200)
    return text


def _schema() -> str:
    """The schema of the values, with that of a pool as the API has it."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    schema["$defs"]["gpuPool"] = {**schema_of(GPUPoolSpec), "additionalProperties": False}
    return _json(schema)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def outdated() -> list[str]:
    """The generated files that are not what they would be today, by their path in the chart."""
    return [name for name, text in generated().items() if _stored(name) != text]


def _stored(name: str) -> str:
    path = CHART / name
    return path.read_text() if path.exists() else ""


def main() -> None:
    """Write every generated file; with --check, refuse those that are out of date."""
    if sys.argv[1:] == ["--check"]:
        if found := outdated():
            sys.exit(f"charts/latticeforge is out of date ({', '.join(found)}): make chart")
        return
    for name, text in generated().items():
        (CHART / name).write_text(text)


if __name__ == "__main__":
    main()
