"""Protocols and rollout workers."""

from typing import Literal

from pydantic import Field, model_validator

from srl.config.section import Section


class ProtocolConfig(Section):
    name: str = Field(
        "long_chain",
        description="Form of the trained model's answers: `long_chain`, one assistant message; `two_turn`, attempt and verdict, "
        "user, revision; `prompted`, a verdict and after `wrong` a revision when asked (PAG); `intrinsic`, a second attempt when "
        "asked, without verdict (SCoRe); `attempt`, one; `gold`, `misleading` and `judged`, also with `_chain` or `_two_turn`: "
        "the first two with the verdict of the gold answer, its opposite, or that of `judge` (protocols/protocol.py); or "
        "module:function, from configuration and chat to a Protocol.",
    )
    grammar: Literal["verify", "yes_no"] = Field(
        "verify",
        description="`verify`: [VERIFY] correct/wrong; `yes_no`: Is my most recent final answer correct (Yes or No)? Yes/No.",
    )
    max_rounds: int = Field(1, ge=1, description="Most revisions in one trajectory; a long chain's are the model's own choice.")
    judge: str = Field(
        "",
        description="For the protocols `judged`: the folder of a reward model, as a path with a slash; `served`, a model at "
        "`judge_url`; or module:function, from configuration to judge (rollout/judges.py).",
    )
    judge_url: str = Field("", description="OpenAI-compatible endpoint of the judge `served`, such as http://host:8000/v1.")
    judge_timeout_s: float = Field(60, gt=0, description="Longest wait for a judge's verdict, seconds.")
    max_tokens: int = Field(0, ge=0, description="Most tokens sampled in one trajectory, all turns together; 0 is no limit.")
    max_seconds: float = Field(0, ge=0, description="Longest time for one trajectory in the engine, seconds; 0 is no limit.")

    @property
    def form(self) -> str:
        """Where the model's own verdict stands: `_chain` in its one message, `_two_turn` before a user's turn; "" nowhere."""
        forms = () if ":" in self.name else ("_chain", "_two_turn")
        return next((form for form in forms if f"_{self.name}".endswith(form)), "")


class RolloutConfig(Section):
    workers: int = Field(1, ge=1, description="Rollout actors, each with one vLLM engine.")
    cpus: float = Field(1, ge=0, description="CPUs that Ray reserves per rollout actor.")
    gpus: float = Field(0, ge=0, description="GPUs per rollout actor; 0 runs vLLM on CPU.")
    nodes: dict[str, str] = Field({}, description="Ray node labels that the node of every rollout actor must have.")
    colocate: bool = Field(
        False,
        description="Engine i shares the GPU of learner rank i and sleeps while the learners train. Needs as many engines as "
        "ranks, the same gpus (1; or 0: on CPU the order is kept, but no memory is freed) and the same nodes.",
    )
    threads: int = Field(1, ge=1, description="Torch threads per engine on CPU.")
    tensor_parallel: int = Field(1, ge=1, description="vLLM tensor parallelism; needs gpus >= this.")
    kv_cache_gib: float = Field(0.25, gt=0, description="Key-value cache on CPU, GiB.")
    gpu_memory: float = Field(0.85, gt=0, le=1, description="Share of GPU memory for vLLM.")
    max_sequences: int = Field(256, ge=1, description="Most sequences that one engine runs at once.")
    max_attempt_tokens: int = Field(64, gt=0, description="Tokens per attempt or revision sampled on its own.")
    max_verdict_tokens: int = Field(160, gt=0, description="Tokens per verdict sampled on its own.")
    max_response_tokens: int = Field(360, gt=0, description="Tokens per long chain.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Share of probability that sampling chooses from; log-probabilities stay those of all of it."
    )
    max_held: int = Field(
        0,
        ge=0,
        description="Most trajectories the pool holds, waiting, running or not yet taken; 0 is four times what runs.",
    )
    weight_update: Literal["finish", "continue"] = Field(
        "finish",
        description="What runs when weights arrive (rl.ahead) ends under the old ones first, or goes on under the new ones. "
        "With `finish` an engine begins no more trajectories meanwhile (with learner.transfer broadcast or ipc: until all have "
        "ended theirs), and the next step waits, each time about as long as the longest that runs takes.",
    )
    record: str = Field("", description="File to which finished trajectories are appended, JSON lines; empty for none.")
    replay: str = Field("", description="Such a file, whose trajectories are given again in place of vLLM's; empty for vLLM.")
    timeout_s: float = Field(
        600,
        gt=0,
        description="Longest wait for a group, or for weights to load, on one worker, seconds; while the driver trains "
        "or grades, this and `hang_s` do not pass.",
    )
    hang_s: float = Field(
        120,
        gt=0,
        description="Longest time without an engine step (in `serve`, where /health is 503 then: without a token) while there is "
        "work, seconds.",
    )
    start_timeout_s: float = Field(300, gt=0, description="Longest wait for an engine to start, seconds.")
    retries: int = Field(2, ge=0, description="How often a group is tried again after its worker died; then it has failed.")

    @model_validator(mode="after")
    def _gpus(self) -> "RolloutConfig":
        if self.tensor_parallel > 1 and self.gpus < self.tensor_parallel:
            raise ValueError(f"rollout.tensor_parallel={self.tensor_parallel} needs rollout.gpus >= it, found {self.gpus}")
        return self
