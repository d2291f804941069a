"""Learner ranks on the embedded model: any ZeRO stage and any number of ranks take the same steps, also after a restart."""

import os
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from srl.config import Config, ConfigError, load_config
from srl.driver.cluster import connect
from srl.learner.actor import Learner
from srl.learner.batch import Example
from srl.learner.checkpoint import read_parts
from srl.learner.group import LearnerGroup, LearnerLost
from srl.learner.losses import sft_loss
from srl.protocols.chat import model_folder

pytestmark = pytest.mark.long

STEPS, HALF = 20, 10


@pytest.fixture(scope="module")
def config() -> Iterator[Config]:
    config = load_config(None, ["learner.threads=1", "learner.micro_batch_tokens=128", "run.local_cpus=8"])
    connect(config)
    yield config
    ray.shutdown()


def batch(step: int) -> list[Example]:
    lengths = [17, 40, 9, 33, 64, 21, 12]
    return [
        Example(str(n), [(5 * n + 3 * i + step) % 60 for i in range(length)], [0.0] + [0.5 + n / 8] * (length - 1))
        for n, length in enumerate(lengths)
    ]


def group(config: Config, workers: int, stage: int, **settings) -> LearnerGroup:
    learner = config.learner.model_copy(update={"workers": workers, "zero_stage": stage, "cpus": 0.1, **settings})
    changed = config.model_copy(update={"learner": learner})
    return LearnerGroup(changed, model_folder("embedded"), model_folder("embedded"), 0.1, 1.0)


def step(learners: LearnerGroup, number: int) -> dict[str, float]:
    return learners.train(batch(number), sft_loss, 1e-3)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], Path]:
    """One rank without ZeRO: metrics of each step, and the weights after them; its state after half of them."""
    folder = tmp_path_factory.mktemp("alone")
    learners = group(config, 1, 0)
    metrics = []
    for number in range(STEPS):
        metrics.append(step(learners, number))
        if number == HALF - 1:
            (folder / "state").mkdir()
            learners.save_state(folder / "state")
    learners.save(folder / "model")
    learners.close()
    return metrics, folder


def agrees(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Tensor by tensor, the difference is small beside the tensor. Adam turns noise in tiny gradients into steps, so no element
    by itself has to agree."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        distance, size = (found[name] - tensor).norm().item(), tensor.norm().item()
        assert distance <= tolerance * size + 1e-4, f"{name}: {distance:.2e} of {size:.2e}"


@pytest.mark.parametrize(("workers", "stage"), [(2, 1), (2, 2), (3, 3)])
def test_every_stage_takes_the_steps_of_one_rank_and_continues_from_its_checkpoint(config, alone, tmp_path, workers, stage):
    learners = group(config, workers, stage)
    for number in range(STEPS):
        found, expected = step(learners, number), alone[0][number]
        # Summing in another order alone, in plain PyTorch, moves these by up to 0.0006 and 1.7 % over 20 steps.
        assert found["loss"] == pytest.approx(expected["loss"], abs=5e-3)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=5e-2)
        if number == HALF - 1:
            (tmp_path / "state").mkdir()
            learners.save_state(tmp_path / "state")
    learners.save(tmp_path / "model")
    agrees(weights(tmp_path / "model"), weights(alone[1] / "model"), 1e-3)
    # Back to the state as one rank saved it half-way, and on: the same again.
    learners.load_state(alone[1] / "state")
    for number in range(HALF, STEPS):
        step(learners, number)
    learners.save(tmp_path / "again")
    agrees(weights(tmp_path / "again"), weights(alone[1] / "model"), 1e-3)
    if stage == 2:
        a_rank_dies_and_the_group_is_built_again(learners, alone[1], tmp_path / "rebuilt")
    learners.close()
    states = [{name: state for name, state in read_parts(folder / "state", 0)[0]} for folder in (tmp_path, alone[1])]
    assert states[0].keys() == states[1].keys()
    for name, state in states[1].items():
        agrees(states[0][name], state, 1e-2)


def test_nothing_of_a_sharded_model_is_whole_when_deepspeed_puts_it_on_the_gpu(config: Config):
    def watched(learner, *arguments) -> list[int]:
        """Elements of the parameters that are still whole when DeepSpeed gets a model, which it then puts on the GPU."""
        import deepspeed

        given, initialize = [], deepspeed.initialize

        def look(model, **settings):
            given.append(sum(parameter.numel() for parameter in model.parameters()))
            return initialize(model=model, **settings)

        deepspeed.initialize = look
        learner.start(*arguments)
        return given

    learner = config.learner.model_copy(update={"workers": 2, "zero_stage": 3, "cpus": 0.1})
    changed = config.model_copy(update={"learner": learner})
    ranks = [ray.remote(Learner).options(num_cpus=0.1).remote(changed, rank, 2) for rank in range(2)]
    address = ray.get(ranks[0].address.remote(), timeout=60)
    path = model_folder("embedded")
    starting = [rank.__ray_call__.remote(watched, path, path, False, address, 0.1, 1.0) for rank in ranks]
    assert ray.get(starting, timeout=120) == [[0, 0], [0, 0]]  # of the policy and of the reference
    for rank in ranks:
        ray.kill(rank)


