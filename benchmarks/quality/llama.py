#!/usr/bin/env python3
"""What quality.py wants of llama.cpp, in the environment that has it: benchmarks/suites/peers/install.sh.

    llama.py quantize FROM.gguf TYPE TO.gguf     # by its own program; BF16 of any file
    llama.py time FILE.gguf THREADS PROMPT GENERATED     # tokens per second as JSON
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "suites/peers"))
import llama_cpp
from engines import LlamaCpp, Settings


def quantize(source, name, target):
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    # Only to bf16: every other quantisation is made of that.
    options.allow_requantize = name == "BF16"
    options.nthread = 0
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), options)
    if status != 0:
        sys.exit(f"llama.cpp cannot quantise {source} to {name}: status {status}")


def time(file, threads, prompt, generated):
    path = pathlib.Path(file).resolve()
    settings = Settings("", path.parent, None, int(threads), (int(prompt),), int(generated))
    print(json.dumps(LlamaCpp(settings, path.name).measure(settings)))


if __name__ == "__main__":
    {"quantize": quantize, "time": time}[sys.argv[1]](*sys.argv[2:])
