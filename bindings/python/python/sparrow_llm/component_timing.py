"""Where the time of a token goes, dense beside sparse: `python -m sparrow_llm.component_timing --help`."""

from __future__ import annotations

import argparse
import json

from . import Sparrow


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sparrow_llm.component_timing",
        description="Decodes tokens and prints the time of every component: mean, standard deviation, minimum and maximum in "
        "milliseconds per token.",
    )
    parser.add_argument("--model", required=True, metavar="DIR|FILE|ID", help="which model")
    parser.add_argument("--selector", help="what to compare with dense [default: what the model was sparsified for]")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="cached before [default: 128]")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode [default: 64]")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    settings = ["dense", arguments.selector]
    profiles: dict[str, dict[str, dict[str, float]]] = {}
    for setting in settings:
        with Sparrow.from_pretrained(arguments.model, selector=setting, threads=arguments.threads) as model:
            profile = model.profile(prompt_tokens=arguments.prompt_tokens, new_tokens=arguments.new_tokens)
            profiles[model.selector] = profile
    if arguments.format == "json":
        print(json.dumps(profiles, indent=2))
        return
    for selector, profile in profiles.items():
        total = sum(times["mean"] for times in profile.values())
        print(f"{selector}: {total * 1e3:.3f} ms per token")
        print(f"  {'component':<12}{'mean ms':>10}{'std':>10}{'min':>10}{'max':>10}{'share':>8}")
        for name, times in profile.items():
            columns = "".join(f"{times[key] * 1e3:>10.4f}" for key in ("mean", "std", "min", "max"))
            print(f"  {name:<12}{columns}{times['mean'] / total:>8.1%}")


if __name__ == "__main__":
    main()
