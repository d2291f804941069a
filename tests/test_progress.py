import pytest

from srl.observe import progress


def test_outside_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 20.0, 21.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(40, "problems") as update:
        update(0)
        for _ in range(3):
            update(10)
    # Half done after 20 s leaves 20 s; the third update comes too soon for another line.
    assert capsys.readouterr().out == "      20/40 problems, 20 s left\n"


def test_no_time_left_is_guessed_from_the_first_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(1000, "problems") as update:
        update(0)
        update(1)
        update(79)
    # 80 in 40 s: 920 more take 460 s.
    assert capsys.readouterr().out == "      1/1000 problems\n      80/1000 problems, 8 min left\n"


def test_what_an_interrupted_evaluation_had_done_says_nothing_of_the_time_left(capsys, monkeypatch):
    clock = iter([5.0, 25.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar(1000, "trajectories") as update:
        update(900)
        update(10)
    # 10 in 20 s: 90 more take 180 s.
    assert capsys.readouterr().out == "      910/1000 trajectories, 3 min left\n"


def test_on_a_terminal_the_rate_is_of_what_is_new(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    shown = []
    monkeypatch.setattr(progress.tqdm, "display", lambda self, *arguments, **named: shown.append(self.format_dict))
    with progress.bar(1000, "trajectories") as update:
        update(900)
        for _ in range(100):
            update(1)
    assert shown[1]["n"] == shown[1]["initial"] == 900 and not shown[0]["n"]
    assert shown[-1]["n"] == 1000 and shown[-1]["initial"] == 900
