"""How each engine is loaded, fed and timed."""

import ctypes
import dataclasses
import json
import os
import pathlib
import subprocess
import time

import numpy


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run, and where its files are."""

    shape: str
    models: pathlib.Path  # directory with `checkpoint/` (from `sparrow synth`) and the files of make_gguf.py
    binaries: pathlib.Path  # directory of the built sparrow
    threads: int
    prefill_tokens: tuple  # lengths of the timed prompts; decoding goes on from the first
    decode_tokens: int


def prompt(tokens, vocab):
    """The ids that `sparrow bench` uses too."""
    return [i * 7919 % vocab for i in range(tokens)]


class InProcess:
    """An engine inside this Python process. `feed` appends tokens and returns the logits after the last one, `reset`
    empties the cache; `vocab` and `weight_bytes` are the model's."""

    def measure(self, settings):
        # Not timed: reads every weight, so that a mapped file is in memory, and has what is made lazily made.
        self.feed(prompt(32, self.vocab))
        self.feed([0])
        figures = {}
        for tokens in reversed(settings.prefill_tokens):
            self.reset()
            ids = prompt(tokens, self.vocab)
            start = time.perf_counter()
            token = self.feed(ids).argmax()
            figures[f"prefill_{tokens}_tokens_per_s"] = tokens / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(settings.decode_tokens):
            token = self.feed([int(token)]).argmax()
        figures["decode_tokens_per_s"] = settings.decode_tokens / (time.perf_counter() - start)
        figures["decode_gb_s"] = self.weight_bytes * figures["decode_tokens_per_s"] / 1e9
        return figures


class Transformers(InProcess):
    """transformers on the CPU, in bf16, with PyTorch's fused attention."""

    def __init__(self, settings):
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(settings.threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(settings.models / "checkpoint", dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.vocab = self.model.config.vocab_size
        self.weight_bytes = sum(p.nbytes for p in self.model.parameters())
        self.reset()

    def reset(self):
        self.cache = None

    def feed(self, ids):
        with self.torch.inference_mode():
            ids = self.torch.tensor([ids])
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values
            return out.logits[0, -1].float().numpy()


class LlamaCpp(InProcess):
    """llama.cpp through its C interface; its own defaults but for the number of threads and the context length."""

    def __init__(self, settings, file):
        import llama_cpp

        self.llama = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        path = settings.models / file
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = max(settings.prefill_tokens) + settings.decode_tokens
        options.n_threads = options.n_threads_batch = settings.threads
        self.context = llama_cpp.llama_init_from_model(model, options)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.weight_bytes = llama_cpp.llama_model_size(model)

    def reset(self):
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)

    def feed(self, ids):
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        status = self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")
        return numpy.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.context, -1), (self.vocab,))


class Sparrow:
    """`sparrow bench`, once for each prompt. `mapped` runs the checkpoint's file; otherwise the same weights are made in
    memory, with the fraction `zeros` of them 0 and packed."""

    def __init__(self, settings, dtype="bf16", selector="dense", mapped=False, zeros=0):
        self.settings, self.mapped = settings, mapped
        self.model = ["--model", settings.models / "checkpoint"] if mapped else ["--shape", settings.shape, "--dtype", dtype]
        self.model += ["--zeros", zeros] if zeros else []
        self.selector = ["--selector", selector]

    def bench(self, prompt_tokens, gen_tokens):
        command = [self.settings.binaries / "sparrow", "bench", *self.model, *self.selector]
        command += ["--prompt-tokens", prompt_tokens, "--gen-tokens", gen_tokens, "--runs", 1]
        command += ["--threads", self.settings.threads, "--format", "json"]
        return json.loads(subprocess.check_output(list(map(str, command))))

    def measure(self, settings):
        figures = {}
        for tokens in reversed(settings.prefill_tokens):
            decode = settings.decode_tokens if tokens == settings.prefill_tokens[0] else 1
            (row,) = self.bench(tokens, decode + 1)["rows"]
            figures[f"prefill_{tokens}_tokens_per_s"] = row["prefill_tokens_per_s"]
        # The last of them was the first prompt's.
        return figures | {key: row[key] for key in ("decode_tokens_per_s", "decode_gb_s", "active_fraction")}

    def logits(self, ids):
        """Of the checkpoint's file, with products in f32."""
        command = [self.settings.binaries / "examples/logits", self.settings.models / "checkpoint", "stored", *ids]
        out = subprocess.check_output(list(map(str, command)), env=os.environ | {"SPARROW_ISA": "avx512"})
        return numpy.frombuffer(out, dtype="<f4")
