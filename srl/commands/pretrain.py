"""pretrain: make the embedded base model again."""

import argparse

from srl.config import Config


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.driver.pretrain import pretrain_base

    pretrain_base(config.pretrain)
