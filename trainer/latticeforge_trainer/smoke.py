"""Whether an image holds what the steps need: `python -m latticeforge_trainer.smoke`.

Imports every module of the trainer and every package that its extras name, compiles a C extension
as Triton does for its kernels, and prints the versions. Needs no GPU and no network, and writes
where Triton keeps its cache. `make images` runs it in what it built.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from importlib import metadata

import latticeforge_trainer

DISTRIBUTION = "latticeforge"
EXTRAS = ("trainer", "mistral")
NAME = "latticeforge_smoke"
SOURCE = f"""
#include <Python.h>
static struct PyModuleDef module = {{PyModuleDef_HEAD_INIT, "{NAME}", NULL, -1, NULL}};
PyMODINIT_FUNC PyInit_{NAME}(void) {{ return PyModule_Create(&module); }}
"""


def required() -> list[str]:
    """Names of the distributions that the extras ask for, in their order."""
    lines = metadata.requires(DISTRIBUTION) or []
    marked = re.compile(rf"([\w.-]+).*;.*extra == ['\"]({'|'.join(EXTRAS)})['\"]")
    return [found[1] for line in lines if (found := marked.match(line))]


def import_everything(names: list[str]) -> None:
    """Import our own modules, and the packages of distributions, called as these are.

    Raises:
        ImportError: One of them, or what it needs, is not there.
    """
    for module in pkgutil.walk_packages(latticeforge_trainer.__path__, "latticeforge_trainer."):
        importlib.import_module(module.name)
    for name in names:
        importlib.import_module(name.lower().replace("-", "_"))


def compile_extension() -> None:
    """Compile and load a C extension, with the compiler and the cache that Triton's kernels get.

    Raises:
        RuntimeError: There is no C compiler.
        subprocess.CalledProcessError: It does not find Python's headers.
        OSError: The cache is not writable.
    """
    from triton.runtime.build import compile_module_from_src  # noqa: PLC0415  (only Linux has it)

    compile_module_from_src(SOURCE, NAME)


def main() -> None:
    """Check everything, and print the versions."""
    names = required()
    import_everything(names)
    compile_extension()
    print("Python", sys.version.split()[0])  # noqa: T201  (its output)
    for name in (DISTRIBUTION, *names):
        print(name, metadata.version(name))  # noqa: T201  (as above)


if __name__ == "__main__":
    main()
