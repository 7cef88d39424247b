"""`tdraft policies accept`: rate against KL of learned and published acceptance rules on simulated texts."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.agents.acceptance import RULES, Outcome, evaluate, front, informed_front, learn_policy
from tdraft.agents.acceptance_comparison import gap, hull
from tdraft.envs.decoding.accept import AcceptEnv, Simulator
from tdraft.models.files import atomic_write
from tdraft.scripts.loading import at_least
from tdraft.scripts.main import UsageError
from tdraft.scripts.report import markdown_table
from tdraft.scripts.results import write_rows

BASELINES = ("lenience", "typical", "typical-residual", "tv-optimal")  # rules that see no more than the policy
BOUNDS = ("mentored", "mentored-price", "informed")  # need the whole of p and q before the token is decided
COMPARED = ("lenience", "typical", "typical-residual", "mentored-price", "informed")


@dataclass(frozen=True)
class AcceptTable:
    """Learned acceptance policies beside the fronts of lenience, typical, TV-optimal and mentored acceptance."""

    prices: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    """prices of a nat, in plain steps: one learned policy each"""
    timesteps: int = 24_000_000
    """env steps of each training"""
    seed: int = 0
    """of the agents"""
    train_texts: int = 1024
    """texts that policies train on"""
    test_texts: int = 256
    """texts that everything is judged on"""
    out: Path = Path("runs/accept")
    """folder of front.png"""
    json: Path | None = None
    """also write the rows to this file"""


def fronts(test: Simulator) -> dict[str, list[Outcome]]:
    """Every baseline's and bound's outcomes on the test texts."""
    p, q = test.draw()
    found = {name: front(name, p, q) for name in RULES}
    return found | {"informed": informed_front(p, q, np.geomspace(0.02, 1000.0, 37).tolist())}


def learn(options: AcceptTable) -> list[Outcome]:
    """One policy for each price, trained on texts of seed 1 and judged on those of seed 2."""
    train, test = Simulator(texts=options.train_texts, seed=1), judged_texts(options)
    found = []
    for price in options.prices:
        agent = learn_policy(train, price, steps=options.timesteps, seed=options.seed)
        actions = agent.values().argmax(-1)
        found.append(evaluate(AcceptEnv(test, observe="table"), actions.__getitem__, "learned", price))
        print(f"price {price:g}: {found[-1].rate:.4f} tokens per plain step, KL {found[-1].kl_per_token:.5f} a token", flush=True)
    return found


def judged_texts(options: AcceptTable) -> Simulator:
    return Simulator(texts=options.test_texts, seed=2)


def plot(path: Path, found: dict[str, list[Outcome]], learned: list[Outcome]) -> None:
    """Tokens per plain step against KL a token, one line a rule and a point a learned policy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    styles = {"mentored": "--", "mentored-price": "--", "informed": "-"}
    colours = {"informed": "black", "mentored": "tab:purple", "mentored-price": "tab:gray", "lenience": "tab:blue"}
    colours |= {"typical": "tab:orange", "typical-residual": "tab:green", "tv-optimal": "tab:brown"}
    for name in (*BOUNDS[::-1], *BASELINES):
        points = hull(found[name])
        x, y = [o.kl_per_token for o in points], [o.rate for o in points]
        axes.plot(x, y, styles.get(name, "-"), color=colours[name], lw=1.2, label=name)
    exact = found["lenience"][0].rate
    axes.axhline(exact, color="silver", lw=0.8, zorder=0)
    axes.annotate("exact", (0.995, exact), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="gray")
    axes.errorbar(
        [o.kl_per_token for o in learned],
        [o.rate for o in learned],
        [2 * o.rate_se for o in learned],
        [2 * o.kl_se for o in learned],
        "o",
        color="tab:red",
        ms=4,
        lw=1,
        label="learned (± 2 SE)",
    )
    axes.set(xscale="log", xlim=(1e-4, 0.6), xlabel="KL(p || emitted) per token, nats", ylabel="tokens per plain step")
    axes.legend(frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def accept(options: AcceptTable) -> None:
    """Train, compare, print the table, draw the fronts."""
    if not options.prices or min(options.prices) <= 0:
        raise UsageError(f"prices must be one or more numbers > 0, got {options.prices}")
    at_least(6, timesteps=options.timesteps)
    at_least(2, train_texts=options.train_texts, test_texts=options.test_texts)
    logging.getLogger("tdraft").setLevel(logging.WARNING)
    found = fronts(judged_texts(options))
    learned = learn(options)
    vertices = {name: hull([found["lenience"][0], *found[name]]) for name in COMPARED}
    cells, rows = [], []
    for o in learned:
        name, runs = f"learned, price {o.parameter:g}", len(o.time)
        gaps = {rule: gap(o, vertices[rule]) for rule in COMPARED}
        compared = [f"{g.rate:.3f} ({g.percent:+.2f} ± {g.se:.2f}%)" for g in gaps.values()]
        cells.append((f"{o.parameter:g}", f"{o.rate:.3f} ± {o.rate_se:.3f}", f"{o.kl_per_token:.4f} ± {o.kl_se:.4f}", *compared))
        rows.append(row(name, "rate", o.rate, "tokens/plain step", runs, o.rate_se))
        rows.append(row(name, "KL", o.kl_per_token, "nats/token", runs, o.kl_se))
        for rule, g in gaps.items():
            rows.append(row(name, f"rate above {rule}", g.percent, "%", runs, g.se) | {"peer": rule, "ratio": o.rate / g.rate})
    for name, points in found.items():
        for i, o in enumerate(points):
            label = f"{name}, point {i}"
            rows.append(row(label, "rate", o.rate, "tokens/plain step", len(o.time), o.rate_se))
            rows.append(row(label, "KL", o.kl_per_token, "nats/token", len(o.time), o.kl_se))
    head = ("price", "tokens per plain step", "KL per token, nats", *COMPARED)
    print(f"\n{options.test_texts} test texts; ± is one standard error over texts, of a difference paired; each front at the")
    print(
        "learned policy's KL, mixing of its rules and the exact one allowed; exact rule: " + f"{found['lenience'][0].rate:.3f}\n"
    )
    print(markdown_table(head, cells))
    plot(options.out / "front.png", found, learned)
    print(f"\n{options.out / 'front.png'}")
    if options.json is not None:
        write_rows(options.json, rows)


def row(name: str, metric: str, value: float, unit: str, runs: int, se: float) -> dict:
    return {"name": name, "metric": metric, "value": float(value), "unit": unit, "runs": runs, "se": float(se)}
