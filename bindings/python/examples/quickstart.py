"""Loads a model, continues texts, streams, scores and measures. No torch needed.

python quickstart.py DIR
"""

import sys

from sparrow_llm import Sparrow

if len(sys.argv) != 2:
    sys.exit(__doc__)
model = Sparrow.from_pretrained(sys.argv[1])
print(model)

# One prompt gives one result, a list gives a list.
result = model.generate("Once upon a time", max_new_tokens=32)
print(result.text)
print(f"{result.timings.decode_tokens_per_second:.0f} tokens per second, ended by {result.finish_reason}")
for result in model.generate(["The dog", "A bird"], max_new_tokens=16, do_sample=True, temperature=0.8, seed=1):
    print("-", result.text)

# Text as it comes; leaving the loop gives up the rest.
with model.stream("The girl", max_new_tokens=16) as stream:
    for chunk in stream:
        print(chunk.text, end="", flush=True)
print()

# How likely is a continuation, and what does the model say of a text?
print(model.score("Once upon a", " time"))
print(model.perplexity("Once upon a time there was a little girl. She liked to play in the park with her dog."))
