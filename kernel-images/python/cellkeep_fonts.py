"""Lets matplotlib draw characters that the chosen font lacks, with the other fonts of the environment.

Upstream falls back only along the list rcParams["font.family"], which styles and users replace. bake.sh makes this a module of
matplotlib that two others call at their end, so scripts that a cell starts have it too.
"""

import json
import sys
import unicodedata
from pathlib import Path

FALLBACKS = Path(sys.prefix) / "share/mplcache/fallbacks.json"
# Letters without case, marks and symbols: of formulas, upstream knows the letters with case and the mathematical symbols.
FALLBACK_CATEGORIES = {"Lo", "Lm", "Mc", "Mn", "So"}


def adapt_font_manager(manager_class, path_class):
    # It has the paths that a sandbox sees.
    text = FALLBACKS.read_text().replace("/opt/kernel/", f"{sys.prefix}/")
    fallbacks = [path_class(path, index) for path, index in json.loads(text)]
    find = manager_class._find_fonts_by_props

    def find_with_fallbacks(manager, prop, fontext="ttf", *args, **kwargs):
        found = find(manager, prop, fontext, *args, **kwargs)
        return found + [path for path in fallbacks if path not in found] if fontext == "ttf" else found

    manager_class._find_fonts_by_props = find_with_fallbacks
    manager_class.cellkeep_fallbacks = fallbacks


def adapt_mathtext(fonts_class):
    """The same for text with formulas (`"温度 $T$"`), which upstream draws with a single font, character by character."""
    from matplotlib.font_manager import FontManager, get_font

    get_glyph = fonts_class._get_glyph

    def get_glyph_or_fallback(fonts, name, font_class, symbol):
        if len(symbol) == 1 and symbol > "\u02ff" and unicodedata.category(symbol) in FALLBACK_CATEGORIES:
            code = ord(symbol)
            font = fonts._get_font(name)
            if font is None or not font.get_char_index(code):
                for path in FontManager.cellkeep_fallbacks:
                    fallback = get_font(path)
                    if fallback.get_char_index(code):
                        return fallback, code, False
        return get_glyph(fonts, name, font_class, symbol)

    fonts_class._get_glyph = get_glyph_or_fallback