def test_while_a_checkpoint_is_written_no_rank_holds_a_whole_tensor_until_the_next_is_gathered(config: Config, tmp_path):
    def alive(learner) -> tuple[int, int]:
        """Tensors that a rank does not write, and how many of them were still there when the next one came."""
        seen, state_of = [], learner.engine.state_of
        others = [p for index, (_, p) in enumerate(learner.engine.trained()) if index % 2 != learner.rank]

        def watched(parameter):
            before = lambda: None  # noqa: E731
            for kind, whole in state_of(parameter):
                if any(parameter is other for other in others):
                    seen.append(before() is not None)
                    before = weakref.ref(whole)
                yield kind, whole
                del whole

        learner.engine.state_of = watched
        learner.save_state(str(tmp_path))
        return len(seen), sum(seen)

    learners = group(config, 2, 3)
    step(learners, 0)
    found = ray.get([rank.__ray_call__.remote(alive) for rank in learners.ranks], timeout=120)
    learners.close()
    assert all(count > 30 and left == 0 for count, left in found), found


def test_sharded_ranks_with_different_numbers_of_trained_tokens_call_the_output_layer_equally_often(config: Config):
    def in_parts(_) -> None:
        from srl.learner import model

        model.LOGITS_AT_ONCE = 25 * 64  # parts of 25 trained tokens: eight of the first row, two of the second

    uneven = [
        Example("a", [(3 * i) % 60 for i in range(120)], [0.0] + [1.0] * 119),
        Example("b", [(7 * i) % 60 for i in range(119)], [0.0] * 79 + [1.0] * 40),
    ]
    losses = []
    for workers, stage, parts in ((1, 0, False), (2, 3, True)):
        learners = group(config, workers, stage)
        if parts:
            ray.get([rank.__ray_call__.remote(in_parts) for rank in learners.ranks])
        losses.append([learners.train(uneven, sft_loss, 1e-3)["loss"] for _ in range(3)])
        scored = learners.logprobs(uneven)
        assert len(scored["a"]) == 119 and len(scored["b"]) == 40
        learners.close()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def a_rank_dies_and_the_group_is_built_again(learners: LearnerGroup, alone: Path, folder: Path) -> None:
    os.kill(ray.get(learners.ranks[1].ping.remote()), signal.SIGKILL)
    with pytest.raises(LearnerLost, match="a learner died during a training step"):
        step(learners, 0)
    learners.rebuild()
    learners.load_state(alone / "state")
    for number in range(HALF, STEPS):
        step(learners, number)
    learners.save(folder)
    agrees(weights(folder), weights(alone / "model"), 1e-3)


def logprobs(learners: LearnerGroup, model: str = "") -> torch.Tensor:
    found = learners.logprobs(batch(0), model)
    return torch.tensor([value for example in batch(0) for value in found[example.id]])


@pytest.fixture(scope="module")
def adapted(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[dict[str, float]], Path]:
    """One rank with adapters: log-probabilities at the start, metrics of each step, and a folder with its model and state."""
    folder = tmp_path_factory.mktemp("adapted")
    learners = group(config, 1, 0, lora_rank=4)
    start = logprobs(learners)
    metrics = [step(learners, number) for number in range(HALF)]
    learners.save(folder / "model")
    (folder / "state").mkdir()
    learners.save_state(folder / "state")
    learners.close()
    return start, metrics, folder


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_over_two_ranks_take_the_steps_of_one_and_leave_the_reference_alone(config, adapted, tmp_path, stage):
    start, metrics, folder = adapted
    learners = group(config, 2, stage, lora_rank=4)
    for number, expected in enumerate(metrics):
        found = step(learners, number)
        assert found["loss"] == pytest.approx(expected["loss"], abs=5e-3)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=5e-2)
    assert (logprobs(learners) - start).abs().max() > 0.1, "nothing was learned"
    torch.testing.assert_close(logprobs(learners, "reference"), start, rtol=1e-4, atol=1e-4)
    learners.save(tmp_path / "model")
    agrees(weights(tmp_path / "model"), weights(folder / "model"), 1e-3)
    # One step further, and back to where one rank was.
    before = logprobs(learners)
    step(learners, HALF)
    learners.load_state(folder / "state")
    torch.testing.assert_close(logprobs(learners), before, rtol=0.01, atol=0.01)
    learners.close()


def test_a_cluster_without_room_is_named_with_what_is_missing(config):
    with pytest.raises(ConfigError, match=r"learner.start_timeout_s=1: no room for 2 learners: 100 CPU asked, [\d.]+ of 8 free"):
        settings = {"workers": 2, "cpus": 50, "start_timeout_s": 1}
        LearnerGroup(config.model_copy(update={"learner": config.learner.model_copy(update=settings)}), "", None, 0.0, 1.0)
