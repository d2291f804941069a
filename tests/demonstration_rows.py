"""Hand-made samples of one problem, as stage 1 writes them, and the paths through them that become demonstrations."""

from srl.config import Config, load_config
from srl.protocols.chat import Chat
from srl.tasks.chains import Chain, check, question, solution, verdict_line
from srl.trajectory import TurnKind

A, V, R, I = TurnKind.ATTEMPT, TurnKind.VERDICT, TurnKind.REVISION, TurnKind.INSTRUCTION  # noqa: E741
CHAIN = Chain(52, (-30, 25, 38, -19))  # 52, 22, 47, 85, 66
TRUE, FALSE = CHAIN.values(), [value - 10 for value in CHAIN.values()]  # end in 66 and 56
RIGHT, SLIP = solution(CHAIN, TRUE), solution(CHAIN, FALSE)
SAYS_CORRECT = check(CHAIN, TRUE)[0] + verdict_line(True)
SAYS_WRONG = check(CHAIN, FALSE)[0] + verdict_line(False)


def row(name: str, right: bool | None, verdict: str | None = None, chat: Chat | None = None) -> dict:
    """A sample by its id: p/a0 is an attempt, p/a0/v0 a verdict on it, p/a0/v0/r0 a revision.

    `right` is what the grader said; for verdicts, what it said of the attempt. Without a tokenizer each has words of its own.
    """
    parent, _, last = name.rpartition("/")
    kind = {"a": A, "v": V, "r": R}[last[0]]
    answer = RIGHT if right else SLIP
    text = {A: answer, V: SAYS_CORRECT if verdict == "correct" else SAYS_WRONG, R: answer}[kind]
    text = text if chat else f"{name}: {text}"
    accepted = {A: True, V: verdict == ("correct" if right else "wrong"), R: bool(right)}[kind]
    return {
        "id": name,
        "prompt_id": name.split("/")[0],
        "question": question(CHAIN),
        "gold": "66",
        "kind": kind.value,
        "parent": "" if kind is A else parent,
        "text": text,
        "token_ids": ids_of(chat, text) + [chat.end_id] if chat else [],
        "truncated": False,
        "answer": None if kind is V else "66" if right else "56",
        "outcome": None if kind is V else "correct" if right else "incorrect",
        "verdict": verdict,
        "accepted": accepted,
    }


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False).input_ids


def family(n: int, right: bool, verdicts: list[str | None], revisions: list[bool]) -> list[dict]:
    rows = [row(f"p/a{n}", right)]
    for v, verdict in enumerate(verdicts):
        rows.append(row(f"p/a{n}/v{v}", right, verdict))
        if verdict == "wrong":
            rows += [row(f"p/a{n}/v{v}/r{r}", good) for r, good in enumerate(revisions)]
    return rows


def path(name: str, chat: Chat) -> list[dict]:
    right = name != "D1"
    if name == "D3":
        return [row("p/a0", True, chat=chat), row("p/a0/v0", True, "correct", chat)]
    return [row("p/a0", right, chat=chat), row("p/a0/v0", right, "wrong", chat), row("p/a0/v0/r0", True, chat=chat)]


def config(protocol: str = "long_chain", *more: str) -> Config:
    return load_config(None, [f"protocol.name={protocol}", *more])
