#!/usr/bin/env python3
"""Train the bundled demo model: a small Llama with ReLU-gated MLPs.

The recipe trains one model twice from a common start.  At step --split the
training state is kept; the *dense* branch goes on with plain language
modelling, the *sparse* branch adds a penalty on active gates whose weight is
steered, layer by layer, until the wanted fraction of MLP neurons is left
active.  Both branches see the same batches under the same schedule, so the
difference between them is the price of the sparsity.

Written to --out: config.json, generation_config.json, model.safetensors
(bf16, tied embeddings stored once), tokenizer.json, tokenizer_config.json,
loss.csv, loss.png and report.json.  The dense branch goes to --dense-out.

    python train.py --out demo tinystories.txt GrimmsFairyTales.txt wizard_of_oz.txt
"""

import argparse
import copy
import csv
import json
import math
import re
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

EOT = "<|endoftext|>"
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "--"})
CONFIG_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
               "num_attention_heads", "num_key_value_heads", "head_dim",
               "max_position_embeddings")


def log(*parts):
    print(*parts, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------
# Text


def clean(text):
    """Plain paragraphs, one per line: no page furniture, no hard line breaks."""
    text = text.replace("\r\n", "\n").replace("\ufeff", "")
    start = re.search(r"^\*\*\* ?START OF.*$", text, re.M)
    end = re.search(r"^\*\*\* ?END OF.*$", text, re.M)
    text = text[start.end() if start else 0:end.start() if end else len(text)]
    text = text.translate(PLAIN)
    text = re.sub(r"\[Illustration[^\]]*\]", "", text)
    return re.sub(r"^[ \t]*(\*[ \t]*){2,}$", "", text, flags=re.M).replace("_", "")


def documents(text):
    """Split one source file into stories (or chapters)."""
    text = clean(text)
    if EOT in text:
        parts = [re.sub(r"\s*\n\s*", "\n", part).strip() for part in text.split(EOT)]
    else:
        chapters = re.search(r"^CHAPTER \d+\.?$", text, re.M)
        heading = r"^CHAPTER \d+\.?$" if chapters else r"^[A-Z][A-Z ,'-]{6,}$"
        # What stands before the first heading is title page and contents.
        parts = [unwrap(part) for part in re.split(heading, text, flags=re.M)[1:]]
    return [part for part in parts if part]


def unwrap(text):
    """Join the lines of each paragraph; drop the titles that stand in capitals."""
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    return "\n".join(p for p in paragraphs if p and not p.isupper())


def hold_out(docs, share):
    """Keep the last `share` of the characters apart, cut at a story or paragraph."""
    room = share * sum(map(len, docs))
    train, held = list(docs), []
    while train and room > 0:
        last = train.pop()
        if len(last) > 2 * room and "\n" in last:  # a long chapter: cut inside it
            cut = last.find("\n", int(len(last) - room))
            if cut > 0:
                train.append(last[:cut].strip())
                last = last[cut:].strip()
        held.insert(0, last)
        room -= len(last)
    return train, held


def load_texts(paths, share):
    train, held = [], []
    for path in paths:
        docs = documents(Path(path).read_text(encoding="utf-8"))
        a, b = hold_out(docs, share)
        log(f"{Path(path).name}: {len(docs)} documents, "
            f"{sum(map(len, a))} characters for training, {sum(map(len, b))} held out")
        train += a
        held += b
    return train, held


def build_tokenizer(docs, vocab_size):
    from tokenizers import (AddedToken, Tokenizer, decoders, models, pre_tokenizers,
                            processors, trainers)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[AddedToken(EOT, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single=f"{EOT} $A", pair=f"{EOT} $A {EOT} $B",
        special_tokens=[(EOT, tok.token_to_id(EOT))])
    return tok


def stream(tok, docs):
    """One id sequence; the post-processor puts the separator before every story."""
    ids = [i for enc in tok.encode_batch(docs) for i in enc.ids]
    return torch.tensor(ids + [tok.token_to_id(EOT)])


# --------------------------------------------------------------------------
# Model: the same arithmetic and parameter names as a Llama checkpoint


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)) * self.weight


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads, self.kv_heads, self.dim = (
            cfg["num_attention_heads"], cfg["num_key_value_heads"], cfg["head_dim"])
        h = cfg["hidden_size"]
        self.q_proj = nn.Linear(h, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(h, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(h, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, h, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        h, m = cfg["hidden_size"], cfg["intermediate_size"]
        self.gate_proj = nn.Linear(h, m, bias=False)
        self.up_proj = nn.Linear(h, m, bias=False)
        self.down_proj = nn.Linear(m, h, bias=False)

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(F.relu(gate) * self.up_proj(x)), gate


class Block(nn.Module):
    def __init__(self, cfg, dropout):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg["hidden_size"], cfg["rms_norm_eps"])
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg["hidden_size"], cfg["rms_norm_eps"])
        self.mlp = MLP(cfg)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, cos, sin, margin, width):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        y, gate = self.mlp(self.post_attention_layernorm(x))
        active = (gate > 0).float().mean()
        # A smooth count of the gates above -margin, in units of the gates' own
        # spread: it moves the gates near the threshold and lets those well above be.
        # Every fourth token is sample enough.
        g = gate[:, ::4].float()
        spread = g.detach().square().mean().sqrt()
        soft = torch.sigmoid((g / spread + margin) / width).mean() if width else active
        return x + self.drop(y), soft, active


