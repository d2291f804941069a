"""The report in headless Chromium, where there is one: what its script shows and does."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from srl.evaluation.report.page import write_report
from srl.trajectory import StopReason
from tests.test_report import fake_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
WAIT_S = 60


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    profile = tmp_path_factory.mktemp("profile")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-port=0"]
    process = subprocess.Popen([BROWSER, *flags, "about:blank"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT_S
    while not (found := profile / "DevToolsActivePort").exists() or not found.read_text().strip():
        assert process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
        time.sleep(0.1)
    yield int(found.read_text().split()[0])
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fake_run(tmp_path_factory.mktemp("run") / "one", per_method=40)
    results = json.loads((run / "results.json").read_text())
    for row in results["rows"]:  # a table of its widest
        row["stops"] = dict.fromkeys(StopReason, 1000)
    (run / "results.json").write_text(json.dumps(results))
    return write_report(run)


def evaluate(port: int, page: Path, *scripts: str, width: int = 1200) -> list:
    """Results of the scripts, one after the other, once the page says that it is ready."""

    async def session() -> list:
        async with aiohttp.ClientSession() as client:
            tab = await (await client.put(f"http://127.0.0.1:{port}/json/new?about:blank")).json()
            async with client.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                sent = 0

                async def call(method: str, **parameters):
                    nonlocal sent
                    sent += 1
                    await socket.send_json({"id": sent, "method": method, "params": parameters})
                    while (reply := await socket.receive_json(timeout=WAIT_S)).get("id") != sent:
                        pass
                    return reply["result"]

                async def run(script: str):
                    found = await call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
                    assert "exceptionDetails" not in found, found
                    return found["result"].get("value")

                await call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
                await call("Page.navigate", url=f"file://{page}")
                deadline = time.monotonic() + WAIT_S
                while await run("document.documentElement?.dataset.ready") is None:
                    assert time.monotonic() < deadline, "the page never got ready"
                    await asyncio.sleep(0.1)
                return [await run(script) for script in scripts]

    return asyncio.run(session())


def test_trajectories_are_unpacked_listed_and_paged(port: int, report: Path):
    listed, found, following = evaluate(
        port,
        report,
        "document.querySelectorAll('.trajectory').length",
        "document.querySelector('.filters .note').textContent",
        "(document.querySelectorAll('.pages button')[1].click(), document.querySelector('.pages .note').textContent)",
    )
    assert (listed, found, following) == (20, "120 found", "21 to 40")


def test_filters_narrow_the_list(port: int, report: Path):
    choose = "(s => (s.value = '{}', s.dispatchEvent(new Event('{}')), document.querySelector('.filters .note').textContent))"
    change = choose.format("wrong->right", "change") + "(document.querySelector('select[name=transition]'))"
    tokens = choose.format("1000", "input") + "(document.querySelector('input[type=number]'))"
    assert evaluate(port, report, change, tokens) == ["30 found", "0 found"]  # every fourth of 120


def test_a_trajectory_opens_and_shows_tokens_on_demand(port: int, report: Path):
    turns, tokens, title = evaluate(
        port,
        report,
        "(d => (d.open = true, new Promise(done => setTimeout(() => done(d.querySelectorAll('.turn').length), 200))))"
        "(document.querySelector('.trajectory'))",
        "(document.querySelector('.turn button').click(), document.querySelectorAll('.token').length)",
        "document.querySelector('.token').title",
    )
    assert (turns, tokens) == (4, 2)
    assert "log-probability −0.10" in title and "loss weight 0" in title


def test_text_of_the_model_stays_text(port: int, report: Path):
    scripts = "document.querySelectorAll('script').length", "document.querySelectorAll('img').length"
    assert evaluate(port, report, *scripts) == [2, 0]


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_is_never_wider_than_the_screen(port: int, report: Path, width: int):
    widest = evaluate(port, report, "document.documentElement.scrollWidth", width=width)[0]
    assert widest <= width
