"""Every command and option of `latticeforge`; what a command does is imported when it runs.

    latticeforge run FILE         a whole stack on this machine, shown live
    latticeforge plan FILE        does it fit, how long, how many dollars; before anything runs
    latticeforge status | watch   the same picture, from any cluster
    latticeforge devcluster       the one-machine cluster alone, for kubectl and Helm
    latticeforge data             training data and held-out problems of both domains
    latticeforge import axolotl   a StackedTraining out of Axolotl configs
    latticeforge crds             the custom resource definitions

Importing this module costs click alone, so `latticeforge --help` is instant.
"""

# ruff: noqa: PLC0415  (a command imports what it needs when it runs: --help stays instant)
from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from latticeforge_operator import __version__

_EXTRAS = "latticeforge[operator,devcluster,trainer]"


def _example(line: str) -> str:
    """What the help ends with; the mark keeps click from breaking the line."""
    return f"\b\nExample:\n  {line}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="latticeforge")
def group() -> None:
    """One YAML file in; a finished, evaluated, published language model out."""


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: Always, with the command's exit code.
    """
    try:
        group()
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root.startswith("latticeforge"):
            raise
        sys.exit(f"Error: this command needs the package {root}; pip install '{_EXTRAS}'")


@group.command(epilog=_example("latticeforge run examples/quickstart.yaml --workdir quickstart"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workdir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The stack's storage volume: relative paths in FILE start here.  [default: this folder]",
)
@click.option("-n", "--namespace", help="Namespace of the stack.  [default: FILE's, or default]")
def run(file: Path, workdir: Path, namespace: str | None) -> None:
    """Run the stack in FILE on this machine and show it live.

    Exits with 0 when the model is finished, 1 when the stack failed and 130 when it was
    interrupted. Ctrl-C saves a checkpoint; the same command continues. Finished steps are reused.
    """
    from latticeforge_operator.cli.run import run_stack

    sys.exit(run_stack(file, workdir, namespace))


@group.command(
    epilog=_example("latticeforge plan examples/qwen2.5-72b-full.yaml --tokens 12M --explain")
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--pools",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with GPUPools.  [default: those in FILE, else those of the cluster in KUBECONFIG]",
)
@click.option(
    "--config",
    type=click.Path(exists=True, path_type=Path),
    help="The base's config.json, or the folder that holds it.  [default: the base's own]",
)
@click.option(
    "--tokens",
    multiple=True,
    metavar="[STAGE=]N",
    help="Tokens of one epoch, such as 12M, where nobody has counted them.",
)
@click.option(
    "--workdir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where relative paths in FILE start.  [default: this folder]",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="As what to print the plan.",
)
@click.option("--explain", is_flag=True, help="Show every term of memory, disk and time.")
def plan(
    file: Path,
    *,
    pools: Path | None,
    config: Path | None,
    tokens: tuple[str, ...],
    workdir: Path,
    output: Literal["table", "json", "yaml"],
    explain: bool,
) -> None:
    """Say whether the stack in FILE fits, how long it takes and what it costs; run nothing.

    Exits with 1 when no option fits, or is within budget and deadline.
    """
    from latticeforge_operator.cli.heading import heading

    if output == "table" and (line := heading(file)):
        click.echo(line)  # before everything that takes time
    from latticeforge_operator.cli.plan import print_plan

    code = print_plan(
        file,
        pools=pools,
        config=config,
        tokens=tokens,
        volume=workdir,
        output=output,
        explain=explain,
    )
    sys.exit(code)


@group.command(epilog=_example("latticeforge status elle-72b-math -n research"))
@click.argument("name", required=False)
@click.option("-n", "--namespace", help="Namespace.  [default: the kubeconfig's]")
@click.option("-A", "--all-namespaces", is_flag=True, help="List the stacks of all namespaces.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    help="As what to print it; json and yaml are the objects themselves.",
)
def status(
    name: str | None,
    *,
    namespace: str | None,
    all_namespaces: bool,
    output: Literal["table", "json", "yaml"],
) -> None:
    """Show one stack, or list all of a namespace, from the cluster in KUBECONFIG."""
    from latticeforge_operator.cli.inspect import list_stacks, show_stack

    if all_namespaces and (name or namespace):
        raise click.UsageError("--all-namespaces lists stacks; leave out NAME and --namespace")
    if name is None:
        list_stacks(namespace, output, everywhere=all_namespaces)
    else:
        show_stack(name, namespace, output)


@group.command(epilog=_example("latticeforge watch elle-72b-math -n research"))
@click.argument("name")
@click.option("-n", "--namespace", help="Namespace.  [default: the kubeconfig's]")
def watch(name: str, namespace: str | None) -> None:
    """Follow a stack of the cluster in KUBECONFIG until it ends; Ctrl-C only stops watching.

    Exits as `run` does: with 0 when the stack succeeded, 1 when it did not, 130 after Ctrl-C.
    """
    from latticeforge_operator.cli.inspect import watch_stack

    sys.exit(watch_stack(name, namespace))


def _named_folders(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, Path]:
    """Folders by name, out of `NAME=FOLDER`."""
    folders = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not (name and folder and Path(folder).is_dir()):
            raise click.BadParameter(f"{text} is not NAME=FOLDER with a folder that exists")
        folders[name] = Path(folder)
    return folders


@group.command(epilog=_example("latticeforge devcluster --kubeconfig kubeconfig"))
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".latticeforge/devcluster"),
    show_default=True,
    help="Where its objects, logs and pod folders are kept.",
)
@click.option("--port", default=0, help="Port on loopback.  [default: a free one]")
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the kubeconfig here too.",
)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=FOLDER",
    callback=_named_folders,
    help="A PersistentVolumeClaim of namespace default that is this folder.",
)
@click.option("--crds/--no-crds", default=True, show_default=True, help="Install LatticeForge's.")
def devcluster(
    data_dir: Path,
    *,
    port: int,
    kubeconfig: Path | None,
    claims: dict[str, Path],
    crds: bool,
) -> None:
    """Serve the one-machine cluster until Ctrl-C, for kubectl, Helm and an operator.

    Helm brings the definitions itself: pass --no-crds where the chart is to be installed.
    """
    from latticeforge_operator.cli.serve import serve_devcluster

    serve_devcluster(data_dir, port=port, kubeconfig=kubeconfig, claims=claims, with_crds=crds)


@group.command(epilog=_example("latticeforge data cic --n 1000 -o cic.jsonl"))
@click.argument("kind", type=click.Choice(["cic", "math"]))
@click.option("--n", "count", type=click.IntRange(min=1), required=True, help="Samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same file.")
@click.option(
    "--split",
    type=click.Choice(["train", "heldout"]),
    default="train",
    show_default=True,
    help="The splits share no problem, whatever the seeds.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="JSONL file to write.",
)
def data(
    kind: Literal["cic", "math"],
    count: int,
    seed: int,
    split: Literal["train", "heldout"],
    output: Path,
) -> None:
    """Write KIND problems with their worked answers as chat samples."""
    from latticeforge_operator.cli.data import write_data

    write_data(kind, count, seed=seed, split=split, output=output)


@group.group("import")
def import_() -> None:
    """Bring the files of another trainer."""


_CONFIG = click.Path(exists=True, dir_okay=False, path_type=Path)


@import_.command(epilog=_example("latticeforge import axolotl config.yaml --gpus 8 -o stack.yaml"))
@click.argument("config", type=_CONFIG)
@click.option("--then", "later", type=_CONFIG, multiple=True, help="Config of the next stage.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: print it]",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    help="GPUs, by which Axolotl multiplies the batch.  [default: one for the batch; planner's]",
)
@click.option("--pool", help="GPUPool to train on.  [default: the planner's choice]")
@click.option("--name", help="Name of the StackedTraining.  [default: hub_model_id's, or CONFIG's]")
@click.option("--storage", default="1Ti", show_default=True, help="Size of the volume.")
@click.option("--budget", help="Most money that it may cost, in USD.  [default: no limit]")
@click.option(
    "--report",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How what became of every key is printed, on standard error.",
)
@click.option(
    "--allow-unsupported", is_flag=True, help="Import the rest of a config that asks for more."
)
def axolotl(
    config: Path,
    *,
    later: tuple[Path, ...],
    output: Path | None,
    gpus: int | None,
    pool: str | None,
    name: str | None,
    storage: str,
    budget: str | None,
    form: Literal["table", "json"],
    allow_unsupported: bool,
) -> None:
    """Turn CONFIG, and those that follow it, into one StackedTraining.

    Every key of a config is mapped, implied (LatticeForge decides it), ignored (no influence on the
    model), or unsupported: then nothing is imported unless --allow-unsupported says so.
    """
    from latticeforge_operator.axolotl.stack import Options
    from latticeforge_operator.cli.importing import import_axolotl

    options = Options(name=name, pool=pool, gpus=gpus, storage=storage, budget=budget)
    import_axolotl(
        [config, *later], options, allow_unsupported=allow_unsupported, form=form, output=output
    )


@group.command(epilog=_example("latticeforge crds | kubectl apply -f -"))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write one file per kind into this folder instead of printing them.",
)
def crds(output: Path | None) -> None:
    """Print the custom resource definitions, for kubectl apply."""
    from latticeforge_operator.cli.crds import print_crds, write_crds

    if output is None:
        print_crds()
    else:
        write_crds(output)
