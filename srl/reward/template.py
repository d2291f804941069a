"""The caller's side of `srl.reward.worker`: a process that has its imports and first comparisons behind it, and forks workers."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

START_S = 120.0  # it imports sympy and proves itself in about three seconds; a machine may be busy
PACKAGE = Path(__file__).parents[2]


class Template:
    """Not thread-safe. Every method raises OSError when the process is dead or does not answer: then `kill` it."""

    def __init__(self, deadline_s: float, memory_mib: int) -> None:
        """Raises RuntimeError, too, if it gets a known pair wrong."""
        # Pure Python integers: those of gmpy2 ignore alarms. One order of sets in every process: the same answer every time.
        settings = {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "srl.reward.worker", str(deadline_s), str(memory_mib)],
                stdin=theirs,
                env={**os.environ, **settings, "PYTHONPATH": path},
                start_new_session=True,  # its workers go with it
            )
        try:
            failed = self._reply()["failed"]
        except OSError:
            self.kill()
            raise
        if failed:
            self.kill()
            raise RuntimeError(f"a grading worker refuses to start: {failed}")

    def fork(self) -> tuple[socket.socket, int]:
        """A connection to a new worker, JSON lines both ways, and its process id."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.control, [b'{"fork": true}'], [theirs.fileno()])
            return ours, self._reply()["pid"]
        except OSError:
            ours.close()
            raise

    def end(self, pid: int) -> int:
        """Kill a worker of this template, if it still runs; its exit code, which is negative for a signal."""
        self.control.send(json.dumps({"end": pid}).encode())
        return self._reply()["code"]

    def kill(self) -> None:
        """And its workers."""
        if self.process.returncode is None:  # so that the number is still its own
            os.killpg(self.process.pid, signal.SIGKILL)
        self.control.close()
        self.process.wait()

    def _reply(self) -> dict[str, Any]:
        data = self.control.recv(1 << 16)
        if not data:
            raise ConnectionError("the grading worker's template has ended")
        return json.loads(data)
