"""The pictures of a benchmark, as SVG: told apart by marker and dash as well as by colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# Okabe and Ito 2008, "Color universal design", without the yellow that paper swallows.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^DvPX*<>"
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
LABELS = {"feedback": "training feedback", "judge": "second judge"}


class Pictures:
    """Draws the pictures of a summary (`agents.benchmark.results.summarise`), each agent always in the same style.

    Each method returns a `data:` address of an SVG, or None where there is nothing to draw.
    """

    def __init__(self, summary: dict[str, Any]) -> None:
        self.summary = summary
        agents = summary["plan"]["agents"]
        self.styles = {
            agent: {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linestyle": DASHES[i % len(DASHES)],
            }
            for i, agent in enumerate(agents)
        }

    def interquartile_means(self) -> str | None:
        """Draw the interquartile mean of each agent with its interval, by both scores."""
        known = {name: self.summary["aggregates"][name]["interquartile_mean"] for name in LABELS}
        known = {name: found for name, found in known.items() if found}
        if not known:
            return None
        agents = [agent for agent in self.styles if any(agent in found for found in known.values())]
        with _figure(5.2 * len(known), 0.9 + 0.34 * len(agents), (1, len(known))) as (panels, done):
            for panel, (name, found) in zip(panels, known.items(), strict=True):
                for row, agent in enumerate(reversed(agents)):
                    if agent in found:
                        self._interval(panel, row, found[agent], agent)
                panel.set_yticks(range(len(agents)), list(reversed(agents)))
                panel.set(title=LABELS[name], xlabel="interquartile mean: 0 untrained, 1 reference")
                panel.set_ylim(-0.6, len(agents) - 0.4)
                _rule(panel)
        return done()

    def profiles(self, name: str) -> str | None:
        """Draw which share of its runs an agent has above each score."""
        found = self.summary["aggregates"][name]["profile"]
        if not found:
            return None
        x = np.array(self.summary["thresholds"])
        with _figure(7.2, 3.8) as (panels, done):
            for agent, band in found.items():
                self._band(panels[0], x, band, agent, step="post")
            panels[0].set(
                xlabel=f"normalised score τ, {LABELS[name]}", ylabel="share of runs above τ", ylim=(-0.03, 1.03)
            )
            _rule(panels[0])
            _legend(panels[0])
        return done()

    def improvement(self, name: str) -> str | None:
        """Draw the probability that a run of one agent beats one of another."""
        found = self.summary["aggregates"][name]["improvement"]
        if len(found) < 2:
            return None
        agents = list(found)
        table = np.array([[found[a][b]["value"] if a != b else np.nan for b in agents] for a in agents])
        with _figure(1.9 + 0.66 * len(agents), 1.3 + 0.52 * len(agents)) as (panels, done):
            # A mesh, not an image: it stays sharp, and the SVG holds no picture in a picture.
            panels[0].pcolormesh(np.ma.masked_invalid(table), cmap="cividis", vmin=0, vmax=1, edgecolors="white")
            for (i, j), value in np.ndenumerate(table):
                if np.isfinite(value):
                    shade = "white" if value < 0.6 else "black"
                    panels[0].text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", color=shade)
            places = np.arange(len(agents)) + 0.5
            panels[0].set_xticks(places, agents, rotation=35, ha="right")
            panels[0].set_yticks(places, agents)
            panels[0].invert_yaxis()
            panels[0].set(xlabel="beats one of this agent", ylabel="how often a run of this agent")
            panels[0].spines[:].set_visible(False)
            panels[0].tick_params(length=0)
        return done()

    def curves(self) -> str | None:
        """Draw what training texts earned, by tokens written."""
        found = {env: curves for env, curves in self.summary["curves"].items() if curves}
        if not found:
            return None
        with _figure(5.4 * min(2, len(found)), 3.6 * ((len(found) + 1) // 2), _grid(len(found))) as (panels, done):
            for panel, (env, curves) in zip(panels, found.items(), strict=False):
                for agent, curve in curves.items():
                    self._band(panel, np.array(curve["tokens"]), curve, agent)
                panel.set(title=_short(env), xlabel="tokens written in training", ylabel="training feedback")
                _rule(panel)
                _legend(panel)
        return done()

    def frontier(self) -> str | None:
        """Draw each cell's score against how far its texts are from the untrained policy."""
        cells = [cell for cell in self.summary["cells"] if cell["state"] == "done"]
        envs = {
            env: [c for c in cells if c["env"] == env and _spent(c) is not None] for env in self.summary["environments"]
        }
        envs = {env: known for env, known in envs.items() if len({c["agent"] for c in known}) > 1}
        if not envs:
            return None
        with _figure(5.4 * min(2, len(envs)), 3.6 * ((len(envs) + 1) // 2), _grid(len(envs))) as (panels, done):
            for panel, (env, known) in zip(panels, envs.items(), strict=False):
                name = "judge" if any(c["measures"].get("judge") is not None for c in known) else "feedback"
                for agent in self.styles:
                    mine = [c for c in known if c["agent"] == agent and c["measures"].get(name) is not None]
                    if mine:
                        style = {**self.styles[agent], "linestyle": "none"}
                        bound = mine[0]["kl"] is None
                        face = "none" if bound else self.styles[agent]["color"]
                        label = f"{agent} (at most)" if bound else agent
                        x, y = [_spent(c) for c in mine], [c["measures"][name] for c in mine]
                        panel.plot(x, y, **style, markerfacecolor=face, markersize=7, label=label)
                panel.set(title=_short(env), xlabel="KL of a text to the untrained policy, nats", ylabel=LABELS[name])
                _rule(panel)
                _legend(panel)
        return done()

    def _interval(self, panel: Any, row: int, found: dict[str, float | None], agent: str) -> None:
        style = self.styles[agent]
        panel.plot(found["value"], row, marker=style["marker"], color=style["color"], markersize=7)
        if found["low"] is not None:
            panel.plot([found["low"], found["high"]], [row, row], color=style["color"], linewidth=2)

    def _band(self, panel: Any, x: np.ndarray, band: dict[str, Any], agent: str, step: str | None = None) -> None:
        style = self.styles[agent]
        value, low, high = (
            np.array([np.nan if y is None else y for y in band[part]]) for part in ("value", "low", "high")
        )
        drawn = "steps-post" if step else "default"
        line = {"color": style["color"], "linestyle": style["linestyle"], "drawstyle": drawn}
        panel.plot(x, value, **line, marker=style["marker"], markevery=max(1, len(x) // 6), markersize=5, label=agent)
        panel.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0, step=step)


def _spent(cell: dict[str, Any]) -> float | None:
    return cell["kl"] if cell["kl"] is not None else cell["kl_at_most"]


def _short(env: str) -> str:
    return env.rpartition(":")[2]


def _grid(count: int) -> tuple[int, int]:
    return (count + 1) // 2, min(2, count)


@contextmanager
def _figure(width: float, height: float, grid: tuple[int, int] = (1, 1)) -> Iterator[tuple[Sequence[Any], Any]]:
    """Give the panels of a figure, and a function that returns it once it is drawn."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "llm_gym", "font.size": 10, "axes.titlesize": 11}):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        FigureCanvasSVG(figure)
        panels = list(np.atleast_1d(figure.subplots(*grid)).ravel())

        def done() -> str:
            for panel in panels:
                panel.set_visible(panel.has_data())
            picture = io.BytesIO()
            with matplotlib.rc_context({"svg.hashsalt": "llm_gym"}):
                figure.savefig(picture, format="svg", metadata={"Date": None})
            return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()

        yield panels, done


def _rule(panel: Any) -> None:
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(panel: Any) -> None:
    panel.legend(frameon=False, fontsize=8.5)
