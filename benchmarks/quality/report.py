"""Tables and plots of what quality.py measured."""

import math
from xml.sax.saxutils import escape

MARK = "<!-- From here on written by quality.py report. -->"
COLOURS = {"quantised": "#0b6e99", "selector": "#c2410c", "pruned": "#6b21a8", "cache": "#475569", "combined": "#4d7c0f", "llama.cpp": "#111"}
# A panel of the plot, and the room around its axes.
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 440, 300, 56, 30, 14, 40


def rise(row):
    return row["perplexity"] / row["dense_perplexity"] - 1


def share(row):
    return row["bytes_per_token"] / row["dense_bytes_per_token"]


def front(rows, cost=lambda row: row["bytes_per_token"]):
    """The settings that no other beats in both cost and divergence, by cost."""
    best, chosen = math.inf, []
    for row in sorted(rows, key=lambda row: (cost(row), row["kl_mean"])):
        if row["kl_mean"] < best:
            best = row["kl_mean"]
            chosen.append(row)
    return chosen


def grouped(results):
    """Rows by model, and in it by text, in the order that they were measured in."""
    models = {}
    for row in results:
        models.setdefault(row["model"], {}).setdefault(row["text"], []).append(row)
    return models


def table(rows, others):
    """Rows as Markdown; `others` are the same settings on the other text."""
    header = ["setting", "read per token", "of dense", "perplexity", "KL divergence", "same top token"]
    header += ["perplexity, other text", "KL, other text"] if others else []
    lines = [header, ["---"] * len(header)]
    chosen = {row["setting"] for row in front(rows)}
    for row in sorted(rows, key=lambda row: row["bytes_per_token"]):
        cells = [
            f"**{row['setting']}**" if row["setting"] in chosen else row["setting"],
            f"{row['bytes_per_token'] / 1e6:.1f} MB", f"{100 * share(row):.0f} %", f"{100 * rise(row):+.1f} %",
            f"{row['kl_mean']:.1e}", f"{100 * row['top1_agreement']:.1f} %",
        ]
        other = others.get(row["setting"])
        if other:
            cells += [f"{100 * rise(other):+.1f} %", f"{other['kl_mean']:.1e}"]
        lines.append(cells + [""] * (len(header) - len(cells)))
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def exact(row):
    """Exact answers, and how many the dense model gave."""
    answers = row["answers"]
    return f"{answers['right']} ({answers['dense_right']})" if answers else ""


def timed(rows, speeds):
    """Rows that were timed, with their speed: llama.cpp's files twice, by whom they were run."""
    by_name = {row["setting"]: row for row in rows}
    for name, speed in speeds.items():
        quality = by_name.get(f"llama.cpp {name.removesuffix(' file')}" if name.endswith(" file") else name)
        if quality:
            family = "quantised" if name.endswith(" file") else quality["family"]
            yield quality | {"setting": name, "family": family, "decode": speed}


def speed_table(rows):
    """Rows by speed, the front's in bold."""
    header = ["setting", "decode, tok/s", "read per token", "KL divergence", "perplexity", "same top token", "exact answers (dense)"]
    lines = [header, ["---"] * len(header)]
    chosen = {row["setting"] for row in front(rows, lambda row: -row["decode"])}
    for row in sorted(rows, key=lambda row: -row["decode"]):
        lines.append([
            f"**{row['setting']}**" if row["setting"] in chosen else row["setting"], f"{row['decode']:.1f}",
            f"{row['bytes_per_token'] / 1e6:.1f} MB", f"{row['kl_mean']:.1e}", f"{100 * rise(row):+.1f} %",
            f"{100 * row['top1_agreement']:.1f} %", exact(row),
        ])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def rivals(rows):
    """For each of llama.cpp's quantisations the fastest way to run the model here that diverges no more."""
    header = ["llama.cpp", "its KL divergence", "its tok/s", "Sparrow", "KL divergence", "tok/s", "ratio"]
    lines = [header, ["---"] * len(header)]
    ours = [row for row in rows if row["family"] != "llama.cpp"]
    for rival in [row for row in rows if row["family"] == "llama.cpp"]:
        able = [row for row in ours if row["kl_mean"] <= rival["kl_mean"]]
        best = max(able, key=lambda row: row["decode"], default=None)
        cells = [rival["setting"].removeprefix("llama.cpp "), f"{rival['kl_mean']:.1e}", f"{rival['decode']:.1f}"]
        if best:
            cells += [best["setting"], f"{best['kl_mean']:.1e}", f"{best['decode']:.1f}", f"{best['decode'] / rival['decode']:.2f}"]
        lines.append(cells + ["none"] * (len(header) - len(cells)))
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