class Model(nn.Module):
    def __init__(self, cfg, dropout):
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg["vocab_size"], cfg["hidden_size"])
        self.layers = nn.ModuleList(Block(cfg, dropout) for _ in range(cfg["num_hidden_layers"]))
        self.norm = RMSNorm(cfg["hidden_size"], cfg["rms_norm_eps"])
        self.drop = nn.Dropout(dropout)
        half = cfg["head_dim"] // 2
        freq = cfg["rope_theta"] ** (-torch.arange(half).float() / half)
        angle = torch.arange(cfg["max_position_embeddings"]).float()[:, None] * freq
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = 0.02 if "embed" in name else p.shape[1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std /= math.sqrt(2 * cfg["num_hidden_layers"])
                nn.init.normal_(p, std=std)

    def forward(self, ids, labels, margin: float = 0.0, width: float = 0.0):
        """Per-token loss (flat), and per layer the soft and the true active fraction."""
        t = ids.shape[1]
        x = self.drop(self.embed_tokens(ids))
        soft, active = [], []
        for layer in self.layers:
            x, s, a = layer(x, self.cos[:t], self.sin[:t], margin, width)
            soft.append(s)
            active.append(a)
        logits = F.linear(self.norm(x), self.embed_tokens.weight).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return loss, torch.stack(soft), torch.stack(active)


# --------------------------------------------------------------------------
# Training


def windows(ids, length):
    """Non-overlapping windows (inputs, labels) that cover a stream."""
    n = (len(ids) - 1) // length
    return ids[:n * length].view(n, length), ids[1:n * length + 1].view(n, length)


@torch.no_grad()
def evaluate(model, ids, length):
    """Mean loss and active fraction per layer over the stream, in float32."""
    model.eval()
    x, y = windows(ids, length)
    total, active = 0.0, 0.0
    for i in range(0, len(x), 16):
        loss, _, a = model(x[i:i + 16], y[i:i + 16])
        total += loss.double().sum().item()
        active = active + a.double() * len(x[i:i + 16])
    model.train()
    return total / y.numel(), (active / len(x)).tolist()


class Run:
    """Everything a branch owns; a deep copy of it is a new branch."""

    def __init__(self, model, args):
        self.model = model
        decay = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() == 1]
        self.opt = torch.optim.AdamW(
            [{"params": decay, "weight_decay": args.weight_decay},
             {"params": plain, "weight_decay": 0.0}],
            lr=args.lr, betas=(0.9, args.beta2), fused=True)
        self.step = 0
        self.weight = torch.zeros(model.cfg["num_hidden_layers"])
        self.mean_active = None
        self.seconds = 0.0

    def fork(self, args):
        twin = Run(copy.deepcopy(self.model), args)
        twin.opt.load_state_dict(copy.deepcopy(self.opt.state_dict()))
        twin.step, twin.seconds = self.step, self.seconds
        return twin


