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


def test_no_time_left_is_guessed_from_the_first_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(1000, "problems") as update:
        update(1)
        update(79)
    # 80 in 40 s: 920 more take 460 s.
    assert capsys.readouterr().out == "      1/1000 problems\n      80/1000 problems, 460 s left\n"
