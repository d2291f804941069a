"""The report of a small made-up run."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from srl.config import ConfigError
from srl.evaluation.metrics import TRANSITIONS, summarise
from srl.evaluation.report import browser, plots
from srl.evaluation.report.browser import choose
from srl.evaluation.report.page import write_report
from srl.evaluation.report.results import ENDS, asked_how, stage_rows, tiles
from srl.evaluation.report.training import counted, timeline
from srl.evaluation.scaling import scaling
from srl.pipelines.card import SHARES
from srl.trajectory import Outcome, StopReason, Trajectory, Turn, TurnKind, Verdict, to_record

ATTACK = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)> https://evil.example \"'&\u2028"
SECTIONS = 10  # without samples per problem, which no row has


def answer(kind: TurnKind, right: bool, text: str) -> Turn:
    outcome = Outcome.CORRECT if right else Outcome.INCORRECT
    return Turn(kind, [1, 2], text, [-0.1, -0.2], 0, answer="66" if right else ATTACK, outcome=outcome)


def made_up(index: int, text: str) -> Trajectory:
    """Cycles through wrong->right, right->right, wrong->wrong, right->wrong."""
    first, final = index % 2 == 1, index % 4 < 2
    turns = [
        answer(TurnKind.ATTEMPT, first, text),
        Turn(TurnKind.VERDICT, [3], text, [-0.1], verdict=Verdict.WRONG),
        Turn(TurnKind.INSTRUCTION, [4], text),
        answer(TurnKind.REVISION, final, text),
    ]
    return Trajectory(f"t{index}", f"p{index}", f"What? {text}", ATTACK, [0], turns, StopReason.ROUNDS, 1.0)


def fake_run(directory: Path, per_method: int = 8, text: str = ATTACK) -> Path:
    """Every file that the report reads."""
    metrics = [{"phase": "phase", "step": 0, "name": name, "seconds": 81.2} for name in ("sft", ATTACK)]
    for step in range(4):
        rl = {"reward": 0.5, "turn1": 60.0, "final": 70.0, "kl": 0.01, "entropy": 0.3, "gradient_norm": 1.0, "clipped": 0.0}
        metrics.append({"phase": "rl", "step": step, "groups_without_signal": 0.5, **rl})
        metrics.append({"phase": "sft", "step": step, "loss": 0.5, **({"validation_loss": 0.6} if step == 3 else {})})
    metrics.append({"phase": "rl-validation", "step": 3, "turn1": 61.0, "final": 72.0, "verdict_wrong": 70.0})
    metrics.append({"phase": "alarm", "step": 3, "name": "always_correct", "meaning": ATTACK})
    rows, samples = [], []
    for method in ("base", "IFT", "IFT + RL " + ATTACK):
        trajectories = [made_up(index, text) for index in range(per_method)]
        rows.append(summarise(trajectories, method=method, benchmark="chains", temperature=1.0, bootstrap=100))
        samples += [{"method": method, "benchmark": "chains", **to_record(trajectory)} for trajectory in trajectories]
    (directory / "stage1").mkdir(parents=True)
    pieces = [{"text": ATTACK, "weight": 0.0}, {"text": "trained " + ATTACK, "weight": 1.0}]
    card = {
        "counts": {"attempts": 6400}, "classes": {"D1": 700, "D2": 140, "D3": 560}, "dropped": {ATTACK: 12},
        "settings": {"seed": 0, "samples": ATTACK},
        "tables": {"tokens per attempt": {"4": 3, "8": 9, "12": 1}, "verdicts on wrong attempts": {"wrong": 3, "correct": 1}},
        "examples": [{"id": "p/a0", "class": "D1", "messages": [{"role": "assistant", "pieces": pieces}]}],
    }  # fmt: skip
    (directory / "stage1" / "card.json").write_text(json.dumps(card))
    (directory / "results.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
    (directory / "trajectories.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    (directory / "config.yaml").write_text(f"model:\n  path: {ATTACK}\n", encoding="utf-8")
    return directory


class Tree(HTMLParser):
    """Fails on a tag that is closed but not open; collects tags, ids, attributes and the text of scripts."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return write_report(fake_run(tmp_path_factory.mktemp("run") / "one")).read_text("utf-8")


def test_every_tag_is_closed_and_every_id_is_unique(page):
    tree = Tree(page)
    assert len(tree.ids) == len(set(tree.ids))
    assert tree.tags.count("section") == SECTIONS
    # summary, a flow for each method, accuracy and verdicts, optimisation, fine-tuning and lengths, seconds and timeline
    assert tree.tags.count("svg") == 1 + 3 + 2 + 6 + 2 + 2


def packed(page: str) -> str:
    return re.search(r'<script type="application/octet-stream" id="trajectories">([^<]*)</script>', page)[1]


def unpacked(page: str) -> dict:
    """What the page's script gets to read."""
    return json.loads(gzip.decompress(base64.b64decode(packed(page))))


def test_text_of_the_model_cannot_become_markup(page):
    tree = Tree(page)
    assert tree.tags.count("script") == 2 and "img" not in tree.tags  # packed data, and the one script
    assert not [name for name in tree.attributes if name.startswith("on")]
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "innerHTML" not in page


