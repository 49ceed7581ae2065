"""Makes matplotlib's index of fonts, which launcher.py copies to a writable folder: `python bake_fonts.py ENV_DIR`

The index has matplotlib's own fonts and those of the environment, never those of the machine, and the other names that fonts.conf
gives them. Beside it, `fallbacks.json` lists the fonts in which cellkeep_fonts.py looks for a missing character, in the order of
fonts.conf.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

ENV_ROOT = Path(sys.argv[1])
CACHE = ENV_ROOT / "share/mplcache"
os.environ.update(MPLCONFIGDIR=str(CACHE), MPL_IGNORE_SYSTEM_FONTS="1")

from matplotlib import font_manager  # noqa: E402  (reads the variables, and writes an index without system fonts)


def main():
    manager = font_manager.fontManager
    own = manager.ttflist.copy()
    for path in sorted((ENV_ROOT / "fonts").rglob("*.?t?")):
        manager.addfont(path)
    known = {font.name for font in own}
    manager.ttflist = own + [
        dataclasses.replace(font, fname=font.fname.replace(str(ENV_ROOT), "/opt/kernel", 1))
        for font in manager.ttflist[len(own) :]
        if font.name not in known
    ]
    config = ElementTree.parse(ENV_ROOT / "common/fontconfig/fonts.conf")
    aliases = {alias.findtext("family"): alias.findtext("accept/family") for alias in config.iter("alias")}
    manager.ttflist += [
        dataclasses.replace(font, name=name)
        for name, target in aliases.items()
        for font in manager.ttflist
        if font.name == target
    ]
    (index,) = CACHE.glob("fontlist-*.json")
    font_manager.json_dump(manager, index)
    order = [name.text for edit in config.iter("edit") if edit.get("name") == "family" for name in edit]
    # As read back, with matplotlib's own paths made absolute, which are inside of the environment too.
    upright = [font for font in manager.ttflist if (font.weight, font.style) == (400, "normal")]
    fallbacks = [next(font for font in upright if font.name == name) for name in order]
    paths = [(font.fname.replace(str(ENV_ROOT), "/opt/kernel", 1), font.index) for font in fallbacks]
    (CACHE / "fallbacks.json").write_text(json.dumps(paths))


main()
