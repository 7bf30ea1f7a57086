"""The control groups of this process, in which Linux limits what a container or a systemd service may use."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

UNIFIED = "cgroup2"
"""Version 2, the type of its file system. That of version 1 is "cgroup"."""


def limit_files(root: Path, controller: str, unified: str, *divided: str) -> Iterator[list[Path]]:
    """Yield the files with the limits of a controller, of each control group that this process is in.

    A group may have less than the group around it, or more, of which it gets the part that is left there. So all of
    them count, from the group of the process up to the root.

    Args:
        root: Root of the file system, in which `proc` and the control groups are looked for.
        controller: Name of the controller, such as "cpu".
        unified: Name of its file in version 2.
        *divided: Names of its files in version 1.

    Source: cgroups(7), `/proc/self/cgroup`; proc(5), `/proc/self/mountinfo`.
    """
    for group, mount, version in _groups(root, controller):
        for folder in (group, *group.parents):
            yield [folder / name for name in ((unified,) if version == UNIFIED else divided)]
            if folder == mount:
                break


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, Path, str]]:
    """Yield the groups of this process that have a controller: the folder, where it is mounted, and its version.

    The mount may show only a part of the tree, from the mount's root down. In a container that is the container's own
    group, which then is the topmost that can be seen. A part without the process counts only if no mount shows the
    process, because the groups of others may be mounted as well, as in a container that watches them.
    """
    own = {}
    for line in _lines(root / "proc/self/cgroup"):  # such as "0::/user.slice" and "4:cpu,cpuacct:/docker/1234"
        parts = line.split(":", 2)
        if len(parts) == 3 and (not parts[1] or controller in parts[1].split(",")):
            own["cgroup" if parts[1] else UNIFIED] = PurePosixPath(parts[2])
    shown, others = [], []
    for line in _lines(root / "proc/self/mountinfo"):  # ID PARENT DEVICE ROOT PLACE OPTIONS ... - TYPE SOURCE OPTIONS
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(more) < 3 or more[0] not in own:
            continue
        if more[0] != UNIFIED and controller not in more[2].split(","):
            continue
        mount = root / _unescape(fields[4]).lstrip("/")
        group, top = own[more[0]], PurePosixPath(_unescape(fields[3]))
        if group.is_relative_to(top) and ".." not in group.parts:
            shown.append((mount / group.relative_to(top), mount, more[0]))
        else:
            others.append((mount, mount, more[0]))
    yield from shown or others


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux, or it may not be read
        return []


def _unescape(field: str) -> str:
    """Return a field of mountinfo, in which a space is a backslash with the number 040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
