"""TRL's trainers in a process of their own, one optimizer step at a time, so that a benchmark can alternate with them.

The process runs in whatever Python has TRL (1.0 or later) installed; nothing of srl is needed there. A trainer takes a step for
each line it reads and answers with one line of JSON: seconds from the line to the end of the step, data and sampling included,
and the loss of the step before.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MARK = "@step "  # begins an answer; the trainers print other lines too


class Trainer:
    """`job` has `trainer` (sft, grpo), `model` (a folder), `threads`, `rate`, `batch` (rows of an optimizer step),
    `rows_per_pass`, `defaults`, and what that trainer wants besides."""

    def __init__(self, python: str, job: dict[str, Any]):
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(job, file)
        # -P: modules beside this file must not hide installed ones.
        command = [python, "-P", str(Path(__file__).resolve()), file.name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> dict[str, float]:
        """Take one optimizer step. Raises RuntimeError when the process has ended."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"TRL's process ended with {self.process.wait()}; what it said stands above")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def rows_per_pass(batch: int, length: float, budget: int) -> int:
    """The most rows of that length that divide the batch and have no more tokens than the budget together."""
    return max(size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * length <= budget))


def shared(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of both trainers: as srl trains, on CPU. `defaults` are TRL's: bfloat16 autocast and gradient checkpointing."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["rows_per_pass"],
        "gradient_accumulation_steps": job["batch"] // job["rows_per_pass"],
        "max_steps": 10**6,
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "bf16": job["defaults"],
        "gradient_checkpointing": job["defaults"],
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }


def sft(job: dict[str, Any]):
    """Rows have `input_ids` and `labels`; `batch` of them make an optimizer step, in their order."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(**shared(job), max_length=None, train_sampling_strategy="sequential")
    return SFTTrainer(model(job), args=settings, train_dataset=Dataset.from_list(job["rows"]), processing_class=tokenizer(job))


def grpo(job: dict[str, Any]):
    """Rows have `prompt` (messages) and `gold`; `batch` trajectories, `group` for each prompt, make an optimizer step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    counted = {"tokens": 0, "generate_s": 0.0}

    def reward(completions, completion_ids, gold, **_) -> list[float]:
        counted["tokens"] += sum(map(len, completion_ids))
        return [float(last_boxed(done[0]["content"]) == right) for done, right in zip(completions, gold, strict=True)]

    settings = GRPOConfig(
        **shared(job),
        num_generations=job["group"],
        max_completion_length=job["longest"],
        temperature=1.0,
        top_k=0,
        beta=0.0,
        shuffle_dataset=False,
        generation_kwargs={"eos_token_id": job["stop_ids"]},
    )
    policy = model(job)
    generate = policy.generate

    def timed(*arguments, **named):
        started = time.monotonic()
        found = generate(*arguments, **named)
        counted["generate_s"] += time.monotonic() - started
        return found

    policy.generate = timed
    rows = Dataset.from_list(job["rows"])
    trainer = GRPOTrainer(policy, reward, args=settings, train_dataset=rows, processing_class=tokenizer(job))
    trainer.counted = counted
    return trainer


def last_boxed(text: str) -> str:
    found = re.findall(r"\\boxed\s*\{\s*([^}]*?)\s*\}", text)
    return found[-1] if found else ""


def model(job: dict[str, Any]):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)


def tokenizer(job: dict[str, Any]):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job["model"], padding_side="left")


def main() -> None:
    from transformers import TrainerCallback

    class StepByStep(TrainerCallback):
        def wait(self, control) -> None:
            if not sys.stdin.readline():
                control.should_training_stop = True
            self.started = time.monotonic()

        def on_train_begin(self, args, state, control, **_) -> None:
            self.wait(control)

        def on_step_end(self, args, state, control, **_) -> None:
            logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
            found = {"seconds": time.monotonic() - self.started, "loss_before": logged[-1] if logged else None, **counted}
            counted.update(dict.fromkeys(counted, 0))
            print(MARK + json.dumps(found), flush=True)
            self.wait(control)

    file = Path(sys.argv[1])
    job = json.loads(file.read_text())
    file.unlink()
    trainer = {"sft": sft, "grpo": grpo}[job["trainer"]](job)
    counted = getattr(trainer, "counted", {})
    trainer.add_callback(StepByStep())
    trainer.train()


if __name__ == "__main__":
    main()
