"""Stands between the kubelet and one container, so that no process outlives either.

Run as `python -I -S shim.py FD LIBRARY COMMAND...`, with the container's environment, working
directory and output. FD is a socket to the kubelet: the shim says there how the container started
and ended, and hears `T` (terminate) and `K` (kill); when it closes, the kubelet is dead and the
container must die too. LIBRARY is where psutil is found; it is imported only if there is something
left to kill, because this file is on the path of every container's start.

On Linux the shim adopts all orphaned descendants, as a container's first process would.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36
_START_FAILED = 128
_POLL_SECONDS = 0.005
_LINGER_SECONDS = 0.05
# What Python, this shim or the shell that started it all ignores must not be ignored by the
# container: a shell's background jobs, for one, ignore SIGINT and SIGQUIT.
_RESET = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def main() -> None:
    """Runs the container until it ends, is told to end, or the kubelet dies."""
    descriptor, library, *command = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    _adopt_orphans()
    child_ended = _notice_children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        child = os.posix_spawnp(
            command[0], command, os.environ, setsid=True, setsigdef=_RESET, setsigmask=()
        )
    except OSError as error:
        _report(control, {"error": f"{command[0]}: {error.strerror}", "code": _START_FAILED})
        return
    _report(control, {"pid": child})
    status = _supervise(control, child_ended, child)
    _kill_everything(child, library)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        _report(control, {"code": 128 - code, "signal": -code})
    else:
        _report(control, {"code": code})


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _notice_children() -> socket.socket:
    """Returns a socket that becomes readable when a child ends."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def _report(control: socket.socket, message: dict[str, object]) -> None:
    with suppress(OSError):  # a dead kubelet needs no report
        control.sendall(json.dumps(message).encode() + b"\n")


def _supervise(control: socket.socket, child_ended: socket.socket, child: int) -> int:
    """Obeys the kubelet until the container has ended; returns its first process's wait status.

    The end of the first process is the end of all, unless the kubelet has asked for an end: then
    the rest of its group, which got SIGTERM as well, may use its grace period.
    """
    status, terminating, listening = None, False, True
    while True:
        ended = _reap(child)
        status = status if ended is None else ended
        if status is not None and not (terminating and listening and _is_alive(child)):
            return status
        sources = [child_ended, control] if listening else [child_ended]
        ready, _, _ = select.select(sources, (), (), None if status is None else _LINGER_SECONDS)
        if child_ended in ready:
            child_ended.recv(4096)
        if control in ready:
            orders = _orders(control)
            terminating = True
            listening = bool(orders) and b"K" not in orders
            _signal(child, signal.SIGTERM if listening else signal.SIGKILL)


def _orders(control: socket.socket) -> bytes:
    """What the kubelet has said; nothing: it is dead."""
    try:
        return control.recv(4096)
    except ConnectionError:  # it died before it had read our report
        return b""


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _signal(group: int, number: signal.Signals) -> None:
    # PermissionError is macOS's word for a group of which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _reap(child: int) -> int | None:
    """Buries ended children, adopted ones too; returns the container's status if it ended."""
    found = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                found = ended[1]
    return found


def _kill_everything(group: int, library: str) -> None:
    """Kills what the container has left behind, and returns when nothing of it is alive."""
    _signal(group, signal.SIGKILL)
    while _has_children():
        sys.path.append(library)
        import psutil  # noqa: PLC0415 - see the module's docstring

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(_POLL_SECONDS)


def _has_children() -> bool:
    """Buries ended children, and says whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    main()
    # Skips the interpreter's slow shutdown: the kubelet waits for this process to be gone.
    os._exit(0)
