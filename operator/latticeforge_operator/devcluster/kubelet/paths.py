"""Translation of a container's paths and host names into this machine's.

There is no mount namespace and no DNS, so what a manifest calls `/data` or `train-0.train` is
replaced, wherever it stands as a path or as a name, by the host's folder or by 127.0.0.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
# A path starts where no other path or word runs into it; file:// URLs hold paths as well.
_BEFORE_PATH = r"(?:(?<![\w./~-])|(?<=file://))"
_AFTER_PATH = r"(?=[^\w.-]|$)"
_BEFORE_NAME = r"(?<![\w.-])"
_AFTER_NAME = r"(?![\w-]|\.[\w-])"
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_SERVICE = re.compile(rf"{_BEFORE_NAME}{_LABEL}\.{_LABEL}\.svc(?:\.cluster\.local)?{_AFTER_NAME}")
"""A Service by its full name: its pods share the loopback, and its port is theirs."""


@dataclass(frozen=True)
class Translator:
    """Rewrites text for one container.

    Attributes:
        folders: host folder or file of each mountPath.
        subdomain: the pod's `spec.subdomain`, i.e. its headless Service; empty when it has none.
        namespace: the pod's namespace.
    """

    folders: Mapping[str, Path]
    subdomain: str
    namespace: str

    def __call__(self, text: str) -> str:
        """Returns `text` with every mount path and every name of a peer or Service replaced."""
        return self._names(self._paths(text))

    def _paths(self, text: str) -> str:
        folders = {path.rstrip("/") or "/": host for path, host in self.folders.items()}
        if not folders:
            return text
        # The longest first: /data/cache may be mounted below /data.
        choices = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
        pattern = f"{_BEFORE_PATH}({choices}){_AFTER_PATH}"
        return re.sub(pattern, lambda match: str(folders[match[1]]), text)

    def _names(self, text: str) -> str:
        text = _SERVICE.sub(LOOPBACK, text)
        if not self.subdomain:
            return text
        domain = rf"\.{re.escape(self.namespace)}(?:\.svc(?:\.cluster\.local)?)?"
        name = rf"[a-z0-9][a-z0-9-]*\.{re.escape(self.subdomain)}(?:{domain})?"
        return re.sub(f"{_BEFORE_NAME}{name}{_AFTER_NAME}", LOOPBACK, text)
