"""Train the embedded base model from nothing, on one machine, without Ray: `python -m srl.main pretrain --to FOLDER`.

The corpus never repeats, so the training loss is a validation loss; and as there is exactly one right text for each document,
exp(-sum of its losses) is the probability that sampling at temperature 1 gives that text. The log shows it by kind.
"""

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from srl.config import PretrainConfig, PretrainStage
from srl.tasks.chains import Part, chains, document
from srl.tasks.tokenizer import build_tokenizer

IGNORED = -100
SHARPNESS = 5.0  # gives a head that looks back over 80 % of its attention where it should be


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    torch.manual_seed(config.seed)
    shape = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=config.width,
        intermediate_size=3 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // 32,
        num_key_value_heads=config.width // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(shape)
    for head in range(1, min(4, shape.num_attention_heads)):
        look_back(model, head, head)
    return model


def look_back(model: Qwen2ForCausalLM, head: int, distance: int) -> None:
    """Make a head of the first layer attend `distance` tokens back when training starts.

    Copying needs such a head, and so small a model takes ten million tokens to find it. Rotary embeddings turn a key at position
    k by k times each frequency; with constant query and key biases whose phases differ by `distance` times it, their product
    is largest where query and key are that far apart.
    """
    attention, size = model.model.layers[0].self_attn, model.config.hidden_size // model.config.num_attention_heads
    angle_f = distance * model.model.rotary_emb.inv_freq
    rows = slice(head * size, (head + 1) * size)
    with torch.no_grad():
        attention.q_proj.bias[rows] = SHARPNESS * torch.cat([torch.ones_like(angle_f), torch.zeros_like(angle_f)])
        attention.k_proj.bias[rows] = SHARPNESS * torch.cat([angle_f.cos(), angle_f.sin()])


def encode(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part]) -> tuple[list[int], list[bool]]:
    """Token ids of a document, and which of them are trained.

    A part that the same role goes on with on the next line has a line break instead of an end token, which is not trained.
    """
    ids, trained = [], []
    for index, part in enumerate(parts):
        goes_on = index + 1 < len(parts) and parts[index + 1].role == part.role
        begins = index == 0 or parts[index - 1].role != part.role
        head = tokenizer(f"<|{part.role}|>" if begins else "", add_special_tokens=False).input_ids
        body = tokenizer(part.text, add_special_tokens=False).input_ids
        tail = tokenizer("\n" if goes_on else tokenizer.eos_token, add_special_tokens=False).input_ids
        ids += head + body + tail
        trained += [False] * len(head) + [part.trained] * len(body) + [part.trained and not goes_on]
    return ids, trained


def batches(
    config: PretrainConfig, mixture: dict[str, float], seed: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Endless (kinds, ids [batch, length], labels [batch, length]); each batch holds documents of similar length."""
    rng = random.Random(f"documents {seed}")
    stream = chains("train", seed, config.min_operations, config.max_operations)
    kinds, shares = zip(*mixture.items(), strict=True)
    while True:
        pool = []
        for kind in rng.choices(kinds, shares, k=2048):
            parts = document(rng, next(stream), kind, own_line=rng.random() < 0.5)
            pool.append((kind, *encode(tokenizer, parts)))
        pool.sort(key=lambda row: len(row[1]))
        groups, start = [], 0
        while start < len(pool):
            size = 1
            while start + size < len(pool) and len(pool[start + size][1]) * (size + 1) <= config.batch_tokens:
                size += 1
            groups.append(pool[start : start + size])
            start += size
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for _, ids, _ in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            labels = torch.full((len(group), length), IGNORED)
            for row, (_, tokens, trained) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(tokens)] = torch.where(torch.tensor(trained), torch.tensor(tokens), IGNORED)
            yield [kind for kind, _, _ in group], ids, labels


def learning_rate(peak: float, progress: float) -> float:
    """Warm-up over the first 2 %, then cosine to a tenth. `progress` in 0..1."""
    if progress < 0.02:
        return peak * (progress / 0.02 + 1e-3)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def pretrain(config: PretrainConfig, folder: Path, say: Callable[[str], None] = print) -> None:
    """Train stage after stage and write model and tokenizer (bfloat16 safetensors) to `folder`."""
    tokenizer = build_tokenizer()
    model = new_model(config, tokenizer)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    for index, stage in enumerate(config.stages):
        say(f"stage {index + 1} of {len(config.stages)}: {stage.tokens / 1e6:g} M tokens")
        train_stage(config, stage, config.seed + index, model, tokenizer, say)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_stage(
    config: PretrainConfig,
    stage: PretrainStage,
    seed: int,
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
) -> None:
    """One corpus with one learning-rate schedule; `seed` makes the corpus."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    seen, step, started = 0, 0, time.monotonic()
    sampled: dict[str, list[float]] = defaultdict(list)
    for kinds, ids, labels in batches(config, stage.mixture, seed, tokenizer):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage.learning_rate, seen / stage.tokens)
        # Padding is on the right, so the causal mask alone keeps it out of sight.
        hidden = model.model(ids, attention_mask=None).last_hidden_state
        trained = labels[:, 1:] != IGNORED
        losses = F.cross_entropy(model.lm_head(hidden[:, :-1][trained]), labels[:, 1:][trained], reduction="none")
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        per_document = torch.zeros(len(kinds)).index_add_(0, trained.nonzero()[:, 0], losses.detach())
        for kind, loss in zip(kinds, per_document.tolist(), strict=True):
            sampled[kind].append(math.exp(-loss))
        seen, step = seen + ids.numel(), step + 1
        if step % config.log_every == 0 or seen >= stage.tokens:
            rates = "  ".join(f"{kind} {sum(v) / len(v):.3f}" for kind, v in sorted(sampled.items()))
            speed = seen / (time.monotonic() - started)
            say(f"step {step}  {seen / 1e6:.2f} M tokens  {speed:,.0f} tokens/s  loss {losses.mean():.4f}  {rates}")
            sampled.clear()
        if seen >= stage.tokens:
            return