class Panel:
    """Points over a logarithmic axis, at a place of the picture. `across` says what of a row lies along the other axis, from 0 to
    `end`, and `marks` what is written there."""

    def __init__(self, x, y, title, label, low, high, across, end, marks, below):
        self.x, self.y, self.low, self.high = x, y, math.log10(low), math.log10(high)
        self.across, self.end = across, end
        self.parts = [f'<text x="{x + LEFT}" y="{y + 18}" font-weight="bold">{escape(title)}</text>']
        self.axes(label, marks, below)

    def at(self, across, value):
        value = min(max(math.log10(max(value, 1e-12)), self.low), self.high)
        right, up = across / self.end, (value - self.low) / (self.high - self.low)
        return self.x + LEFT + right * (WIDTH - LEFT - RIGHT), self.y + HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, label, marks, below):
        for power in range(round(self.low), round(self.high) + 1):
            x, y = self.at(0, 10**power)
            end, _ = self.at(self.end, 1)
            self.parts.append(f'<line x1="{x}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            self.parts.append(f'<text x="{x - 5}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
        for place, mark in marks:
            x, y = self.at(place, 10**self.low)
            self.parts.append(f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle">{mark}</text>')
        x, y = self.at(self.end / 2, 10**self.low)
        self.parts.append(f'<text x="{x:.1f}" y="{y + 30}" text-anchor="middle">{escape(below)}</text>')
        x, y = self.x + 12, self.y + HEIGHT / 2
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{escape(label)}</text>')

    def draw(self, rows, best, value, named):
        line = " ".join("{:.1f},{:.1f}".format(*self.at(self.across(row), value(row))) for row in best)
        self.parts.append(f'<polyline points="{line}" fill="none" stroke="#222" stroke-dasharray="3 3"/>')
        chosen = {row["setting"] for row in best}
        # Names of neighbours stand above and below in turn.
        above = {row["setting"]: number % 2 == 0 for number, row in enumerate(sorted(named, key=self.across))}
        for row in rows:
            x, y = self.at(self.across(row), value(row))
            colour, on = COLOURS[row["family"]], row["setting"] in chosen
            fill = colour if on else "none"
            name = escape(row["setting"])
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if on else 3}" fill="{fill}" stroke="{colour}"><title>{name}</title></circle>'
            )
            if row["setting"] in above:
                beside = y + (-5 if above[row["setting"]] else 12)
                # Colour says whose it is.
                short = name.removeprefix("llama.cpp ")
                self.parts.append(f'<text x="{x + 5:.1f}" y="{beside:.1f}" font-size="9" fill="{colour}">{short}</text>')


