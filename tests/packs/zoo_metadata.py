"""Packs of the zoo whose metadata or names are at fault: all of it is seen without importing anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from packs.zoo import HOOK, PLAIN, VERSION, BrokenPack

HEAD = f"Metadata-Version: 2.1\nName: %s\nVersion: {VERSION}\n"


def listed(name: str, said: str, *, source: str | None = PLAIN, **more: Any) -> BrokenPack:
    return BrokenPack(name, source, said, is_listed=True, **more)


def named(module: str, name: str, said: str, row: str | None = None) -> BrokenPack:
    return listed(module, said, points=f"[layerport]\n{name} = {module}\n", shown_name=name if row is None else row)


def without(file: str) -> Any:
    return lambda folder, info: (info / file).unlink()


def pipe(file: str) -> Any:
    def make(folder: Path, info: Path) -> None:
        (info / file).unlink()
        os.mkfifo(info / file)

    return make


def huge(folder: Path, info: Path) -> None:
    with open(info / "entry_points.txt", "r+b") as file:
        file.truncate(1 << 33)


def as_folder(folder: Path, info: Path) -> None:
    (info / "entry_points.txt").unlink()
    (info / "entry_points.txt").mkdir()


def installed_twice(folder: Path, info: Path) -> None:
    copy = folder / info.name.replace(VERSION, "0.9")
    shutil.copytree(info, copy)
    (copy / "METADATA").write_text((info / "METADATA").read_text().replace(VERSION, "0.9"))


def left_by_pip(folder: Path, info: Path) -> None:
    info.rename(folder / f"~{info.name[1:]}")


def editable(folder: Path, info: Path) -> None:
    (info / "direct_url.json").write_text('{"url": "file:///nowhere/at%20all", "dir_info": {"editable": true}}')


CALL_IT = "call it by lower-case letters, digits, _ and -, as in "
PACKS = (
    listed("zoo_no_name", "its METADATA has no Name; reinstall zoo_no_name", metadata=f"Version: {VERSION}\n"),
    listed(
        "zoo_no_version", "its METADATA has no Version; reinstall zoo-no-version", metadata="Name: zoo-no-version\n"
    ),
    listed("zoo_no_metadata", "it has no METADATA; reinstall zoo_no_metadata", after=without("METADATA")),
    listed(
        "zoo_latin_metadata",
        "its METADATA is not UTF-8 (invalid continuation byte); reinstall zoo-latin-metadata",
        metadata=(HEAD % "zoo-latin-metadata").encode() + "Author: Zoë Bär\n".encode("latin-1"),
    ),
    listed(
        "zoo_piped_metadata",
        "its METADATA cannot be read (OSError: it is no plain file); reinstall zoo_piped_metadata",
        after=pipe("METADATA"),
    ),
    listed(
        "zoo_utf16_points",
        in_the_way=True,
        said="its entry_points.txt is not UTF-8 (invalid start byte); reinstall zoo-utf16-points",
        points="[layerport]\nzoo_utf16_points = zoo_utf16_points\n".encode("utf-16"),
        shown_name="zoo-utf16-points",
    ),
    listed(
        "zoo_marked_points",
        in_the_way=True,
        said="its entry_points.txt begins with a byte order mark, which hides its first line; reinstall zoo-marked",
        points=b"\xef\xbb\xbf[layerport]\nzoo_marked_points = zoo_marked_points\n",
        shown_name="zoo-marked-points",
    ),
    listed(
        "zoo_latin_points",
        in_the_way=True,
        said="its entry_points.txt is not UTF-8 (invalid start byte); reinstall zoo-latin-points",
        points="[layerport]\nzoo_latin_points = zoo_latin_points\n# für\n".encode("latin-1"),
        shown_name="zoo-latin-points",
    ),
    listed(
        "zoo_layer_folder",
        "its entry_points.txt cannot be read (OSError: it is a folder); reinstall zoo-layer-folder",
        after=as_folder,
        shown_name="zoo-layer-folder",
    ),
    listed(
        "zoo_layer_pipe",
        in_the_way=True,
        said="its entry_points.txt cannot be read (OSError: it is no plain file); reinstall zoo-layer-pipe",
        after=pipe("entry_points.txt"),
        shown_name="zoo-layer-pipe",
    ),
    listed(
        "zoo_layer_huge",
        in_the_way=True,
        said="its entry_points.txt cannot be read (OSError: it has 8589934592 bytes); reinstall zoo-layer-huge",
        after=huge,
        shown_name="zoo-layer-huge",
    ),
    listed(
        "zoo_no_equals",
        in_the_way=True,
        said="its entry_points.txt cannot be read (",
        points="[layerport]\nzoo_no_equals\n",
        shown_name="zoo-no-equals",
    ),
    listed(
        "zoo_empty_group",
        "its entry_points.txt has no line under [layerport]; reinstall zoo-empty-group",
        points="[console_scripts]\n\n[layerport]\n",
        shown_name="zoo-empty-group",
    ),
    listed(
        "zoo_wrong_group",
        "its entry point is in the group 'layerport.packs.host'; write zoo_wrong_group = \"zoo_wrong_group\" under "
        "[project.entry-points.layerport] in its pyproject.toml",
        points="[layerport.packs.host]\nzoo_wrong_group = zoo_wrong_group\n",
    ),
    listed(
        "zoo_far_group",
        "its entry point is in the group 'acme.plugins'; write zoo_far_group = \"zoo_far_group\" under "
        "[project.entry-points.layerport] in its pyproject.toml",
        points="[acme.plugins]\nzoo_far_group = zoo_far_group\n",
        metadata=f"{HEAD % 'zoo-far-group'}Requires-Dist: layerport[build]<0.2,>=0.1\n",
        build="",
        needed="",
    ),
    listed(
        "zoo_groupless",
        'it registers no pack, though zoo_groupless has hooks; write zoo_groupless = "zoo_groupless" under',
        points="",
        metadata=f"{HEAD % 'zoo-groupless'}Requires-Dist: layerport\n",
        build="",
        needed="",
        shown_name="zoo-groupless",
    ),
    listed(
        "zoo_near_group",
        "its entry point is in the group 'layer_ports'; write zoo_near_group",
        points="[layer_ports]\nzoo_near_group = zoo_near_group\n",
    ),
    listed(
        "zoo_two_points",
        "its distribution has 2 entry points in the group 'layerport' (zoo_two_points, zoo_more), and is one pack; "
        "keep one of them, and return the layers of all from its layerport_layers",
        points="[layerport]\nzoo_two_points = zoo_two_points\nzoo_more = zoo_two_points\n",
    ),
    listed(
        "zoo_same_points",
        "its distribution has 2 entry points in the group 'layerport' (zoo_same_points, zoo_same_points), and is one",
        points="[layerport]\nzoo_same_points = zoo_same_points\nzoo_same_points = somewhere\n",
    ),
    listed(
        "zoo_first_twin",
        "2 entry points are named 'zoo_first_twin': zoo-first-twin 1.0 and zoo-second-twin 1.0; uninstall all but one, "
        "name the wanted distribution, as in --prefer zoo-first-twin, or the other one in LAYERPORT_DISABLE_PACKS",
    ),
    listed(
        "zoo_second_twin",
        "2 entry points are named 'zoo-first_twin': zoo-first-twin 1.0 and zoo-second-twin 1.0",
        points="[layerport]\nzoo-first_twin = zoo_second_twin\n",
        shown_name="zoo-first_twin",
    ),
    listed(
        "zoo_installed_twice",
        "zoo-installed-twice is installed 2 times in one folder (versions 0.9 and 1.0), so nobody knows whose files "
        "are there; pip uninstall zoo-installed-twice until it is gone, then install it",
        after=installed_twice,
    ),
    listed(
        "zoo_left_by_pip",
        "its folder ~oo_left_by_pip-1.0.dist-info is what an interrupted pip has left; delete it",
        after=left_by_pip,
    ),
    listed(
        "zoo_editable",
        "it was installed in editable mode from /nowhere/at all, which is gone; install it again",
        source=None,
        after=editable,
    ),
    named("zoo_upper", "Zoo_Upper", f"its entry point has the name 'Zoo_Upper'; {CALL_IT}'zoo_upper'"),
    named("zoo_dots", "zoo.dots", f"its entry point has the name 'zoo.dots'; {CALL_IT}'zoo_dots'"),
    named("zoo_space", "zoo space", f"its entry point has the name 'zoo space'; {CALL_IT}'zoo_space'"),
    named("zoo_umlaut", "zoo_ümlaut", f"its entry point has the name 'zoo_ümlaut'; {CALL_IT}'zoo_umlaut'"),
    named("zoo_digit", "7zoo", f"its entry point has the name '7zoo'; {CALL_IT}'zoo'"),
    named("zoo_path", "../zoo.py", f"its entry point has the name '../zoo.py'; {CALL_IT}'zoo_py'"),
    named("zoo_comma", "zoo,comma", f"its entry point has the name 'zoo,comma'; {CALL_IT}'zoo_comma'"),
    named("zoo_escape", "zoo\x1b[2Jx", "its entry point has the name 'zoo\\x1b[2Jx'; ", row="zoo\\x1b[2Jx"),
    named("zoo_reserved", "layerport", "the name 'layerport' belongs to the core; rename the entry point"),
    named("zoo_reserved_too", "LayerPort", "the name 'layerport' belongs to the core; rename the entry point"),
    listed(
        "zoo_odd_distribution",
        "its METADATA has the Name 'zoo ödd', which no installer takes; reinstall zoo ödd",
        metadata=HEAD % "zoo ödd",
    ),
    listed(
        "zoo_odd_version",
        "its METADATA has the Version 'one dot two', which is none; reinstall zoo-odd-version",
        metadata=(HEAD % "zoo-odd-version").replace(VERSION, "one dot two"),
    ),
    listed(
        "zoo_other_name",
        "its METADATA has the Name 'zoo-elsewhere', but its folder is called 'zoo_other_name'; reinstall zoo-elsewhere",
        metadata=HEAD % "zoo-elsewhere",
    ),
    listed(
        "zoo_no_module_form",
        "its entry point 'not a module' is not of the form module or module:object; correct it",
        points="[layerport]\nzoo_no_module_form = not a module\n",
    ),
    listed(
        "zoo_relative",
        "its entry point '.plugin' is not of the form module or module:object; correct it",
        points="[layerport]\nzoo_relative = .plugin\n",
    ),
    listed(
        "zoo_absent",
        "its entry point names 'zoo_absent', but there is no module zoo_absent; write zoo_absent = \"MODULE\" under",
        source=None,
    ),
    listed(
        "zoo_misspelt",
        "its entry point names 'zoo_misspelt.plugins', but there is no module zoo_misspelt.plugins; write "
        'zoo_misspelt = "zoo_misspelt.plugin" under',
        source=None,
        files={"zoo_misspelt/__init__.py": "", "zoo_misspelt/plugin.py": HOOK},
        points="[layerport]\nzoo_misspelt = zoo_misspelt.plugins\n",
    ),
)
