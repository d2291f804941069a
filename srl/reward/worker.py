"""A process that compares by algebra: `python -m srl.reward.worker DEADLINE_S MEMORY_MIB`, JSON lines in and out.

It is made to be killed. It limits its own memory, gives up a comparison at the deadline, and has the kernel end it within a
second after that should Python be unable to. The deadline is of processor time, which it measures itself: on a machine that is
busy with other work a comparison takes longer and comes out the same. Whoever started it kills it if it does nothing at all.
"""

import json
import logging
import os
import resource
import signal
import sys
import time

# Answer, gold, whether they are equal: every new worker has to get these right before it is given any other. They are of many
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
    # Libraries print what they like; the replies go where only this file writes.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which closes the pipe
    signal.signal(signal.SIGPROF, give_up)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        prove()
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), file=replies)
        raise
    resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 2**20,) * 2)
    print(json.dumps({"ready": os.getpid()}), file=replies)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), deadline_s)), file=replies)


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
