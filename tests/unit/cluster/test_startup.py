"""How the operator's process starts."""

from __future__ import annotations

import socket

import kopf
import pytest

from latticeforge_operator.cluster.__main__ import Operator


async def test_a_port_that_is_taken_ends_it_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104  (where the operator's would be)
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(kopf.PermanentError, match=rf"port {port}: .*in use; choose another"):
            await Operator((), port).startup(kopf.OperatorSettings())
