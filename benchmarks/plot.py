"""Line plots in panels side by side, as SVG."""

import html
import math
from dataclasses import dataclass

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 280, 56, 20, 44, 34  # of a panel and its margins, pixels
INKS = "#1b5e9e", "#c4571a", "#3b7d3a", "#7a4fa3"
DECADES = [10.0**power for power in range(-3, 6)]


@dataclass
class Panel:
    """lines: {name: [(x, y), ...]} over a logarithmic axis with ticks {x: name}; log: the other axis is too."""

    title: str
    unit: str
    ticks: dict
    lines: dict
    log: bool = False

    def __post_init__(self):
        xs, ys = ([point[axis] for line in self.lines.values() for point in line] for axis in (0, 1))
        self.low, self.high = min(xs), max(xs)
        if self.log:
            self.bottom = max((x for x in DECADES if x <= min(ys)), default=DECADES[0])
            self.top = min((x for x in DECADES if x >= max(ys)), default=DECADES[-1])
            self.heights = [x for x in DECADES if self.bottom <= x <= self.top]
        else:
            step = min((x * f for x in DECADES for f in (1, 2, 5) if x * f * 6 >= max(ys)), default=max(ys))
            self.heights = [step * n for n in range(math.ceil(max(ys) / step) + 1)]
            self.bottom, self.top = self.heights[0], self.heights[-1]

    def x(self, value):
        share = math.log(value / self.low) / (math.log(self.high / self.low) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        share = (value - self.bottom) / ((self.top - self.bottom) or 1)
        if self.log:
            share = math.log(value / self.bottom) / (math.log(self.top / self.bottom) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def svg(self):
        """The SVG elements of the panel, whose upper left corner is the origin."""
        parts = [f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(f"{self.title} ({self.unit})")}</text>']
        for value in self.heights:
            y = self.y(value)
            parts += [
                f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>',
            ]
        for value, name in self.ticks.items():
            if self.low <= value <= self.high:
                place = f'x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle"'
                parts.append(f"<text {place}>{html.escape(name)}</text>")
        for number, (name, line) in enumerate(self.lines.items()):
            ink = INKS[number % len(INKS)]
            points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="2"/>')
            parts += [f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3" fill="{ink}"/>' for x, y in line]
            where = f'x="{WIDTH - RIGHT}" y="{self.y(line[-1][1]) - 9:.1f}" text-anchor="end" fill="{ink}"'
            parts.append(f"<text {where}>{html.escape(name)}</text>")
        return "\n".join(parts)


def svg(*panels):
    """Panels side by side, as the text of an SVG file."""
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(panels)} {HEIGHT}"'
    groups = [f'<g transform="translate({WIDTH * n} 0)">\n{panel.svg()}\n</g>' for n, panel in enumerate(panels)]
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#333"'
    page = '<rect width="100%" height="100%" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, page, f"<g {style}>", *groups, "</g></svg>\n"])
