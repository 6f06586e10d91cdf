"""A page of one file: HTML and CSS around texts, tables, pictures and Plotly's figures.

It asks nothing of the network, opens from a folder as well as from MLflow, holds on a phone (what is too wide scrolls
within itself), and follows the reader's light or dark mode; figures stay on white. All text is escaped here.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from imavae.report.interactive import FONT, Section
from imavae.report.tables import Table

PIXELS, FEWEST = 100, 80  # of a picture per inch of the figure: as it is shown, and below which it scrolls
UNWANTED = ["lasso2d", "select2d", "sendChartToCloud"]  # buttons; the last one would upload what is shown
DPI = 150  # of the files that drawing.py writes
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --card: #f3f6f9; --ink: #1f2933; --faint: #52606d; --line: #d5dbe1;
  --best: #0072b2; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #14191f; --card: #1f272f; --ink: #e4e9ee; --faint: #a5b1bd; --line: #3a4652; --best: #6cb8ee; }}
}}
body {{ margin: 0 auto; max-width: 960px; padding: 0 16px 48px; background: var(--page); color: var(--ink);
  font: 16px/1.5 {font}; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; margin: 1.6rem 0 0; }}
h2 {{ font-size: 1.2rem; margin: 2.4rem 0 0; }}
p {{ margin: 0.4rem 0 0.8rem; }}
.faint {{ color: var(--faint); font-size: 0.92rem; }}
.answer {{ margin: 1.2rem 0; padding: 0.6rem 1rem; background: var(--card); border-left: 4px solid var(--best); }}
.answer p:first-child {{ font-size: 1.12rem; }}
.wide {{ overflow-x: auto; }}
.figure {{ overflow-x: auto; background: #fff; border-radius: 6px; padding: 6px; margin: 1.2rem 0; }}
.figure img {{ display: block; height: auto; max-width: 100%; }}
table {{ border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ padding: 0.3rem 1.1rem 0.3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: pre-line; min-width: 5rem; }}
th {{ color: var(--faint); font-weight: 600; vertical-align: bottom; }}
.right {{ text-align: right; min-width: 0; }}
.right, .lines {{ white-space: pre; }}
.bold td {{ font-weight: 700; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.25rem 1.1rem; margin: 0.6rem 0; }}
dt {{ color: var(--faint); }}
dd {{ margin: 0; }}
pre {{ margin: 0.4rem 0 0.8rem; padding: 0.6rem 0.8rem; background: var(--card); border-radius: 6px;
  font-size: 0.88rem; white-space: pre-wrap; }}
@media (max-width: 560px) {{ dl {{ grid-template-columns: minmax(0, 1fr); gap: 0; }} dd {{ margin-bottom: 0.5rem; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page, from parts that the functions below have made."""
    return PAGE.format(title=escape(title), font=FONT, body="\n".join([f"<h1>{escape(title)}</h1>", *parts]))


def heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, faint: bool = False) -> str:
    """Some sentences."""
    return f'<p class="faint">{escape(text)}</p>' if faint else f"<p>{escape(text)}</p>"


def answer(sentences: Iterable[str]) -> str:
    """What the page has to say; the first sentence stands out."""
    return f'<div class="answer">{"".join(map(paragraph, sentences))}</div>'


def facts(named: Mapping[str, str]) -> str:
    """A list of names, each with what there is to say."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in named.items())}</dl>"


def code(text: str) -> str:
    """What is meant to be copied."""
    return f"<pre><code>{escape(text)}</code></pre>"


def table(shown: Table) -> str:
    """A table with its title as the heading."""
    right = ["" if name in shown.left else ' class="right"' for name in shown.columns]
    lines = ["".join(f"<th{c}>{escape(name)}</th>" for c, name in zip(right, shown.columns, strict=True))]
    lines += ["".join(f"<td{c}>{escape(x)}</td>" for c, x in zip(right, row, strict=True)) for row in shown.rows]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    about = f'<h2>{escape(shown.title)}</h2><p class="faint">{escape(shown.caption)}</p>'
    return f'{about}<div class="wide"><table>{rows}</table></div>'


def picture(path: Path) -> str:
    """A PNG file, which becomes part of the page."""
    content = path.read_bytes()
    (width,) = struct.unpack(">I", content[16:20])  # of the image's header
    inches = width / DPI
    style = f"width: {PIXELS * inches:.0f}px; min-width: {min(FEWEST * inches, 900):.0f}px"
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    name = escape(path.stem.replace("_", " "))
    return f'<div class="figure"><img alt="{name}" style="{style}" src="{source}"></div>'


def figures(sections: Iterable[Section]) -> str:
    """Figures to explore, each under its heading. The first brings Plotly's library: a page has one call of this."""
    import plotly.io

    parts = []
    for number, section in enumerate(sections):
        div = plotly.io.to_html(
            section.figure,
            config={"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": UNWANTED},
            include_plotlyjs=number == 0,
            full_html=False,
            div_id=f"figure-{number}",
        )
        parts += [heading(section.heading), paragraph(section.reading, faint=True)]
        parts.append(f'<div class="figure"><div style="min-width: {section.room}px">{div}</div></div>')
    return "\n".join(parts)
