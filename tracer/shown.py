"""A trace, and images, as a notebook's cell shows them, with what can be done next."""

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import duckdb
from PIL import Image

if TYPE_CHECKING:
    from tracer.store import Store

SHOWN = 12  # runs, or images
LARGEST = 192  # pixels a side of an image that is shown
_RUNS = """
SELECT r.run_id AS run, coalesce(r.method, 'plain') AS method, r.model, r.n_steps AS steps, r.status,
       count(s.image_sha256) AS images, any_value(s.prompt) AS "a prompt"
FROM runs r LEFT JOIN samples s USING (run_id) GROUP BY ALL ORDER BY run"""
_NEXT = (
    ("analysis.explore(store)", "look into it with the mouse"),
    ("store.sql('FROM dominance LIMIT 10')", "ask it in SQL; in a cell of its own: %load_ext tracer, then %%sql store"),
    ("store.maps(0, word='...')", "a word's maps as an array"),
)


def store_html(store: "Store") -> str:
    """Return a table of the runs, the last ones if there are many, and what to do next; or that the store is closed."""
    try:
        runs = store.sql(_RUNS)
    except duckdb.ConnectionException:
        return f"<p><b>{escape(store.path.name)}</b> is closed; <code>tracer.Store.open(path)</code> opens it again</p>"
    more = f", the last {SHOWN} of {len(runs)} runs" if len(runs) > SHOWN else ""
    size = store.path.stat().st_size / 1e6
    table = runs.tail(SHOWN).to_html(index=False, border=0) if len(runs) else "<p>Nothing is recorded yet.</p>"
    steps = "".join(f"<li><code>{escape(code)}</code> {escape(why)}</li>" for code, why in _NEXT)
    return f"<p><b>{escape(store.path.name)}</b>, {size:.1f} MB{more}</p>{table}<ul>{steps}</ul>"


def images_html(images: Sequence[Image.Image], title: str, note: str) -> str:
    """Return small copies of the images side by side, the first ones if there are many.

    Args:
        images: to show.
        title: above them.
        note: below them, as HTML.
    """
    more = f", the first {SHOWN} of {len(images)}" if len(images) > SHOWN else ""
    shown = "".join(f'<img src="data:image/png;base64,{_png(image)}" style="margin:2px">' for image in images[:SHOWN])
    return f"<p><b>{escape(title)}</b>{more}</p><div>{shown}</div><p>{note}</p>"


def _png(image: Image.Image) -> str:
    small, written = image.convert("RGB"), io.BytesIO()
    small.thumbnail((LARGEST, LARGEST))
    small.save(written, "PNG")
    return b64encode(written.getvalue()).decode()
