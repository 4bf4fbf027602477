"""Plots as SVG, without a library: lines over numbers, as a benchmark needs them."""

import html
import math

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 64, 150, 40, 48
COLORS = "#1f5fbf", "#c2410c", "#15803d", "#7e22ce"
STYLE = "text{font:13px system-ui,sans-serif;fill:#555}line{stroke:#8884}path{fill:none;stroke-width:2}"


def ticks(largest, count=6):
    """Round numbers from 0 to about `largest`."""
    step = 10 ** math.floor(math.log10(largest / count))
    step *= next(factor for factor in (1, 2, 5, 10) if largest / (factor * step) <= count)
    return [n * step for n in range(math.ceil(largest / step) + 1)]


def lines(title, x_name, y_name, series):
    """SVG of series {name: [(x, y), ...]}, all numbers above zero, with both axes from zero."""
    across, up = (ticks(max(point[axis] for points in series.values() for point in points)) for axis in (0, 1))

    def x(value):
        return round(LEFT + (WIDTH - LEFT - RIGHT) * value / across[-1], 1)

    def y(value):
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / up[-1], 1)

    def text(at, height, words, anchor="middle", **style):
        extra = "".join(f' {name}="{value}"' for name, value in style.items())
        return f'<text x="{at}" y="{height}" text-anchor="{anchor}"{extra}>{html.escape(words)}</text>'

    parts = [text(LEFT, 20, title, "start"), text(x(across[-1] / 2), HEIGHT - 10, x_name),
             text(LEFT, TOP - 6, y_name)]  # fmt: skip
    for value in up:
        parts.append(f'<line x1="{x(0)}" x2="{x(across[-1])}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(text(LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    parts += [text(x(value), HEIGHT - BOTTOM + 18, f"{value:g}") for value in across]
    for (name, points), color in zip(series.items(), COLORS):
        way = " L".join(f"{x(a)} {y(b)}" for a, b in points)
        parts.append(f'<path d="M{way}" stroke="{color}"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="3" fill="{color}"/>' for a, b in points]
        parts.append(text(x(points[-1][0]) + 8, y(points[-1][1]) + 4, name, "start", style=f"fill:{color}"))
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n<title>'
            f"{html.escape(title)}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n")  # fmt: skip
