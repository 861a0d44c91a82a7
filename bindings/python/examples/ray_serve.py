"""Serves a model from two replicas on this machine, asks it as a client of OpenAI's API would, and stops.

    python ray_serve.py DIR [--replicas 2] [--threads 1]

`serve run sparrow_llm.ray:app model=DIR num_replicas=2` keeps serving.
"""

from __future__ import annotations

import argparse
import json
import urllib.request

from ray import serve
from sparrow_llm.ray import app

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a directory, a GGUF file or a hub id")
parser.add_argument("--replicas", type=int, default=2)
parser.add_argument("--threads", type=int, default=1, help="of each replica")
args = parser.parse_args()

serve.run(app({"model": args.model, "num_replicas": args.replicas, "threads": args.threads}))
body = {"prompt": "Once upon a time", "max_tokens": 24, "stream": True}
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", json.dumps(body).encode())
with urllib.request.urlopen(request) as response:
    for line in response:
        if line.startswith(b"data: {"):
            print(json.loads(line[6:])["choices"][0]["text"], end="", flush=True)
print()
serve.shutdown()