def test_the_page_loads_nothing_and_links_nowhere(page):
    # The only address is the one that the model wrote, as text.
    assert re.findall(r"https?://[^\s<&\"]*", page.replace("https://evil.example", "")) == []
    assert not {"link", "iframe", "object"} & set(Tree(page).tags)
    assert set(re.findall('href="(.)', page)) == {"#"}
    assert "default-src 'none'" in page and "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_the_data_card_marks_what_is_trained(page):
    assert re.findall("<mark>(.{7})", page) == ["trained"]
    assert "tokens per attempt" in page and "verdicts on wrong attempts" in page


def test_a_page_without_such_text_names_no_address_at_all(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {}\n")
    line = {"phase": "rl", "step": 0, "turn1": 50.0, "final": 60.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report(tmp_path).read_text()
    assert "<svg" in page and "://" not in page


def test_headline_tells_the_way_from_base_to_rl(page):
    # made_up: 4 of 8 first attempts are right and 4 of 8 final answers, in every method
    assert "base 50.0 % → IFT 50.0 % → RL 50.0 %; correcting itself gains the model 0.0 points." in page


def test_the_summary_says_where_stages_were_asked_by_different_protocols():
    rows = [("base", {"protocol": "prompted"}), ("IFT", {"protocol": "long_chain"}), ("RL", {"protocol": "long_chain"})]
    assert asked_how(rows) == ", by different protocols (base: prompted; IFT, RL: long_chain)"
    assert asked_how(rows[1:]) == asked_how([("RAFT", {})]) == ""


def test_the_page_counts_why_trajectories_stopped_and_explains_those_that_failed(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=2)
    ends = [StopReason.FAILED, StopReason.NO_VERDICT, StopReason.NO_VERDICT]
    trajectories = [replace(made_up(index, "x"), stop_reason=end) for index, end in enumerate(ends)]
    row = summarise(trajectories, method="IFT", benchmark="chains", temperature=1.0, bootstrap=100)
    (directory / "results.json").write_text(json.dumps({"rows": [row]}))
    page = write_report(directory).read_text("utf-8")
    assert "<th>stopped because</th><th>no verdict</th><th>failed</th>" in page and "<td>2</td><td>1</td>" in page
    assert "Trajectories. No verdict: nothing was said of the answer; failed: workers died" in page and "verified:" not in page
    assert set(ENDS) == set(StopReason)


def test_the_test_of_a_gain_is_named_by_what_it_is():
    row = summarise([made_up(0, "x"), made_up(1, "x")], method="IFT", benchmark="chains", temperature=1.0, bootstrap=100)
    assert "(McNemar)" in tiles(row) and "(sign test over problems)" in tiles(row | {"n": 1})


def test_rows_that_a_picture_leaves_out_are_counted(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=2)
    rows = [
        summarise([made_up(0, "x")], method=f"m{number}", benchmark="b", temperature=1.0, bootstrap=100) for number in range(13)
    ]
    (directory / "results.json").write_text(json.dumps({"rows": rows}))
    assert "per cent right (the first 12 of 13 rows)" in write_report(directory).read_text("utf-8")


def test_headline_takes_the_plainest_method_of_each_stage():
    names = ["IFT + gold verdict", "base, prompted", "base", "IFT", "IFT + PPO", "RAFT"]
    found = stage_rows([{"method": name} for name in names])
    assert [(stage, row["method"]) for stage, row in found] == [("base", "base"), ("IFT", "IFT"), ("RL", "IFT + PPO")]
    assert stage_rows([{"method": "RAFT"}]) == [("RAFT", {"method": "RAFT"})]


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "trajectories.jsonl", "stage1/card.json", "config.yaml"])
def test_a_missing_file_costs_one_line(tmp_path, name):
    directory = fake_run(tmp_path / "run", per_method=2)
    (directory / name).unlink()
    page = write_report(directory).read_text("utf-8")
    assert Tree(page).tags.count("section") == SECTIONS
    assert re.search(rf'<p class="note">[^<]*{re.escape(name)}[^<]*</p>', page)


@pytest.mark.parametrize("all_right", ["0.9", "1.0"])  # 1.0: as in cards of earlier versions
def test_no_bar_of_the_shares_ends_beyond_one_and_a_quarter_stands_between_two_and_three_tenths(monkeypatch, all_right: str):
    drawn = []
    monkeypatch.setattr(plots, "as_svg", lambda figure, title: drawn.append(figure) or "")
    counted(SHARES, {"0.0": 9, "0.2": 36, "0.5": 105, "0.7": 110, all_right: 40})
    (axes,) = drawn[0].axes
    bars = [(round(bar.get_x(), 6), round(bar.get_x() + bar.get_width(), 6), bar.get_height()) for bar in axes.patches]
    assert bars == [(0.0, 0.1, 9), (0.2, 0.3, 36), (0.5, 0.6, 105), (0.7, 0.8, 110), (0.9, 1.0, 40)]


def test_an_empty_directory_gives_a_report(tmp_path):
    page = write_report(tmp_path).read_text()
    assert Tree(page).tags.count("section") == SECTIONS and "<svg" not in page


