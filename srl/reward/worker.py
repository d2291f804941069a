"""A process that compares by algebra and forks itself: `python -m srl.reward.worker DEADLINE_S MEMORY_MIB` (`template.py`).

The template only forks: what it has imported, parsed and compared to prove itself is ready in its workers, which start in
milliseconds. A worker, JSON lines in and out, is made to be killed. It limits its own memory, gives up a comparison at the
deadline, and has the kernel end it within a second after that should Python be unable to. The deadline is of processor time,
which it measures itself: on a machine that is busy with other work a comparison takes longer and comes out the same. Whoever
asked for it has it killed if it does nothing at all.
"""

import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time

# Answer, gold, whether they are equal: a template has to get these right before it forks. They are of many
# kinds, because the parser learns its grammar by using it: the first answer of each kind takes ten times as long.
GOLDEN = [
    (r"\frac{2}{4}+x", r"x+\frac{1}{2}", True),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"\frac{1}{3}", "0.5", False),
    (r"3\sqrt{2}", r"\sqrt{12}", False),
    (r"x^2(x-1)^2", r"x^{4}-2x^{3}+x^{2}", True),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3, \frac{\pi}{3})", False),
    (r"(-\infty, 0) \cup [1, 2)", r"[1,2) \cup (-\infty,0)", True),
    (r"x \geq 5", r"x \leq 5", False),
    (r"y = 2x + 1", r"2x+1", True),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", False),
    (r"\binom{5}{2} + 3!", "16", True),
    (r"\{1, 2\}", r"\{2, 3\}", False),
    (r"1 \pm \sqrt{5}", r"1 + \sqrt{5}, 1 - \sqrt{5}", True),
    (r"\log_{2} 8 + \sin \frac{\pi}{2}", "4", True),
    (r"3 + 4i", r"3 - 4i", False),
    (r"e^{2\pi} \cdot 10^{-3}", r"\pi^{e}", False),
    (r"12 \text{ cm}^2", r"13 \text{ cm}^2", False),
    (r"50\%", r"51\%", False),
    (r"\frac{\sec x}{\sin x} - \cos^{2} x", r"\tan x", False),
    (r"\{\alpha_1 + \beta_{2}, 3\}", r"\{1 \pm \sqrt{5}, -2\}", False),
    (r"(2, \infty)", r"(-\sqrt{3}, \sqrt{3})", False),
    (r"\left\lfloor \frac{n}{2} \right\rfloor", r"\frac{n}{2}", False),
    ("k = 3", "n = 2m + 1", False),
]


class Deadline(BaseException):
    """Raised by the alarm. No Exception, so that nothing in sympy takes it for one of its own."""


def main() -> None:
    deadline_s, memory_mib = float(sys.argv[1]), int(sys.argv[2])
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # libraries print what they like
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes the connection
    signal.signal(signal.SIGPROF, give_up)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        prove()
    except Exception as error:
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        raise
    gc.collect()
    gc.freeze()  # what is there stays; workers share its memory
    control.send(json.dumps({"failed": None}).encode())
    if connection := serve(control):
        work(connection, deadline_s, memory_mib)


def serve(control: socket.socket) -> socket.socket | None:
    """Fork a worker for each connection that is sent, end those that are named. In a worker returns its connection."""
    workers = set()
    while True:
        data, connections, _, _ = socket.recv_fds(control, 1 << 16, 1)
        request = json.loads(data or b"null")
        if request is None:  # whoever started this is gone
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            return None
        if "fork" in request:
            pid = os.fork()
            if not pid:
                control.close()
                return socket.socket(fileno=connections[0])
            os.close(connections[0])
            workers.add(pid)
            reply = {"pid": pid}
        else:
            os.kill(request["end"], signal.SIGKILL)  # nobody else waits for it, so that the number is still its own
            _, status = os.waitpid(request["end"], 0)
            workers.remove(request["end"])
            reply = {"code": os.waitstatus_to_exitcode(status)}
        control.send(json.dumps(reply).encode())


def work(connection: socket.socket, deadline_s: float, memory_mib: int) -> None:
    """Answer until nobody asks any more."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 2**20,) * 2)
    with connection, connection.makefile("r") as requests:
        connection.sendall(json.dumps({"ready": os.getpid()}).encode() + b"\n")
        for line in requests:
            connection.sendall(json.dumps(answer(json.loads(line), deadline_s)).encode() + b"\n")


def give_up(*_: object) -> None:
    raise Deadline


def prove() -> None:
    """Raises RuntimeError naming the known pair that it gets wrong."""
    from srl.reward.symbolic import compare

    for found, gold, equal in GOLDEN:
        outcome = compare(found, gold)
        if (outcome == "correct") is not equal:
            raise RuntimeError(f"graded answer {found!r} for gold {gold!r} as {outcome}, expected equal: {equal}")


def answer(request: dict, deadline_s: float) -> dict:
    """{"outcome", "ms"} or {"invalid_gold"}."""
    from srl.reward.symbolic import InvalidGold, compare, gold_values

    start = time.monotonic()
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + deadline_s + 1), resource.RLIM_INFINITY))
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, deadline_s)
            if request["answer"] is None:
                gold_values(request["gold"])
                outcome = "correct"
            else:
                outcome = compare(request["answer"], request["gold"], request["error"])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except Deadline:
        outcome = "timeout"
    except InvalidGold as error:
        return {"invalid_gold": str(error)}
    except Exception:
        # Whatever sympy raises on text that a model wrote, memory included, says that the answer cannot be read.
        outcome = "unparsable"
    return {"outcome": outcome, "ms": 1000 * (time.monotonic() - start)}


if __name__ == "__main__":
    main()
