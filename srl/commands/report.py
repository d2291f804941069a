"""report: table and report.html of a run that exists."""

import argparse

from srl.config import Config


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.run import report

    report(config)
