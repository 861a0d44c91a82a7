"""Questions with known answers, as lines of a Python program: what a model of code or of text continues by pattern."""

import json
import random

WORDS = "apple river stone cloud garden window silver music forest letter orange pencil market bridge summer coffee".split()


def line(choose):
    kind = choose.randrange(5)
    numbers = [choose.randrange(1, 10) for _ in range(3)]
    word = choose.choice(WORDS)
    if kind == 0:
        a, b = choose.randrange(1, 50), choose.randrange(1, 50)
        return f"assert {a} + {b} ==", f" {a + b}"
    if kind == 1:
        return f"assert max({numbers[0]}, {numbers[1]}, {numbers[2]}) ==", f" {max(numbers)}"
    if kind == 2:
        return f"assert sorted({numbers}) ==", f" {sorted(numbers)}"
    if kind == 3:
        return f'assert "{word}".upper() ==', f' "{word.upper()}"'
    return f'assert len("{word}") ==', f" {len(word)}"


def write(path, count=200, seed=1):
    """Questions that begin with the same ten solved ones, as JSON lines for `sparrow eval --answers`."""
    choose = random.Random(seed)
    solved = "".join(prompt + answer + "\n" for prompt, answer in (line(choose) for _ in range(10)))
    with open(path, "w", encoding="utf-8") as out:
        for _ in range(count):
            prompt, answer = line(choose)
            # The line's end belongs to the answer: 1 is not 12.
            out.write(json.dumps({"prompt": solved + prompt, "answer": answer + "\n"}) + "\n")
