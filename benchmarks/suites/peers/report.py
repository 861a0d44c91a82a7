"""The Markdown table of a result."""

from rows import BEST_OF, ROWS, TRANSFORMERS


def table(result):
    median, machine, settings = result["median"], result["machine"], result["settings"]
    prompts = [f"prefill_{tokens}_tokens_per_s" for tokens in settings["prefill_tokens"]]
    head = ["engine"]
    for tokens in settings["prefill_tokens"]:
        head += [f"prefill {tokens}, tok/s", "÷ transformers", "÷ best llama.cpp"]
    head += ["decode, tok/s", "÷ transformers", "÷ llama.cpp as wide", "decode GB/s ÷ read_gb_s"]

    def ratio(value, rival, key):
        return f"{value / median[rival][key]:.2f}" if rival in median else ""

    lines = []
    for row in ROWS:
        if row.name in result["failures"]:
            lines.append([row.name, "failed"] + [""] * (len(head) - 2))
        if row.name not in median:
            continue
        figures, cells = median[row.name], [row.name]
        for key in prompts:
            best = max((name for name in BEST_OF if name in median), key=lambda name: median[name][key], default=None)
            cells += [f"{figures[key]:.1f}", ratio(figures[key], TRANSFORMERS, key), ratio(figures[key], best, key)]
        decode, gb_s, read = (figures[key] for key in ("decode_tokens_per_s", "decode_gb_s", "read_gb_s"))
        cells += [f"{decode:.2f}"] + [ratio(decode, rival, "decode_tokens_per_s") for rival in (TRANSFORMERS, row.rival)]
        cells += [f"{gb_s:.1f} ÷ {read:.1f} = {gb_s / read:.2f}"]
        lines.append(cells)
    return "\n".join(
        [
            f"# {result['shape']}, {settings['threads']} threads, {result['date']}",
            "",
            f"{machine['cpu']} ({machine['isa']}); Sparrow {result['commit']}; "
            + "; ".join(f"{name} {version}" for name, version in result["versions"].items())
            + f". Random weights: speed only. Medians of {settings['rounds']} rounds in turns, one process per figure; "
            f"{settings['decode_tokens']} tokens decoded after the prompt of {settings['prefill_tokens'][0]}.",
            "",
            *([f"llama.cpp: {result['llama_cpp_build']}; {result['llama_cpp_features']}", ""] if "llama_cpp_build" in result else []),
            *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]),
            "",
        ]
    )
