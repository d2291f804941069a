"""The planner: numbers worked by hand, published numbers, and what a real forward pass keeps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

from srl.config import Config, ConfigError, load_config
from srl.driver.plan import derived, model_shape, placement_report
from srl.driver.scale import (
    MACHINES,
    Shape,
    Work,
    activation_bytes,
    bucket_bytes,
    cache_bytes_per_token,
    concurrent_sequences,
    evaluate_split,
    gathered_bytes,
    learner_bytes,
    learner_s,
    logits_bytes,
    plan_placement,
    rl_work,
    rollout_s,
    scaling,
    state_bytes,
    stops_at,
    sync_s,
)
from srl.learner.batch import Example, collate
from srl.learner.model import FAMILIES, LOGITS_AT_ONCE, TokenLogprobs
from srl.learner.packing import ATTENTION
from srl.main import main

# The shapes of Qwen2.5-7B and Qwen3-4B.
QWEN_7B = Shape(7_615_616_512, 28, 3584, 28, 4, 128, 18944, 152064)
QWEN_4B = Shape(4_022_468_096, 36, 2560, 32, 8, 128, 9728, 151936)
BASE = Path(__file__).parents[1] / "srl/tasks/base"
H100, H200 = MACHINES["h100"], MACHINES["h200"]


def paper(*overrides: str) -> Config:
    return load_config("qwen2.5-math-7b.yaml", list(overrides))


def saved_bytes(model: torch.nn.Module, tokens: int) -> int:
    """What autograd keeps of a forward pass besides parameters, each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, sizes = [], {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    quarter = tokens // 4
    example = [
        Example(str(i), [7] * quarter, [0.0] * (quarter - 2) + [1.0] * 2, [0.0] * quarter, [0.0] * quarter) for i in range(4)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        TokenLogprobs(model)(collate(example, 0))
    return sum(sizes.values())


@pytest.mark.parametrize(("inner", "kv_heads", "layers"), [(384, 2, 4), (1024, 4, 4), (512, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_a_real_forward_pass_keeps(inner: int, kv_heads: int, layers: int, dtype: torch.dtype):
    config = Qwen2Config(
        hidden_size=256, intermediate_size=inner, num_attention_heads=4, num_hidden_layers=layers, num_key_value_heads=kv_heads,
        vocab_size=64,
    )  # fmt: skip
    shape, each, tokens = Shape(0, layers, 256, 4, kv_heads, 64, inner, 64), dtype.itemsize, 1024
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    assert saved_bytes(model, tokens) == pytest.approx(activation_bytes(shape, tokens, each, False), rel=0.15)
    # With checkpointing, the backward pass holds what was saved and one layer that it computes again.
    model.gradient_checkpointing_enable()
    one_layer = activation_bytes(Shape(0, 1, 256, 4, kv_heads, 64, inner, 64), tokens, each, False)
    assert saved_bytes(model, tokens) + one_layer == pytest.approx(activation_bytes(shape, tokens, each, True), rel=0.15)


def test_state_of_a_7b_model_by_hand():
    # In bfloat16 weight 2, and in float32 gradient 4, master 4, moments 8, over 8 ranks; 2 of the reference, also sharded.
    assert state_bytes(paper(), QWEN_7B, 8, reference=True) == QWEN_7B.parameters * 2.5
    # Stage 0 in bfloat16 is stage 2: weight and reference whole, the other 16 sharded. Offloading leaves the weight.
    assert state_bytes(paper("learner.zero_stage=0"), QWEN_7B, 8, reference=True) == QWEN_7B.parameters * 6
    offloaded = paper("learner.zero_stage=0", "learner.offload_optimizer=true")
    assert state_bytes(offloaded, QWEN_7B, 8, reference=False) == QWEN_7B.parameters * 2
    float32 = paper("learner.zero_stage=0", "model.dtype=float32")
    assert state_bytes(float32, QWEN_7B, 8, reference=True) == QWEN_7B.parameters * (4 + 4 + 8 + 4)


def test_adapters_have_all_of_the_training_state_and_no_reference(tmp_path: Path):
    qwen_7b(tmp_path)
    shape = model_shape(paper(f"model.path={tmp_path}", "learner.lora_rank=16"))
    # 16 x (in + out) of q, o: 3584 + 3584; k, v: 3584 + 512; gate, up, down: 3584 + 18944; in 28 layers
    assert shape.adapters == 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22528) and shape.parameters == QWEN_7B.parameters
    expected = 2 * shape.parameters + 18 * shape.adapters
    assert state_bytes(paper("learner.lora_rank=16"), shape, 1, reference=True) == expected
    with pytest.raises(ConfigError, match="learner.lora_targets"):
        model_shape(paper(f"model.path={tmp_path}", "learner.lora_rank=16", "learner.lora_targets=[nothing]"))


@pytest.mark.parametrize("rank", [0, pytest.param(8, marks=pytest.mark.long)])
def test_the_state_is_what_a_real_engine_keeps_between_two_micro_batches(rank: int):
    settings = ["model.dtype=bfloat16", f"learner.lora_rank={rank}"]
    program = f"""
import gc, socket, torch
from srl.config import load_config
from srl.learner.batch import Example, collate
from srl.learner.engine import Engine, join_ranks
from srl.learner.lora import add_adapters
from srl.learner.model import TokenLogprobs, load_model
config = load_config(None, {settings})
with socket.socket() as probe:
    probe.bind(("", 0))
    port = probe.getsockname()[1]
join_ranks(("127.0.0.1", port), 0, 1, False, 3600.0)
backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
print("limit", backend.options._timeout.total_seconds())
module = TokenLogprobs(load_model({str(BASE)!r}, config.model))
if {rank}:
    add_adapters(module.model, {rank}, 32, config.learner.lora_targets)
engine = Engine(module, config, 0.0, 1.0)
batch = collate([Example("a", [7] * 20, [0.0] * 10 + [1.0] * 10, [0.0] * 20, [0.0] * 20)], 0)
for last in (True, False):
    engine.backward(engine(batch)[0].sum(), last)
gc.collect()
kept = {{t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)}}
print("kept", sum(kept.values()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, cwd=BASE.parents[2])
    (kept,) = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("kept ")] or [done.stderr]
    config = load_config(None, settings)
    # The ranks wait for each other longer than the driver for them, whose message names the setting.
    assert [line for line in done.stdout.splitlines() if line.startswith("limit ")] == ["limit 3660.0"]
    assert kept == pytest.approx(state_bytes(config, model_shape(config), 1, reference=False), rel=0.05)


def test_passes_are_those_that_a_step_makes():
    def passes(*settings: str) -> float:
        return rl_work(paper(*settings), 900, 150).passes

    # Forward, backward 2, recomputation, reference, and the policy's own probabilities because bfloat16 rounds.
    assert passes() == 1 + 2 + 1 + 1 + 1
    assert passes("objective.kl=0") == 5 and passes("rl.epochs=2") == 11 and passes("learner.lora_rank=8") == 5
    assert passes("model.dtype=float32") == 5 and passes("model.dtype=float32", "rl.ahead=1") == 6
    assert passes("recipe=raft") == 4 and passes("recipe=dpo") == 5
    # A critic trains as the policy does, and gives its values first.
    assert passes("credit.advantage=gae") == 6 + 4 + 1


def test_cache_and_how_many_sequences_it_holds_by_hand():
    # 2 (key, value) x 28 layers x 4 heads x 128 x 2 bytes
    assert cache_bytes_per_token(paper(), QWEN_7B) == 57_344
    # (80 GiB x 0.85 - 15.2 GB) / (57344 B x 4000) = 252; the setting allows 512
    assert concurrent_sequences(paper(), QWEN_7B, H100, 1, 4000) == 251
    assert concurrent_sequences(paper(), QWEN_7B, H100, 1, 400) == 512


@pytest.mark.parametrize(
    ("name", "published", "predicted"),
    [
        (
            "512 x 8 k tokens, 7B, one H100: 11 minutes",
            660,
            rollout_s(
                paper("model.max_length=16384", "rollout.gpu_memory=0.9"), QWEN_7B, H100, Work(512, 8192, 100, 8192, 5), 1, 1
            ),
        ),
        (
            "fine-tuning Qwen3-4B at 16 k tokens, 8 H200",
            53_100,
            8 * 16384 / learner_s(QWEN_4B, H200, Work(8, 16384, 0, 16384, 3), 8),
        ),
        (
            "RL training of Qwen3-4B at 16 k tokens, 8 H200",
            27_400,
            8 * 16384 / learner_s(QWEN_4B, H200, Work(8, 16384, 0, 16384, 5), 8),
        ),
    ],
)
def test_published_numbers_are_met_within_a_quarter(name: str, published: float, predicted: float):
    assert predicted == pytest.approx(published, rel=0.25), name


def test_the_embedded_task_takes_what_a_run_on_two_cores_took():
    """The medians of a run: 119 sampled tokens a trajectory, rollout 6.7 s, learner 2.5 s."""
    config = load_config(None, [])
    shape, machine = model_shape(config), MACHINES["cpu"]
    work = rl_work(config, 119, 40)
    assert rollout_s(config, shape, machine, work, 1, 1) == pytest.approx(6.7, rel=0.1)
    assert learner_s(shape, machine, work, 1) == pytest.approx(2.5, rel=0.1)


def test_a_step_of_a_twelfth_of_the_size_was_predicted_within_a_factor_of_two():
    """8 x 4 trajectories of 120 tokens, one thread, beside one other program: rollout 1.45 s, learner 0.35 s."""
    config = load_config(None, ["rl.prompts=8", "rl.group=4"])
    shape, machine = model_shape(config), MACHINES["cpu"]
    work = rl_work(config, 120, 40)
    assert 1.45 / 2 < rollout_s(config, shape, machine, work, 1, 1) < 1.45 * 2
    assert 0.35 / 2 < learner_s(shape, machine, work, 1) < 0.35 * 2


def test_weights_take_as_long_as_their_way_by_hand():
    # 15.2 GB: put into and pulled from the object store at 2 GB/s; sent over links of 30 GB/s; gathered over them, and then read
    # and written at 0.55 of 3.35 TB/s.
    assert sync_s("store", H100, 15.2e9) == pytest.approx(15.2)
    assert sync_s("broadcast", H100, 15.2e9) == pytest.approx(0.507, abs=1e-3)
    assert sync_s("ipc", H100, 15.2e9) == pytest.approx(0.507 + 0.0165, abs=1e-3)
    config = paper("learner.transfer=store")
    plan = evaluate_split(config, QWEN_7B, H100, rl_work(config, 900, 150), (6, 2, 1), LOGITS_AT_ONCE)
    assert plan.sync_s == pytest.approx(2 * 2 * QWEN_7B.parameters / 2e9)


def test_grading_costs_what_it_takes_longer_than_sampling():
    # 1024 x 8 trajectories of two answers, 220 a second: 74.5 s with one actor, less than sampling takes on two engines.
    config = paper("reward.workers=1")
    few = evaluate_split(config, QWEN_7B, H100, rl_work(config, 900, 150), (6, 2, 1), LOGITS_AT_ONCE)
    many = evaluate_split(config, QWEN_7B, H100, rl_work(config, 900, 150), (60, 20, 1), LOGITS_AT_ONCE)
    assert few.rollout_s > 74.5 and few.reward_s == 0
    assert many.reward_s == pytest.approx(74.5 - many.rollout_s, abs=0.1)


def test_no_other_split_is_faster_than_the_plan():
    work = rl_work(paper(), 900, 150)
    plan = plan_placement(paper(), QWEN_7B, H100, work, 16, LOGITS_AT_ONCE)
    others = [evaluate_split(paper(), QWEN_7B, H100, work, (ranks, 16 - ranks, 1), LOGITS_AT_ONCE) for ranks in range(1, 16)]
    assert plan.learners + plan.engines * plan.tensor_parallel <= 16
    assert plan.step_s <= min(other.step_s for other in others if other)


def test_engines_beside_learners_use_every_device_twice_while_both_fit_into_its_memory():
    beside = paper("rollout.colocate=true", "rollout.gpu_memory=0.5")
    plan = plan_placement(beside, QWEN_7B, H100, rl_work(beside, 1000, 150), 8, LOGITS_AT_ONCE)
    assert (plan.learners, plan.engines, plan.tensor_parallel, plan.colocated) == (8, 8, 1, True)
    # The learner keeps 2.5 bytes of each of 7.6e9 parameters, 17.7 GiB, and a bucket of 5e8 elements of 2 bytes, 0.9 GiB, and
    # for a checkpoint has the 152064 x 3584 of the embedding whole in float32, 2.0 GiB: vLLM may have 0.95 - 20.7 / 80 = 0.691.
    for share, fits in ((0.69, True), (0.70, False)):
        asked = paper("rollout.colocate=true", f"rollout.gpu_memory={share}")
        assert (evaluate_split(asked, QWEN_7B, H100, rl_work(asked, 1000, 150), (8, 8, 1), LOGITS_AT_ONCE) is not None) is fits


def test_what_does_not_fit_is_no_plan():
    work = rl_work(paper(), 900, 150)
    assert plan_placement(paper(), QWEN_7B, H100, work, 2, LOGITS_AT_ONCE) is None  # 20 bytes x 7.6 G on one rank
    # Weight and reference whole, gradients and optimizer over 2 ranks: 12 bytes x 7.6 G on each.
    assert evaluate_split(paper("learner.zero_stage=2"), QWEN_7B, H100, work, (2, 8, 1), LOGITS_AT_ONCE) is None


def test_more_devices_never_make_a_step_slower_and_end_to_help():
    work = rl_work(paper(), 900, 150)
    plans = scaling(paper(), QWEN_7B, H100, work, [8, 16, 64, 256, 512, 1024], LOGITS_AT_ONCE)
    seconds = [plan.step_s for _, plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    # The longest trajectory does not shrink with the number of devices.
    assert stops_at(plans) == 512
    longer = Work(work.trajectories * 16, 900, 150, work.longest, work.passes)
    assert stops_at(scaling(paper(), QWEN_7B, H100, longer, [8, 16, 64, 256, 512, 1024], LOGITS_AT_ONCE)) is None


def qwen_7b(folder: Path) -> None:
    settings = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings))


def test_a_plan_names_the_settings_and_a_misfit_the_remedies(tmp_path: Path):
    qwen_7b(tmp_path)
    config = paper(f"model.path={tmp_path}")
    assert model_shape(config) == QWEN_7B
    text = placement_report(config, "h100", 16, 900, 150)
    assert "set: learner.workers=12 rollout.workers=4 rollout.tensor_parallel=1" in text
    assert "with this batch, twice 512 devices" in text
    with pytest.raises(ConfigError, match="2 x h100: does not fit: a learner rank takes .* learner.zero_stage=3"):
        placement_report(config, "h100", 2, 900, 150)


def test_ranks_hold_a_bucket_from_zero_1_on_and_a_billion_whole_weights_under_zero_3():
    """Of DeepSpeed's defaults, in bytes of bfloat16; on CPU no more of them than the model can fill."""

    def beside_state(shape: Shape, *settings: str) -> float:
        config = paper(*settings)
        tokens, micro = activation_bytes(shape, 8192, 2, True), logits_bytes(shape, 8192, LOGITS_AT_ONCE)
        return learner_bytes(config, shape, 8, True, LOGITS_AT_ONCE) - state_bytes(config, shape, 8, True) - tokens - micro

    per_pass = ["learner.micro_batch_tokens=8192", "learner.gradient_checkpointing=true"]
    for stage, expected in ((0, 1e9), (1, 1e9), (2, 1e9), (3, 1e9 + 2e9)):  # in bfloat16 0 is 1
        assert beside_state(QWEN_7B, *per_pass, f"learner.zero_stage={stage}") == expected
    small = replace(QWEN_7B, parameters=1000)
    assert beside_state(small, *per_pass) == 1e9 + 2000
    assert beside_state(small, *per_pass, "learner.gpus=0", "rollout.gpus=0") == 2000 + 2000
    plain = paper("learner.zero_stage=0", "model.dtype=float32")
    assert bucket_bytes(plain, small) == gathered_bytes(plain, small) == 0


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_that_is_trained_can_be_planned(family: str, tmp_path: Path):
    AutoConfig.for_model(family, num_hidden_layers=2).save_pretrained(tmp_path)
    shape = model_shape(paper(f"model.path={tmp_path}"))
    assert shape.parameters > 0 and shape.layers == 2
    # Of experts those that a token takes: two and eight.
    other = {"gpt2": 3072, "opt": 3072, "mixtral": 2 * 14336, "qwen3_moe": 8 * 768}
    assert shape.inner == (other.get(family) or AutoConfig.for_model(family).intermediate_size)


def test_of_experts_a_token_is_computed_with_its_own_and_a_batch_reads_those_of_all_its_tokens(tmp_path: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32}
    AutoConfig.for_model("mixtral", intermediate_size=24, num_local_experts=4, **sizes).save_pretrained(tmp_path / "mixtral")
    own = {"intermediate_size": 64, "moe_intermediate_size": 8, "num_experts": 8, "num_experts_per_tok": 2}
    AutoConfig.for_model("qwen3_moe", **own, **sizes).save_pretrained(tmp_path / "qwen3_moe")
    mixtral, qwen = (model_shape(paper(f"model.path={tmp_path / name}")) for name in ("mixtral", "qwen3_moe"))
    # Three matrices of an expert, in two layers; a token takes two experts.
    assert (mixtral.experts, mixtral.share, mixtral.inner) == (2 * 4 * 3 * 16 * 24, 1 / 2, 2 * 24)
    assert (qwen.experts, qwen.share, qwen.inner) == (2 * 8 * 3 * 16 * 8, 1 / 4, 2 * 8)
    assert qwen.used(1) == qwen.parameters - qwen.experts * 3 / 4
    assert qwen.used(2) == qwen.parameters - qwen.experts * 9 / 16
    assert QWEN_7B.used(1) == QWEN_7B.parameters
    said = derived(paper(f"model.path={tmp_path / 'qwen3_moe'}"))["parameters"]
    assert said == f"{qwen.parameters:,} ({qwen.used(1):,.0f} for a token)"
    # Of a model that is nothing but experts, a quarter of them used, training takes a quarter of the time.
    experts = Shape(8_000_000_000, 0, 0, 0, 0, 0, 0, 0, experts=8_000_000_000, share=0.25)
    work = Work(8, 100, 100, 200, 3.0)
    dense = replace(experts, experts=0, share=1.0)
    assert learner_s(experts, H100, work, 1) == pytest.approx(learner_s(dense, H100, work, 1) / 4)


def test_a_critic_has_nodes_of_its_own(tmp_path: Path):
    qwen_7b(tmp_path)
    beside = ["rollout.colocate=true", "rollout.gpu_memory=0.5", "recipe=ppo", f"model.path={tmp_path}"]
    text = placement_report(paper(*beside), "h100", 24, 900, 150)
    # 12 learners with engines beside them, 12 for the critic: 2 + 2 nodes of 8
    assert "learner.workers=12" in text and "an engine beside every learner, nor these and the critic: 4" in text


def test_a_plan_is_of_the_machines_it_is_asked_for_whatever_the_configuration_was_written_for(tmp_path: Path):
    qwen_7b(tmp_path)
    on_gpus = paper(f"model.path={tmp_path}")
    on_cpu = paper(f"model.path={tmp_path}", "learner.gpus=0", "rollout.gpus=0")
    assert placement_report(on_cpu, "h100", 16, 900, 150) == placement_report(on_gpus, "h100", 16, 900, 150)


@pytest.mark.parametrize(("gpu", "each"), [("cpu", 0), ("h100", 1)])
def test_the_command_prints_a_plan_whose_settings_ask_for_gpus_only_where_there_are_some(gpu: str, each: int, capsys):
    assert main(["plan", "--gpu", gpu, "--gpus", "2", "--tokens", "115", "--prompt", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (settings,) = [line.removeprefix("set: ").split() for line in lines if line.startswith("set: ")]
    config = load_config("tiny.yaml", settings)
    assert (config.learner.gpus, config.rollout.gpus) == (each, each)
    assert any(line.startswith("step: ") for line in lines)


def test_the_command_fails_where_nothing_fits(capsys):
    assert main(["plan", "--gpus", "1", "--tokens", "115", "--prompt", "40"]) == 2
    assert "1 x h100: does not fit" in capsys.readouterr().err


def test_the_dry_run_counts_activations():
    small = derived(load_config(None, ["learner.micro_batch_tokens=1024"]))["memory per learner actor"]
    large = derived(load_config(None, ["learner.micro_batch_tokens=65536"]))["memory per learner actor"]
    assert float(large.split()[0]) > float(small.split()[0])
    assert large.endswith("activations of 65,536 tokens included")
