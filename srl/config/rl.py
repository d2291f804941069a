"""Stage 2: how much is sampled and trained, what is rewarded, which loss."""

import re
from typing import Literal

from pydantic import Field, model_validator

from srl.config.section import Section

Importance = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
PLACE = re.compile(r"(?:attempt|verdict|revision)(?:/[1-9]\d*)?")  # of a weight in objective.kl_by


class RlConfig(Section):
    """Stage 2: sample, grade, select, update, repeat."""

    start: str = Field("ift", description="Where the policy starts: `ift`, `base`, or a model folder such as another run's rl.")
    steps: int = Field(25, ge=1, description="Rollout-and-update steps.")
    prompts: int = Field(48, ge=1, description="Problems per step.")
    group: int = Field(8, ge=1, description="Trajectories per problem.")
    filters: list[str] = Field([], description="Which trajectories are trained on: names of srl/pipelines/filters.py, in order.")
    refill: int = Field(
        0,
        ge=0,
        description="How often in a step groups whose members all get the same reward are replaced by groups of further problems "
        "(DAPO's dynamic sampling); what is left of them after that is trained as ever.",
    )
    extra: Literal["none", "verification", "restart"] = Field(
        "none",
        description="Further groups that start from this step's attempts: `verification` asks for a verdict on one "
        "(RISE-online), `restart` goes on after one (Satori).",
    )
    extra_share: float = Field(0.125, gt=0, le=1, description="Further groups as a share of `prompts`.")
    mini_batches: int = Field(2, ge=1, description="Optimizer steps per pass over a step's trajectories.")
    epochs: int = Field(1, ge=1, description="Passes over a step's trajectories.")
    learning_rate: float = Field(2e-4, gt=0, description="Learning rate, constant after warm-up.")
    warmup_steps: int = Field(2, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest gradient norm.")
    reference_every: int = Field(
        0, ge=0, description="Steps after which the reference becomes the current policy (iterative DPO: 1); 0 keeps it fixed."
    )
    previous_share: float = Field(
        0.0, ge=0, lt=1, description="Share of each group sampled by the policy of the step before (M-DPO's mixture: 0.33)."
    )
    ahead: int = Field(
        0,
        ge=0,
        description="Steps that sampling may run ahead of training: there are (this + 1) x prompts slots for groups, each freed "
        "when the weights that its group was trained into are loaded. 0 is synchronous.",
    )
    importance: Importance = Field(
        "token_truncate",
        description="What makes up for another policy having sampled a token, older weights or bfloat16 in both: its importance "
        "weight (`token_`) or the geometric mean of its sequence's (`sequence_`), cut to `importance_cap` (`truncate`), or the "
        "tokens left out for which it is not between 1 / `importance_cap` and that (`mask`).",
    )
    importance_cap: float = Field(2.0, ge=1, description="Largest importance weight.")
    evaluate_every: int = Field(5, ge=1, description="Steps between evaluations on the validation problems.")
    patience: int = Field(0, ge=0, description="Evaluations in a row without a better one after which RL stops; 0 never.")

    @property
    def previous_members(self) -> int:
        """Trajectories of each group that the policy of the step before samples."""
        return round(self.previous_share * self.group)

    @model_validator(mode="after")
    def _mixture(self) -> "RlConfig":
        if self.ahead and self.previous_share:
            raise ValueError(f"rl.ahead={self.ahead} and rl.previous_share={self.previous_share:g}: the mixture needs ahead=0")
        if self.previous_share and not 0 < (old := self.previous_members) < self.group:
            raise ValueError(
                f"rl.previous_share={self.previous_share:g} of rl.group={self.group} is {old} trajectories: a mixture needs both"
            )
        return self


class CreditConfig(Section):
    """From graded trajectories to advantages."""

    rewards: dict[str, float] = Field(
        {"final_outcome": 1.0},
        min_length=1,
        description="Reward rules of srl/reward/shaping.py, or module:function, and their weights.",
    )
    turn_discount: float = Field(
        1.0, ge=0, le=1, description="What a turn gets of the next turn's return; 0 pays every turn for itself alone."
    )
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce", "reinforce++", "gae"] = Field(
        "grpo", description="Estimator. `gae` trains a critic; `reinforce++` sums token rewards and normalises over the batch."
    )
    group: Literal["prompt", "prompt_kind_position", "history", "batch"] = Field(
        "prompt", description="Which turns are compared: of one prompt, also of one kind and position, of one history of rewards."
    )
    normalise: Literal["none", "batch", "role"] = Field(
        "none", description="Mean 0 and variance 1 over all tokens, or apart over those of solver and verifier (PAG)."
    )

    @property
    def needs_critic(self) -> bool:
        return self.advantage == "gae"


