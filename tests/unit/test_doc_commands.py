"""Commands in the documents exist: subcommands, options, values of the chart, kinds, files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from tests.fixtures.command_lines import PROGRAMS, CommandLine, command_lines, within_sentences
from tests.fixtures.documents import DOCUMENTS, ROOT, inline_code, snippets
from tests.fixtures.manifest_checks import MINIMAL, SCHEMAS, check_values, completed, problems
from tests.tools import tool

from latticeforge_operator.api.crds import all_crds
from latticeforge_operator.cli.commands import group
from latticeforge_operator.cluster.names import STEP_LABEL, TRAINING_LABEL
from latticeforge_operator.core.walk import APPROVE_ANNOTATION
from latticeforge_operator.devcluster.builtins import builtin_resources

COMMANDS = [
    *(command for snippet in snippets() for command in command_lines(snippet)),
    *(command for path in DOCUMENTS for command in within_sentences(path)),
]
OURS = {crd["spec"]["names"]["kind"]: crd["spec"] for crd in all_crds().values()}
OF_OTHERS = {"all", "localqueues", "clusterqueues", "workloads", "servicemonitors"}
"""Resources that documents may name, and neither Kubernetes nor we define."""


def of(program: str) -> list[CommandLine]:
    return [command for command in COMMANDS if command.words[0] == program]


def options(command: CommandLine, *names: str) -> Iterator[str]:
    """The values of an option, however it is written."""
    words = iter(command.words)
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            yield value if equals else next(words)


def test_there_are_commands_of_every_program() -> None:
    assert {command.words[0] for command in COMMANDS} == PROGRAMS


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_files_of_the_repository_exist(command: CommandLine) -> None:
    folder = ROOT / command.folder
    for word in command.words[1:]:
        top, slash, _ = word.partition("/")
        if slash and (folder / top).is_dir():
            assert (folder / word).exists(), word


# --- latticeforge


def check_options(words: list[str]) -> list[str]:
    """Parse as click does, but for whether files exist and something is missing.

    Returns:
        What is left over.
    """
    command: click.Command = group
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    given, rest, order = command.make_parser(click.Context(command)).parse_args(words)
    for param in order:
        if isinstance(param.type, (click.Choice, click.IntRange)):
            convert: Callable[..., object] = param.type.convert
            value = given[param.name]
            for item in value if isinstance(value, list) else str(value).split("|"):
                convert(item, param, None)
    return rest


@pytest.mark.parametrize("command", of("latticeforge"), ids=str)
def test_latticeforge_knows_its_options(command: CommandLine) -> None:
    assert check_options(list(command.words[1:])) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_latticeforge_knows_what_sentences_name(path: Path) -> None:
    for code in inline_code(path):
        words = code.partition(" | ")[0].split()
        if words[:1] != ["latticeforge"] or len(words) == 1 or words[1].isupper():
            continue
        for name in words[1].split("|"):
            check_options([name, *words[2:]])


# --- make


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_has_what_sentences_name(path: Path) -> None:
    for code in inline_code(path):
        if code.startswith("make "):
            check_make(code.split()[1:])


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_make_has_the_target(command: CommandLine) -> None:
    check_make(command.words[1:])


def check_make(words: Any) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) \?=", makefile, re.MULTILINE)
    for word in words:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets), word


# --- Helm


@pytest.mark.parametrize("command", of("helm"), ids=str)
def test_values_are_the_charts(command: CommandLine) -> None:
    values: dict[str, Any] = {}
    for option in options(command, "--set"):
        _set(values, option, typed=True)
    for option in options(command, "--set-string"):
        _set(values, option, typed=False)
    check_values(values)


def _set(values: dict[str, Any], option: str, *, typed: bool) -> None:
    """What Helm makes of `a.b=x`, `a={x,y}` and `a=x,b=y`."""
    for pair in re.split(r"(?<!\\),(?![^{]*\})", option):
        path, _, text = pair.partition("=")
        *parents, last = (name.replace("\\", "") for name in re.split(r"(?<!\\)\.", path))
        target = values
        for name in parents:
            target = target.setdefault(name, {})
        target[last] = _value(text, typed=typed)


def _value(text: str, *, typed: bool) -> Any:
    if text.startswith("{"):
        return [_value(item, typed=typed) for item in text[1:-1].split(",")]
    return yaml.safe_load(text) if typed and re.fullmatch(r"true|false|null|\d+", text) else text


# --- kubectl


def resources() -> dict[str, str]:
    """The kind of every word that kubectl takes for a resource."""
    words = dict.fromkeys(OF_OTHERS, "")
    for resource in builtin_resources():
        names = (resource.key.plural, resource.kind.lower(), *resource.short_names)
        words |= dict.fromkeys(names, resource.kind)
    for kind, spec in OURS.items():
        names = spec["names"]
        known = (names["plural"], names["singular"], *names["shortNames"])
        words |= dict.fromkeys((*known, f"{names['plural']}.{spec['group']}"), kind)
    return words


NAMING = {"annotate", "delete", "describe", "edit", "explain", "get", "label", "patch", "wait"}
WITH_VALUES = {"-n", "--namespace", "-o", "-l", "-f", "-p", "--type", "--sort-by", "--selector"}
"""Options of kubectl whose value may be the next word."""


def kinds(command: CommandLine) -> list[str]:
    """The kinds that a command of kubectl names, `Kind.path` for a field."""
    words = list(command.words[1:])
    positional = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in WITH_VALUES
    ]
    verb, *rest = positional
    if verb not in NAMING or not rest:
        return []
    known = resources()
    named = [known.get(word, word) for word in rest[0].partition("/")[0].split(",")]
    if verb == "explain":
        kind, _, path = rest[0].partition(".")
        return [f"{known.get(kind, kind)}.{path}"]
    assert set(named) <= set(known.values()), f"kubectl knows no {rest[0]}"
    return named


def field(schema: Any, path: str) -> Any:
    """The schema below a path such as `.status.stages[*].name`."""
    for name in re.findall(r"\w+", re.sub(r"\[[^\]]*\]", "", path)):
        assert name in schema.get("properties", {}) or "properties" not in schema, path
        schema = schema.get("properties", {}).get(name, {})
        schema = schema.get("items", schema)
    return schema


@pytest.mark.parametrize("command", of("kubectl"), ids=str)
def test_kubectl_finds_kinds_fields_and_labels(command: CommandLine) -> None:
    named = kinds(command)
    ours = [name.partition(".") for name in named if name.partition(".")[0] in OURS]
    for kind, _, path in ours:
        field(SCHEMAS[kind], path)
        for shown in _paths_shown(command):
            field(SCHEMAS[kind], shown)
        for patch in options(command, "-p", "--patch"):
            part = {k: v for k, v in json.loads(patch).items() if k != "metadata"}
            assert list(problems(kind, completed(part, MINIMAL[kind]))) == []
    marks = re.findall(r"\blatticeforge\.dev/[a-z-]+(?==)", " ".join(command.words))
    assert set(marks) <= {TRAINING_LABEL, STEP_LABEL, APPROVE_ANNOTATION}


def _paths_shown(command: CommandLine) -> list[str]:
    """Paths of a JSONPath, of custom columns and of an order, but for metadata."""
    given = [*options(command, "-o", "--output"), *options(command, "--sort-by", "--for")]
    return re.findall(r"\.(?:spec|status)[\w.\[\]*]*", " ".join(given))


@pytest.mark.parametrize("command", of("kubectl"), ids=str)
def test_kubectl_prints_the_columns_that_it_is_shown_to(command: CommandLine) -> None:
    named = kinds(command)
    if "get" not in command.words or len(named) != 1 or named[0] not in OURS:
        return
    output = next(options(command, "-o", "--output"), "")
    if output not in {"", "wide"} or "NAME" not in command.output:
        return
    versions = OURS[named[0]]["versions"][0]["additionalPrinterColumns"]
    shown = [c["name"].upper() for c in versions if output or not c.get("priority")]
    header = re.split(r" {2,}", command.output.splitlines()[0].strip())
    assert [name for name in header if name != "NAMESPACE"] == ["NAME", *shown]


# --- options of Helm and kubectl, as they say themselves


@cache
def _help(program: str, verb: str) -> str:
    command = [tool(program), verb, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    common = [tool(program), "options"] if program == "kubectl" else [tool(program), "--help"]
    return told + subprocess.run(common, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", [*of("helm"), *of("kubectl")], ids=str)
def test_helm_and_kubectl_know_their_options(command: CommandLine) -> None:
    program, verb, *rest = command.words
    if verb.startswith("-"):
        pytest.fail(f"{verb}: write options after the verb")
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", _help(program, verb)))
    given = {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"}
    assert given <= known
