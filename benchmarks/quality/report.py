"""Tables and plots of what quality.py measured."""

import math
from xml.sax.saxutils import escape

MARK = "<!-- From here on written by quality.py report. -->"
COLOURS = {"quantised": "#0b6e99", "selector": "#c2410c", "pruned": "#6b21a8", "cache": "#475569", "combined": "#4d7c0f"}
# A panel of the plot, and the room around its axes.
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 440, 300, 56, 30, 14, 40


def rise(row):
    return row["perplexity"] / row["dense_perplexity"] - 1


def share(row):
    return row["bytes_per_token"] / row["dense_bytes_per_token"]


def front(rows):
    """The settings that no other beats in both bytes and divergence, by bytes."""
    best, chosen = math.inf, []
    for row in sorted(rows, key=lambda row: (row["bytes_per_token"], row["kl_mean"])):
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


class Panel:
    """Points over a logarithmic axis, at a place of the picture."""

    def __init__(self, x, y, title, label, low, high):
        self.x, self.y, self.low, self.high = x, y, math.log10(low), math.log10(high)
        self.parts = [f'<text x="{x + LEFT}" y="{y + 18}" font-weight="bold">{escape(title)}</text>']
        self.axes(label)

    def at(self, share, value):
        value = min(max(math.log10(max(value, 1e-12)), self.low), self.high)
        right, up = share / 1.1, (value - self.low) / (self.high - self.low)
        return self.x + LEFT + right * (WIDTH - LEFT - RIGHT), self.y + HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, label):
        for power in range(round(self.low), round(self.high) + 1):
            x, y = self.at(0, 10**power)
            end, _ = self.at(1.1, 1)
            self.parts.append(f'<line x1="{x}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            self.parts.append(f'<text x="{x - 5}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
        for tenth in range(0, 12, 2):
            x, y = self.at(tenth / 10, 10**self.low)
            self.parts.append(f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle">{tenth * 10} %</text>')
        x, y = self.at(0.55, 10**self.low)
        self.parts.append(f'<text x="{x:.1f}" y="{y + 30}" text-anchor="middle">bytes read per token, of dense bf16</text>')
        x, y = self.x + 12, self.y + HEIGHT / 2
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{escape(label)}</text>')

    def draw(self, rows, value):
        best = front(rows)
        line = " ".join("{:.1f},{:.1f}".format(*self.at(share(row), value(row))) for row in best)
        self.parts.append(f'<polyline points="{line}" fill="none" stroke="#222" stroke-dasharray="3 3"/>')
        # Names of neighbours stand above and below in turn.
        above = {row["setting"]: number % 2 == 0 for number, row in enumerate(best)}
        for row in rows:
            x, y = self.at(share(row), value(row))
            colour, on = COLOURS[row["family"]], row["setting"] in above
            fill = colour if on else "none"
            name = escape(row["setting"])
            self.parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if on else 3}" fill="{fill}" stroke="{colour}"><title>{name}</title></circle>'
            )
            if on:
                beside = y + (-5 if above[row["setting"]] else 12)
                self.parts.append(f'<text x="{x + 5:.1f}" y="{beside:.1f}" font-size="9" fill="{colour}">{name}</text>')


def plot(models):
    """A row of two panels for each model."""
    parts = []
    for line, (model, rows) in enumerate(models.items()):
        rows = [row for row in rows if row["setting"] != "dense"]
        y = 24 + line * HEIGHT
        panels = [
            (Panel(0, y, model, "perplexity increase, %", 0.1, 1000), lambda row: 100 * rise(row)),
            (Panel(WIDTH, y, model, "mean KL divergence, nats", 1e-4, 10), lambda row: row["kl_mean"]),
        ]
        for panel, value in panels:
            panel.draw(rows, value)
            parts += panel.parts
    for number, (family, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 110
        parts.append(f'<circle cx="{x}" cy="12" r="4" fill="{colour}"/><text x="{x + 8}" y="16" fill="{colour}">{family}</text>')
    height = 24 + len(models) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{height}" viewBox="0 0 {2 * WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def write_report(results, folder):
    """The plots, all tables in results.md, and the best settings in README.md below its mark."""
    models = grouped(results)
    full, best = "# All settings\n", "\n"
    for number, place in enumerate(["first", "second"]):
        drawn = {model: list(texts.values())[number] for model, texts in models.items() if len(texts) > number}
        if drawn:
            (folder / f"quality-{number + 1}.svg").write_text(plot(drawn), encoding="utf-8")
            best += f"![Perplexity increase and KL divergence against bytes read per token, {place} text](quality-{number + 1}.svg)\n"
    for model, texts in models.items():
        rows, *others = texts.values()
        others = {row["setting"]: row for row in sum(others, [])}
        row = rows[0]
        head = f"\n## {model}\n\n{row['tokens']} tokens of {row['text']}: dense perplexity {row['dense_perplexity']:.3f}, "
        head += f"{row['dense_bytes_per_token'] / 1e6:.1f} MB read per token. {row['date']}, {row['cpu']}.\n\n"
        full += head + table(rows, others)
        best += head + table(front(rows), others)
    (folder / "results.md").write_text(full, encoding="utf-8")
    page = folder / "README.md"
    prose, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    page.write_text(prose + MARK + "\n" + best, encoding="utf-8")