class ObjectiveConfig(Section):
    """The loss of stage 2."""

    loss: str = Field("policy", description="`policy`, `sft`, `dpo`, `kto`, or module:function for a policy loss of your own.")
    average: Literal["token", "sequence"] = Field(
        "token", description="What counts equally: tokens of the whole step, or trajectories (GRPO's first form)."
    )
    ratio: Literal["token", "sequence"] = Field("token", description="Probability ratio per token, or per trajectory (GSPO).")
    clip_low: float = Field(0.2, gt=0, lt=1, description="Lower clip of the probability ratio is 1 - this.")
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio is 1 + this.")
    dual_clip: float = Field(0.0, ge=0, description="Bound of the loss at negative advantages, in advantages; 0 for none.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    kl: float = Field(
        0.001,
        ge=0,
        description="eta: weight of the KL to the reference, per token. At 0 there is no reference, and groups whose members all "
        "get the same reward are not trained.",
    )
    kl_by: dict[str, float] = Field(
        {}, description="Other weights of the KL for a kind of turn or its position: `attempt/1: 0.1` (SCoRe), `verdict: 0`."
    )
    kl_estimate: Literal["k1", "k2", "k3"] = Field("k3", description="k1: log-ratio; k2: half its square; k3: never negative.")
    kl_in: Literal["loss", "reward"] = Field("loss", description="Where the KL is: in the loss, or taken off the reward.")
    kl_target: float = Field(0.0, ge=0, description="KL per token that the weight is adapted to; 0 leaves the weight alone.")
    pairs: list[str] = Field(["correctness"], description="Pair rules of `dpo`: names of PAIR_RULES in srl/pipelines/pairs.py.")
    share_attempt: bool = Field(False, description="Only pairs with the same first attempt, token by token.")
    beta: float = Field(0.1, gt=0, description="eta of the preference losses: scale of the log-ratio to the reference.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share with which a pair counts the other way round.")
    consistency: bool = Field(
        False, description="CREAM: smooth by how differently this policy and that of the step before rank each group."
    )
    nll: float = Field(0.0, ge=0, description="Weight of the winners' negative log-likelihood per token.")

    @property
    def needs_reference(self) -> bool:
        """Whether anything is measured against a frozen reference: if not, none is kept in memory."""
        return self.loss in ("dpo", "kto") or (self.loss != "sft" and max(self.kl, *self.kl_by.values(), 0.0) > 0)

    @model_validator(mode="after")
    def _meaningful(self) -> "ObjectiveConfig":
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"objective.dual_clip={self.dual_clip:g} must be above 1, or 0 for none")
        for place, weight in self.kl_by.items():
            if not PLACE.fullmatch(place) or weight < 0:
                raise ValueError(
                    f"objective.kl_by={{{place}: {weight:g}}}: a weight is not below 0, and is of attempt, verdict or "
                    "revision, or of the n-th of those, such as revision/1"
                )
        if self.kl_estimate == "k1" and self.kl_in == "loss" and max(self.kl, *self.kl_by.values(), 0.0):
            raise ValueError("objective.kl_estimate=k1 has no gradient on average as a loss: use k2 or k3, or kl_in=reward")
        return self


class CriticConfig(Section):
    """The critic of `credit.advantage=gae`: a learner group of its own."""

    learning_rate: float = Field(1e-3, gt=0, description="Learning rate, constant.")
    clip: float = Field(0.5, gt=0, description="Largest change of a value in one step that is not clipped.")
    warmup_steps: int = Field(0, ge=0, description="First steps in which only the critic learns.")
    discount: float = Field(1.0, gt=0, le=1, description="gamma between tokens of a turn.")
    trace: float = Field(1.0, ge=0, le=1, description="lambda of the generalised advantage estimation.")
