"""The Ray cluster of a run: the one this process is in, the configured one, or a local one that ends with the run."""

import http.client
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from unittest.mock import patch

import ray
import ray.data
from ray.autoscaler.sdk import request_resources

from srl.config import Config, ConfigError
from srl.driver.resources import alive_nodes, demand, shortage
from srl.observe.progress import say

ANSWER_S = 10.0  # longest wait for a cluster's head to take a connection
CALLS_KEPT = 10_000  # of actors, which Ray's tools can list: at 3 KiB each its own 100,000 fill 330 MB in the course of a run
NODES_LOOK_S = 1.0  # between two looks at the nodes that have joined


def connect(config: Config, trains: bool = True) -> None:
    """Join the cluster this process is in, or the configured one, or start a local Ray; it needs room for learners if it
    `trains`. Raises ConfigError as `check_cluster`, and where no cluster answers."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    quiet_pipelines()
    options = {"namespace": f"srl-{config.run.name}", "log_to_driver": False, "logging_level": "ERROR"}
    if config.run.log == "json":
        options |= {"logging_config": ray.LoggingConfig(encoding="JSON", log_level="ERROR")}
    setting, address = config.run.cluster
    if address:
        try:
            with stopped_afterwards():
                ray.init(address=address, **options)
        except ConnectionError as error:
            raise ConfigError(f"{setting}={address}: no Ray cluster answers there ({error})") from None
        check_cluster(config, config.run.nodes_wait_s, trains)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", str(CALLS_KEPT))
    if config.run.dashboard_port:
        options |= {"dashboard_port": config.run.dashboard_port}
    # Without `local` it would try to join whatever cluster `ray start` has left on this machine.
    with stopped_afterwards():
        ray.init(
            address="local",
            num_cpus=config.run.local_cpus,
            object_store_memory=config.run.object_store_mib * 2**20,
            include_dashboard=bool(config.run.dashboard_port),
            **options,
        )
    check_cluster(config, 0, trains)


def disconnect() -> None:
    """Leave the cluster; a local one ends. What a pipeline that was stopped in the middle says of that is no news."""
    if ray.is_initialized():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.shutdown()


@contextmanager
def stopped_afterwards() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of this block and then raise KeyboardInterrupt.

    Cut short, ray.init ends the process with a status of its own, or aborts it.
    """
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Ray 2.60 begins with a handler for SIGTERM that exits at once, leaves it there, and has no option against it.
        with patch.object(signal, "signal", lambda number, handler: signal.getsignal(number)):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


def quiet_pipelines() -> None:
    """Ray Data's own progress reports would tear the run's."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def check_address(config: Config) -> None:
    """Raises ConfigError when nothing listens at the cluster's address, or a web server such as Ray's own dashboard: for either
    Ray itself would wait many minutes."""
    setting, address = config.run.cluster
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise ConfigError(f"{setting}={address}: not a cluster's address: HOST:PORT of its head, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{setting}={address}: no Ray cluster answers there ({error})") from None
    if answers_http(host.strip("[]"), int(port)):
        raise ConfigError(
            f"{setting}={address}: a web server answers there, such as the dashboard's; the head's own port is 6379 unless set"
        )


def answers_http(host: str, port: int) -> bool:
    """A head does not: it speaks gRPC, and says so to anybody."""
    with closing(http.client.HTTPConnection(host, port, timeout=ANSWER_S)) as connection:
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return True


def check_port(config: Config) -> None:
    """Raises ConfigError when the dashboard's port is in use."""
    port = config.run.dashboard_port
    if not port:
        return
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"run.dashboard_port={port}: the port is taken") from None


def check_cluster(config: Config, wait_s: float, trains: bool = True) -> None:
    """Raises ConfigError when the cluster cannot hold all actors at once, asked and present side by side.

    A job may begin before the cluster's nodes have joined: KubeRay submits it as soon as the head answers. They are waited for.
    Meanwhile an autoscaler, if there is one, is asked for them: no actor is there yet for whose sake it would start any.
    """
    begun, asked = time.monotonic(), False
    try:
        while lack := shortage(config, alive_nodes(ray.nodes()), trains):
            if time.monotonic() - begun >= wait_s:
                raise ConfigError(lack + (f"; waited run.nodes_wait_s={wait_s:g} for more" if wait_s else ""))
            if not asked:
                say(f"waiting for nodes, {wait_s:g} s at most: {lack}")
                asked = True
            # Every time: a cluster keeps one request, and another job that waits has put its own in its place.
            try:
                request_resources(None, *demand(config, trains))
            except ValueError as error:
                raise ConfigError(f"learner.nodes, rollout.nodes or reward.nodes: {error}") from None
            time.sleep(NODES_LOOK_S)
    finally:
        if asked:
            request_resources()
