"""The settings that quality.py measures: how a model is prepared, and how it is then evaluated."""

ACTIVE = [0.9, 0.75, 0.6, 0.5, 0.4, 0.25]
# llama.cpp's quantisations, made by its own program of the model in bf16; Sparrow runs the same files.
FILES = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]
# Selectors by what they are worth: those of later ranks come last.
SELECTORS = {"input": 1, "gate": 1, "lowrank": 3, "sign": 3, "skip": 3}
# Selectors that are also measured with quantised weights.
COMBINED = {"input": ["int8", "Q8_0", "int4"], "gate": ["int8"]}
# What is measured of every selector before the rest of its fractions.
TELLING = [0.75, 0.5]
# What is also timed, beside llama.cpp: what might be on the front of speed.
TIMED = ["dense", "int8", "Q8_0", "int4", "gptq int4", "gptq int4, int8 head", "gptq 5.6 bits, int8 head"] + [f"llama.cpp {file}" for file in FILES]
TIMED += [f"{dtype}, input {percent}" for dtype in ("int8", "Q8_0") for percent in ("90 %", "75 %")] + ["int4, input 90 %"]


def setting(rank, family, name, prepare=(), file=None, **options):
    """`file` is one of llama.cpp's quantisations, measured instead of what `prepare` makes; `options` are those of sparrow eval."""
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    rank = min(rank, 1) if name in TIMED else rank
    return {"rank": rank, "family": family, "name": name, "prepare": list(prepare), "file": file, "eval": words, "timed": name in TIMED}


def sparsified(selector, active):
    return ["sparsify", "--selector", selector, "--target-active", str(active)]


def pruned(method, target):
    return ["prune", "--method", method, "--pattern" if ":" in target else "--sparsity", target]


def percent(fraction):
    return f"{100 * fraction:.0f} %"


def settings():
    yield setting(0, "quantised", "dense", selector="dense")
    for dtype in ["int8", "int4", "Q8_0", "int4-g128", "int4-zero", "int4-g128-zero"]:
        yield setting(0 if dtype in ("int8", "int4", "Q8_0") else 1, "quantised", dtype, selector="dense", dtype=dtype)
    for file in FILES:
        yield setting(1, "llama.cpp", f"llama.cpp {file}", file=file, selector="dense")
    gptq = ["quantize", "--method", "gptq", "--bits", "4", "--group", "32"]
    yield setting(1, "quantised", "gptq int4", [gptq], selector="dense")
    # What was int4 stays as it is, the rest is quantised to what goes with it.
    yield setting(1, "quantised", "gptq int4, int8 head", [gptq], selector="dense", dtype="int4")
    yield setting(1, "quantised", "gptq 5.6 bits, int8 head", [[*gptq, "--average-bits", "5.6"]], selector="dense", dtype="int4")
    for selector, rank in SELECTORS.items():
        for active in ACTIVE:
            name = f"{selector} {percent(active)}"
            steps = [sparsified(selector, active)]
            yield setting(rank if active in TELLING else 4, "selector", name, steps)
            if selector in COMBINED:
                for dtype in COMBINED[selector]:
                    yield setting(2 if active in TELLING else 4, "combined", f"{dtype}, {name}", steps, dtype=dtype)
    for method in ["sparsegpt", "wanda"]:
        for target in ["0.5", "0.3", "0.6", "2:4"]:
            name = f"{method} {target if ':' in target else percent(float(target))}"
            steps = [pruned(method, target)]
            first = method == "sparsegpt" and target in ("0.5", "0.3")
            yield setting(2 if first else 4, "pruned", name, steps, selector="dense")
            if first:
                yield setting(2, "combined", f"int8, {name}", steps, selector="dense", dtype="int8")
    for fraction in ["0.3", "0.5", "0.7"]:
        yield setting(2, "cache", f"cache {percent(float(fraction))} zeros", selector="dense", kv_sparsity=fraction)
    yield setting(2, "cache", "cache int8", selector="dense", kv_dtype="int8")
    yield setting(4, "combined", "int8, cache int8", selector="dense", dtype="int8", kv_dtype="int8")
    steps = [pruned("sparsegpt", "0.3"), sparsified("input", 0.75)]
    yield setting(4, "combined", "sparsegpt 30 %, input 75 %", steps)


# Settings of one preparation follow each other, so that it is made once.
SETTINGS = sorted(settings(), key=lambda setting: (setting["rank"], str(setting["prepare"])))
