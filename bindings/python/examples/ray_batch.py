"""Continues the prompts of a data set, on as many actors as are asked for.

    python ray_batch.py DIR [--actors 2] [--threads 1]

Ray runs the actors where CPUs are free: on this machine, or on a cluster whose machines have the model.
"""

from __future__ import annotations

import argparse

import ray
from sparrow_llm.ray import Generator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a directory, a GGUF file or a hub id")
parser.add_argument("--actors", type=int, default=2)
parser.add_argument("--threads", type=int, default=1, help="of each actor")
args = parser.parse_args()

names = ["Lily", "Tom", "Sara", "Ben", "Mia", "Max", "Anna", "Tim"]
rows = ray.data.from_items([{"prompt": f"One day, {name} went to the"} for name in names])
texts = rows.map_batches(
    Generator,
    fn_constructor_kwargs={"model": args.model, "generation": {"max_new_tokens": 24}},
    compute=ray.data.ActorPoolStrategy(size=args.actors),
    num_cpus=args.threads,
    batch_size=2,
)
for row in texts.take_all():
    print(f"{row['prompt']}{row['text']} [{row['text_tokens']} tokens, {row['text_finish_reason']}]")
