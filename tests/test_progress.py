import pytest

from srl.observe import progress


def test_outside_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 20.0, 21.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(40, "problems") as update:
        for _ in range(3):
            update(10)
    # Half done after 20 s leaves 20 s; the third update comes too soon for another line.
    assert capsys.readouterr().out == "      20/40 problems, 20 s left\n"