def svg(panels):
    """Panels of two columns below a legend."""
    parts = [part for panel in panels for part in panel.parts]
    for number, (family, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 110
        parts.append(f'<circle cx="{x}" cy="12" r="4" fill="{colour}"/><text x="{x + 8}" y="16" fill="{colour}">{family}</text>')
    height = max(panel.y for panel in panels) + HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{height}" viewBox="0 0 {2 * WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def plot(models):
    """What is read, a row of two panels for each model."""
    marks = [(tenth / 10, f"{tenth * 10} %") for tenth in range(0, 12, 2)]
    below = "bytes read per token, of dense bf16"
    panels = []
    for line, (model, rows) in enumerate(models.items()):
        rows = [row for row in rows if row["setting"] != "dense"]
        best, y = front(rows), 24 + line * HEIGHT
        for number, (label, low, high, value) in enumerate([
            ("perplexity increase, %", 0.1, 1000, lambda row: 100 * rise(row)),
            ("mean KL divergence, nats", 1e-4, 10, lambda row: row["kl_mean"]),
        ]):
            panels.append(Panel(number * WIDTH, y, model, label, low, high, share, 1.1, marks, below))
            panels[-1].draw(rows, best, value, best)
    return svg(panels)


def speed_plot(models):
    """What is gained, a panel for each model."""
    panels = []
    for number, (model, rows) in enumerate(models.items()):
        rows = [row for row in rows if row["setting"] != "dense"]
        end = 1.25 * max(row["decode"] for row in rows)
        step = next(size * 10**power for power in range(6) for size in (1, 2, 5) if end <= 8 * size * 10**power)
        marks = [(place, place) for place in range(0, int(end) + 1, step)]
        panel = Panel(
            number % 2 * WIDTH, 24 + number // 2 * HEIGHT, model, "mean KL divergence, nats", 1e-4, 1,
            lambda row: row["decode"], end, marks, "decoded tokens per second",
        )
        best = front(rows, lambda row: -row["decode"])
        panel.draw(rows, best, lambda row: row["kl_mean"], best + [row for row in rows if row["family"] == "llama.cpp"])
        panels.append(panel)
    return svg(panels)


def write_report(results, speeds, folder):
    """The plots, all tables in results.md, and the best settings in README.md below its mark."""
    models = grouped(results)
    speeds = {line["model"]: line for line in speeds}
    full, best = "# All settings\n", "\n"
    first = {model: list(texts.values())[0] for model, texts in models.items()}
    fast = {model: list(timed(first[model], line["decode_tokens_per_s"])) for model, line in speeds.items() if model in first}
    if fast:
        (folder / "speed.svg").write_text(speed_plot(fast), encoding="utf-8")
        best += "## Speed beside llama.cpp\n\n![KL divergence against decoded tokens per second](speed.svg)\n"
    for model, rows in fast.items():
        line = speeds[model]
        best += f"\n### {model}: decoding\n\n{line['generated_tokens']} tokens after a prompt of {line['prompt_tokens']}, "
        best += "one round. " if line["rounds"] == 1 else f"medians of {line['rounds']} rounds in turns. "
        best += f"{line['date']}, {line['cpu']}.\n\n{rivals(rows)}\n{speed_table(rows)}"
    best += "\n## Bytes\n\n" if fast else ""
    for number, place in enumerate(["first", "second"]):
        drawn = {model: list(texts.values())[number] for model, texts in models.items() if len(texts) > number}
        if drawn:
            (folder / f"quality-{number + 1}.svg").write_text(plot(drawn), encoding="utf-8")
            best += f"![Perplexity increase and KL divergence against bytes read per token, {place} text](quality-{number + 1}.svg)\n"
    for model, texts in models.items():
        rows, *others = texts.values()
        others = {row["setting"]: row for row in sum(others, [])}
        row = rows[0]
        head = f"{row['tokens']} tokens of {row['text']}: dense perplexity {row['dense_perplexity']:.3f}, "
        head += f"{row['dense_bytes_per_token'] / 1e6:.1f} MB read per token. {row['date']}, {row['cpu']}.\n\n"
        full += f"\n## {model}\n\n{head}{table(rows, others)}"
        best += f"\n### {model}: bytes\n\n{head}{table(front(rows), others)}"
    (folder / "results.md").write_text(full, encoding="utf-8")
    page = folder / "README.md"
    prose, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(prose + MARK + "\n" + best, encoding="utf-8")
