"""Draw the sprites of the emoji world into one PNG, so that nothing else needs the font.

Command: ``apt-get install fonts-noto-color-emoji && python data/emoji/make/atlas.py``
Source of the drawings: Noto Color Emoji (images Apache 2.0, font OFL 1.1; see ../NOTICE).
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent.parent
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FONT_SIZE = 109  # the only bitmap strike in the font
CELL = 96  # pixels a side of one atlas cell
COLUMNS = 6

GLYPHS = {
    "cat": "🐱", "dog": "🐶", "bird": "🐦", "bear": "🐻", "lion": "🦁", "horse": "🐴",
    "elephant": "🐘", "monkey": "🐵", "frog": "🐸", "turtle": "🐢", "rabbit": "🐰", "mouse": "🐭",
    "backpack": "🎒", "glasses": "👓", "crown": "👑", "suitcase": "🧳", "chair": "🪑", "balloon": "🎈",
    "bow": "🎀", "car": "🚗", "bowl": "🥣", "bench": None, "clock": "⏰", "apple": "🍎",
}  # fmt: skip


def draw_glyph(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the emoji as RGBA, cropped to what is drawn."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def draw_bench() -> Image.Image:
    """Return a park bench as RGBA: there is no bench emoji."""
    wood, dark, iron = (184, 120, 66, 255), (140, 86, 44, 255), (70, 74, 84, 255)
    image = Image.new("RGBA", (520, 400), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for x in (70, 410):
        draw.rounded_rectangle((x, 40, x + 40, 270), 14, fill=iron)
        draw.polygon([(x, 250), (x + 40, 250), (x + 28, 396), (x - 12, 396)], fill=iron)
    for x in (10, 470):
        draw.rounded_rectangle((x, 250, x + 40, 396), 14, fill=iron)
    for y in (20, 92, 164):
        draw.rounded_rectangle((30, y, 490, y + 52), 16, fill=wood)
        draw.rounded_rectangle((30, y + 40, 490, y + 52), 6, fill=dark)
    draw.rounded_rectangle((0, 236, 520, 292), 18, fill=wood)
    draw.rounded_rectangle((0, 276, 520, 300), 10, fill=dark)
    return image


def fit(sprite: Image.Image) -> Image.Image:
    """Return the sprite scaled to the cell, kept in proportion and centred."""
    scale = CELL / max(sprite.size)
    size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
    cell = Image.new("RGBA", (CELL, CELL), (0, 0, 0, 0))
    small = sprite.resize(size, Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def main() -> None:
    """Write ``atlas.png`` and ``atlas.json`` beside the other files of the world."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    rows = -(-len(GLYPHS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, glyph in enumerate(GLYPHS.values()):
        sprite = draw_bench() if glyph is None else draw_glyph(glyph, font)
        atlas.paste(fit(sprite), (index % COLUMNS * CELL, index // COLUMNS * CELL))
    atlas.save(HERE / "atlas.png", optimize=True)
    layout = {"cell": CELL, "columns": COLUMNS, "words": list(GLYPHS)}
    (HERE / "atlas.json").write_text(json.dumps(layout, indent=1) + "\n")


if __name__ == "__main__":
    main()