def learning_rate(step, args):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (args.final_lr + (1 - args.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def batch(ids, step, args):
    """The batch of a step depends on the seed and the step alone.

    Each epoch reads the stream once in shuffled windows; the windows of each
    epoch start at another offset.
    """
    per_epoch = (len(ids) - 1 - args.length) // args.length
    picks, n = [], step * args.batch
    while len(picks) < args.batch:
        epoch, k = divmod(n, per_epoch)
        g = torch.Generator().manual_seed(args.seed * 1000 + epoch)
        offset = torch.randint(args.length, (1,), generator=g).item()
        order = torch.randperm(per_epoch, generator=g)
        take = order[k:k + args.batch - len(picks)]
        picks += (take * args.length + offset).tolist()
        n += len(take)
    at = torch.tensor(picks)[:, None] + torch.arange(args.length)
    return ids[at], ids[at + 1]


def target(step, args):
    """Wanted active fraction: from --start-active down to --active over the ramp."""
    done = min(1.0, (step - args.split) / max(1, args.ramp))
    return args.start_active * (args.active / args.start_active) ** done


def train(run, until, name, sparse, ids, held, rows, out, args):
    torch.manual_seed(args.seed + run.step)
    model, forward = run.model, run.model
    if not args.no_compile:
        forward = torch.compile(model, dynamic=False)
    model.train()
    began, shown = time.time(), time.time()
    while run.step < until:
        for group in run.opt.param_groups:
            group["lr"] = learning_rate(run.step, args)
        x, y = batch(ids, run.step, args)
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.f32):
            loss, soft, active = forward(x, y, args.margin, args.width if sparse else 0.0)
        loss = loss.mean()
        total = loss
        if sparse:
            total = total + (run.weight * soft).sum()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        run.opt.step()
        run.opt.zero_grad(set_to_none=True)
        run.step += 1

        active = active.detach()
        run.mean_active = active if run.mean_active is None else run.mean_active.lerp(active, 0.1)
        if sparse:
            # Multiplicative control: more weight while a layer is above its target.
            off = (run.mean_active / target(run.step, args)).log().clamp(-1, 1)
            run.weight = (run.weight.clamp(min=args.weight_min)
                          * (args.gain * off).exp()).clamp(args.weight_min, args.weight_max)

        if run.step % args.eval_every == 0 or run.step == until:
            run.seconds += time.time() - began
            held_loss, held_active = evaluate(model, held, args.length)
            began = time.time()
            rows.append([name, run.step, f"{loss.item():.4f}", f"{held_loss:.4f}",
                         f"{sum(held_active) / len(held_active):.4f}"])
            log(f"{name} {run.step}/{args.steps} train {loss.item():.3f} held-out {held_loss:.4f} "
                f"(perplexity {math.exp(held_loss):.2f}) active "
                + " ".join(f"{a:.3f}" for a in held_active)
                + (" weight " + " ".join(f"{w:.3f}" for w in run.weight.tolist()) if sparse else "")
                + f" {run.step * args.batch * args.length / run.seconds:.0f} tokens/s")
            if args.keep and out and run.step % args.keep == 0:
                save(model, None, out)
        elif time.time() - shown > 20:
            log(f"{name} {run.step}/{args.steps} train {loss.item():.3f}")
        if time.time() - shown > 20:
            shown = time.time()
    run.seconds += time.time() - began


# --------------------------------------------------------------------------
# Output


def rounded(model):
    """A copy whose weights went through bf16, as they are stored."""
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.data = p.data.bfloat16().float()
    return twin


def save(model, tok, out):
    """A checkpoint that transformers loads as LlamaForCausalLM."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    cfg = model.cfg
    hf = LlamaForCausalLM(LlamaConfig(
        **{k: cfg[k] for k in CONFIG_KEYS}, rms_norm_eps=cfg["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_theta"]},
        hidden_act="relu", tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        bos_token_id=cfg["eot"], eos_token_id=cfg["eot"], pad_token_id=None))
    missing, unexpected = hf.model.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    hf.tie_weights()
    hf = hf.to(torch.bfloat16)
    hf.config.dtype = torch.bfloat16
    hf.generation_config = GenerationConfig(bos_token_id=cfg["eot"], eos_token_id=cfg["eot"])
    hf.save_pretrained(out)
    if tok is not None:
        from transformers import PreTrainedTokenizerFast
        PreTrainedTokenizerFast(
            tokenizer_object=tok, bos_token=EOT, eos_token=EOT,
            model_max_length=cfg["max_position_embeddings"],
            clean_up_tokenization_spaces=False).save_pretrained(out)


def plot(rows, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), dpi=90)
    for name, colour in (("shared", "0.4"), ("dense", "tab:blue"), ("sparse", "tab:orange")):
        steps = [r[1] for r in rows if r[0] == name]
        left.plot(steps, [float(r[3]) for r in rows if r[0] == name], color=colour, label=name)
        right.plot(steps, [100 * float(r[4]) for r in rows if r[0] == name], color=colour)
    left.set(xlabel="step", ylabel="held-out loss (nats per token)")
    right.set(xlabel="step", ylabel="active MLP neurons (%)", ylim=(0, None))
    left.legend()
    for ax in (left, right):
        ax.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(path)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("texts", nargs="+", help="UTF-8 text files; stories separated by "
                   f"{EOT}, or books with chapter headings or titles in capitals")
    p.add_argument("--out", default="demo", help="folder for the sparse model")
    p.add_argument("--dense-out", help="folder for the dense branch (not saved without it)")
    p.add_argument("--seed", type=int, default=1, help="seed of weights, batches and dropout")
    g = p.add_argument_group("data")
    g.add_argument("--held-out", type=float, default=0.05,
                   help="share kept apart at the end of each file")
    g.add_argument("--vocab", type=int, default=2048, help="entries of the byte-level BPE")
    g.add_argument("--length", type=int, default=256, help="tokens per training window")
    g = p.add_argument_group("model")
    g.add_argument("--hidden", type=int, default=256, help="hidden size")
    g.add_argument("--intermediate", type=int, default=1024, help="neurons of each MLP")
    g.add_argument("--layers", type=int, default=5, help="number of layers")
    g.add_argument("--heads", type=int, default=8, help="query heads")
    g.add_argument("--kv-heads", type=int, default=4, help="key and value heads")
    g.add_argument("--head-dim", type=int, default=32, help="size of a head")
    g.add_argument("--positions", type=int, default=512, help="max_position_embeddings")
    g = p.add_argument_group("optimisation")
    g.add_argument("--steps", type=int, default=2000,
                   help="steps of each branch, the shared ones included")
    g.add_argument("--batch", type=int, default=8, help="windows per step")
    g.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    g.add_argument("--final-lr", type=float, default=0.05, help="last rate, as a share of --lr")
    g.add_argument("--warmup", type=int, default=150, help="steps of linear warm-up")
    g.add_argument("--weight-decay", type=float, default=0.1,
                   help="decay of the matrices (none on norms)")
    g.add_argument("--beta2", type=float, default=0.98, help="second moment decay of AdamW")
    g.add_argument("--dropout", type=float, default=0.1,
                   help="dropout on embeddings and residual branches")
    g = p.add_argument_group("sparsity")
    g.add_argument("--active", type=float, default=0.12, help="wanted active fraction per layer")
    g.add_argument("--start-active", type=float, default=0.5, help="target where the ramp begins")
    g.add_argument("--split", type=int, default=500, help="step at which the branches part")
    g.add_argument("--ramp", type=int, default=700, help="steps from the first target to the last")
    g.add_argument("--margin", type=float, default=0.3, help="distance below zero that counts as "
                   "active for the penalty, in units of the gates' root mean square")
    g.add_argument("--width", type=float, default=0.25, help="softness of the count, same units")
    g.add_argument("--gain", type=float, default=0.03, help="gain of the weight control")
    g.add_argument("--weight-min", type=float, default=5e-3, help="least weight of the penalty")
    g.add_argument("--weight-max", type=float, default=5.0, help="greatest weight of the penalty")
    g.add_argument("--no-dense", action="store_true", help="skip the dense branch")
    g = p.add_argument_group("run")
    g.add_argument("--threads", type=int, default=0, help="CPU threads (0: leave to PyTorch)")
    g.add_argument("--f32", action="store_true", help="no bf16 autocast")
    g.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    g.add_argument("--eval-every", type=int, default=100, help="steps between evaluations")
    g.add_argument("--keep", type=int, default=0,
                   help="write the model every so many steps (a multiple of --eval-every)")
    return p.parse_args()


def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    docs, held_docs = load_texts(args.texts, args.held_out)
    tok = build_tokenizer(docs, args.vocab)
    ids, held = stream(tok, docs), stream(tok, held_docs)
    log(f"{len(ids)} training tokens, {len(held)} held out")

    cfg = {"vocab_size": tok.get_vocab_size(), "hidden_size": args.hidden,
           "intermediate_size": args.intermediate, "num_hidden_layers": args.layers,
           "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads,
           "head_dim": args.head_dim, "max_position_embeddings": args.positions,
           "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eot": tok.token_to_id(EOT)}
    shared = Run(Model(cfg, args.dropout), args)
    log(f"{sum(p.numel() for p in shared.model.parameters())} parameters, "
        f"{args.steps * args.batch * args.length / len(ids):.1f} epochs")
    save(shared.model, tok, args.out)

    rows = []
    report = {"arguments": vars(args), "train_tokens": len(ids), "held_out_tokens": len(held)}
    train(shared, args.split, "shared", False, ids, held, rows, args.out, args)
    branches = [("sparse", True, args.out)]
    if not args.no_dense:
        branches.append(("dense", False, args.dense_out))
    for name, sparse, out in branches:
        run = shared.fork(args)
        train(run, args.steps, name, sparse, ids, held, rows, out, args)
        if out:
            save(run.model, tok, out)
        loss, active = evaluate(rounded(run.model), held, args.length)
        report[name] = {"held_out_loss": loss, "held_out_perplexity": math.exp(loss),
                        "active_per_layer": active, "active": sum(active) / len(active),
                        "train_seconds": run.seconds}
        log(name, json.dumps(report[name]))
        files = Path(args.out)
        (files / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        with open(files / "loss.csv", "w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows(
                [["branch", "step", "train_loss", "held_out_loss", "held_out_active"], *rows])
        plot(rows, files / "loss.png")


if __name__ == "__main__":
    main()
