"""The demo's report: a table on the terminal, report.md, and plots made from report.json's rows only."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tdraft.models.files import atomic_write

ORDER = {"bound": 0, "learned": 1, "baseline": 2}


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


HEAD = ("policy", "kind", "speed-up", "95% interval", "tokens/call", "gap to informed", "to clairvoyant", "vs best baseline %")


def policy_cells(p: dict[str, Any]) -> tuple[str, ...]:
    """A row of a comparison as the cells under HEAD."""
    d = p["vs_best_baseline_percent"]
    return (
        p["name"],
        p["kind"],
        number(p["speedup"]),
        f"{p['ci95'][0]:.3f} to {p['ci95'][1]:.3f}",
        number(p["tokens_per_call"], 2),
        percent(p["gap_closed_informed"]),
        percent(p["gap_closed_clairvoyant"]),
        f"{d['estimate']:+.2f} [{d['ci95'][0]:+.2f}, {d['ci95'][1]:+.2f}]",
    )


def table(section: dict[str, Any]) -> str:
    """One section as a Markdown table, best first within bounds, learned policies and baselines."""
    rows = []
    for p in sorted(section["policies"], key=lambda p: (ORDER[p["kind"]], -p["speedup"])):
        own_cost = "" if p["own_cost"] is None else f"{100 * p['own_cost']:.2f}%"
        identical = "" if p["identical"] is None else "yes" if p["identical"] else "NO"
        rows.append((*policy_cells(p), number(p["wall_speedup"], 2), own_cost, identical))
    return markdown_table((*HEAD, "on the wall", "own cost", "identical"), rows)


def title(section: dict[str, Any]) -> str:
    return f"{section['drafter']}, temperature {section['temperature']:g}, {section['regime']} cost"


BEST = ("best static", "best tuned baseline", "best learned", "informed", "clairvoyant", "gap closed", "wall, learned")


def best_cells(section: dict[str, Any]) -> tuple[str, ...]:
    """The best of each kind in a section as the cells under BEST."""
    policies = {p["name"]: p for p in section["policies"]}
    learned, baseline = (policies[section[f"best_{kind}"]] for kind in ("learned", "baseline"))
    return (
        f"{policies[section['best_static']]['speedup']:.3f}",
        f"{baseline['speedup']:.3f} ({baseline['name']})",
        f"{learned['speedup']:.3f} ({learned['name']})",
        f"{policies['informed']['speedup']:.3f}",
        f"{policies['clairvoyant']['speedup']:.3f}",
        percent(learned["gap_closed_informed"]),
        number(learned["wall_speedup"], 2),
    )


def summary(report: dict[str, Any]) -> str:
    """The best of each kind in every section: the one table of the demo."""
    return markdown_table(("section", *BEST), [(title(s), *best_cells(s)) for s in report["sections"]])


def robustness_table(rows: list[dict[str, Any]]) -> str:
    """What a wrong clock, another temperature or another text costs each policy, in percent of its speed-up when retuned."""
    columns = list(rows[0]["loss_percent"])
    cells = ([row["name"], *(f"{row['loss_percent'][c]:+.1f}%" for c in columns)] for row in rows)
    return markdown_table(["policy", *columns], cells)


def markdown(report: dict[str, Any]) -> str:
    """The whole report."""
    parts = ["# What the policies of speculative decoding are worth", ""]
    first = report["sections"][0]
    target = first["target"]
    parts += [
        f"Target: {target['params'] / 1e6:.2f} M parameters, {target['bits_per_byte']:.3f} bits/byte on the test split; the "
        f"6-gram modified Kneser-Ney has {target['ngram_bits_per_byte']:.3f}. {first['contexts']} test contexts, corpus "
        f"`{report['corpus']['name']}` ({report['corpus']['hash'][:12]}). Speed-ups are ratios of sums; intervals are a paired "
        "bootstrap over contexts. Learned policies are trained by `learn()` from rewards on contexts of their own; "
        "baselines are tuned, and learned policies chosen, on the validation contexts.",
        "",
        summary(report),
        "",
    ]
    for s in report["sections"]:
        cost = s["cost"]
        curve = ", ".join(f"T({m}) = {v:.2f}" for m, v in cost["verify"].items())
        parts += [
            f"## {title(s)}",
            "",
            f"Plain step {1e3 * cost['unit_seconds']:.2f} ms; a draft token {cost['draft']:.4f} of it; {curve}. "
            f"Repetition rate of the text {100 * s['repetition_rate']:.0f}%. Near ties (margin below 1e-4): {s['near_ties']}.",
            "",
            table(s),
            "",
            "Learned policies by seed on the validation contexts: "
            + "; ".join(f"{name} {', '.join(f'{v:.3f}' for v in values)}" for name, values in s["learned_seeds"].items()),
            "",
        ]
    if report.get("robustness"):
        parts += ["## When the clock, the temperature or the text is another", "", robustness_table(report["robustness"]), ""]
    parts += ["## Where the time went", "", "| stage | seconds |", "| --- | --- |"]
    parts += [f"| {name} | {value:.1f} |" for name, value in report["seconds"].items()]
    return "\n".join(parts) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Speed-up of every policy with its interval, a panel a section."""
    from matplotlib.figure import Figure

    sections = report["sections"]
    columns = 2
    rows = -(-len(sections) // columns)
    figure = Figure(figsize=(13, 0.6 + 4.4 * rows), layout="constrained")
    colours = {"bound": "#777777", "learned": "#c0392b", "baseline": "#2471a3"}
    for i, s in enumerate(sections):
        axis = figure.add_subplot(rows, columns, i + 1)
        policies = sorted(s["policies"], key=lambda p: p["speedup"])
        for y, p in enumerate(policies):
            low, high = p["ci95"]
            axis.plot([low, high], [y, y], color=colours[p["kind"]], lw=2)
            axis.plot(p["speedup"], y, "o", color=colours[p["kind"]], ms=4)
        axis.set_yticks(range(len(policies)), [p["name"] for p in policies], fontsize=7)
        axis.axvline(1.0, color="black", lw=0.6, ls=":")
        axis.set_title(title(s), fontsize=9)
        axis.set_xlabel("tokens per plain decoding step", fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    for kind, colour in colours.items():
        figure.axes[0].plot([], [], "o-", color=colour, label=kind)
    figure.axes[0].legend(fontsize=8, loc="lower right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def write_report(report: dict[str, Any], folder: Path) -> None:
    """report.md and speedups.png beside report.json, and the summary on the terminal."""
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(markdown(report))
    plot(report, folder / "speedups.png")
    print("\n" + summary(report))
    if report.get("robustness"):
        print("\n" + robustness_table(report["robustness"]))
    print(f"\n{folder / 'report.md'}, report.json and speedups.png are written; tensorboard --logdir {folder / 'tensorboard'}")