def test_half_a_line_of_a_running_job_is_left_out_and_said(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=2)
    with (directory / "metrics.jsonl").open("ab") as file:
        file.write(b'{"phase": "rl", "na\xc3')
    assert "Lines of metrics.jsonl that are no records and were left out: 1." in write_report(directory).read_text("utf-8")


def test_a_results_file_that_is_not_json_is_named(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json: not JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_nothing_but_the_report_is_left_behind(tmp_path):
    write_report(tmp_path)
    assert [path.name for path in write_report(tmp_path).parent.iterdir()] == ["report.html"]


def test_five_thousand_trajectories_stay_below_five_megabytes(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=1)
    records = []
    for index in range(5000):
        trajectory = made_up(index, f"{index} {index * 7919 % 1013} " * 40)
        for turn in trajectory.turns:
            turn.token_ids = [(index * token * 31) % 150_000 for token in range(40)]
            turn.logprobs = [] if turn.kind is TurnKind.INSTRUCTION else [-((index * token) % 997) / 400 for token in range(40)]
        records.append(json.dumps({"method": "IFT", "benchmark": "chains", **to_record(trajectory)}) + "\n")
    (directory / "trajectories.jsonl").write_text("".join(records))
    report = write_report(directory)
    assert report.stat().st_size < 5_000_000
    content = unpacked(report.read_text("utf-8"))
    assert len(content["items"]) == 5000 and "5,000 of 5,000 in trajectories.jsonl" in report.read_text("utf-8")


def test_what_does_not_fit_is_left_out_and_counted(tmp_path, monkeypatch):
    directory = fake_run(tmp_path / "run", per_method=60)
    everything = len(packed(write_report(directory).read_text("utf-8")))
    for limit, remark in ((0.9, "180 of 180 in trajectories.jsonl"), (0.3, r"\d+ of 180 in trajectories.jsonl")):
        monkeypatch.setattr(browser, "MOST_BYTES", int(limit * everything))
        page = write_report(directory).read_text("utf-8")
        assert len(packed(page)) <= limit * everything and re.search(remark + ".*of them with their tokens", page)
    assert 10 < len(unpacked(page)["items"]) < 180


def test_rare_transitions_come_first_among_the_trajectories():
    items = [("IFT", TRANSITIONS[0], index) for index in range(500)] + [("IFT", TRANSITIONS[1], -1)]
    chosen = choose(items)
    assert len(chosen) == 501 and items[-1] in chosen[:2]


def test_packed_trajectories_hold_turns_tokens_and_what_was_right(tmp_path):
    content = unpacked(write_report(fake_run(tmp_path / "run", per_method=4)).read_text("utf-8"))
    item = next(item for item in content["items"] if item["change"] == "wrong->right")
    assert [turn["kind"] for turn in item["turns"]] == ["attempt", "verdict", "instruction", "revision"]
    assert [turn["right"] for turn in item["turns"]] == [False, False, False, True]
    assert item["turns"][0]["logprobs"] == [10, 20] and item["turns"][0]["outcome"] == "incorrect"
    assert (item["turns"][1]["verdict"] == "wrong" and "logprobs" not in item["turns"][2]) or item["turns"][2]["logprobs"] == []
    assert content["methods"] and content["transitions"] == list(TRANSITIONS)


def test_tokens_get_their_text_from_the_tokenizer_of_the_run(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=1)
    (directory / "config.yaml").write_text("model: {path: embedded}\n")
    vocabulary = unpacked(write_report(directory).read_text("utf-8"))["vocabulary"]
    assert set(vocabulary) == {"1", "2", "3", "4"} and all(vocabulary.values())


def test_the_timeline_lays_steps_end_to_end_inside_their_phase():
    step = {"phase": "rl", "rollout_s": 2.0, "reward_s": 0.0, "learner_s": 1.0, "weights_s": 0.5}
    lines = [{"phase": "phase", "name": "sft", "seconds": 10.0}, step, step, {"phase": "phase", "name": "rl", "seconds": 8.0}]
    phases, lanes = timeline(lines)
    assert [name for name, *_ in phases] == ["sft", "rl"] and phases[1][1] == 10.0
    assert lanes[:3] == [("rollout", 10.0, 12.0), ("learner", 12.0, 13.0), ("weights", 13.0, 13.5)]
    assert lanes[3][1] == 13.5 and lanes[-1][2] == 17.0


def test_rows_with_several_samples_get_curves_and_a_comparison_at_equal_tokens(tmp_path):
    directory = fake_run(tmp_path / "run", per_method=1)
    trajectories = [made_up(index, "x") for index in range(16)]
    for index, trajectory in enumerate(trajectories):
        trajectory.prompt_id = f"p{index // 4}"
    row = summarise(trajectories, method="IFT, 4 samples", benchmark="chains", temperature=1.0, bootstrap=100)
    (directory / "results.json").write_text(json.dumps({"rows": [row | {"scaling": scaling(trajectories)}]}))
    page = write_report(directory).read_text("utf-8")
    assert "More samples per problem" in page and "by answers used per problem" in page and "tokens per problem" in page
