"""import: conversations from elsewhere as a run's demonstrations, so that `sft` trains on them."""

import argparse

from srl.config import Config, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        required=True,
        dest="source",
        metavar="SET",
        help=".jsonl file, export's folder, datasets folder or hub name",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from srl.observe.run_directory import RunDirectory, finished
    from srl.pipelines.conversation import import_records

    path = RunDirectory.locate(config)
    if "sft" in finished(path) or (path / "resume" / "sft").is_dir():
        raise ConfigError(f"{path}: sft has begun here on other demonstrations; import into a run of another name")
    directory = RunDirectory(config)
    with directory.alone():
        card = import_records(config, options.source, directory.file("stage1/demonstrations.parquet"))
        for phase in ("sample", "assemble"):
            with directory.phase(phase):
                pass  # nothing is left to do in it
    directory.close()
    print(f"{directory.path}: " + "  ".join(f"{name} {count}" for name, count in card["classes"].items()) + "; now run sft")
