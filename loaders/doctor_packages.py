"""Packages: what is installed, what is too old, which packages overwrite each other, what hides behind another's name."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import distribution, distributions, requires
from pathlib import Path
from typing import NamedTuple

from .doctor_finding import NOTE, WRONG, Finding

# Other packages that bring the same module.
_OPENCVS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
_DALIS = ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110")
_PILLOWS = ("pillow", "pillow-simd")
SAME_MODULE = {"cv2": _OPENCVS, "nvidia.dali": _DALIS, "PIL": _PILLOWS}
# A file of the user's with one of these names is imported in the package's stead.
_MODULES = {
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "fsspec": "fsspec",
    "lz4": "lz4",
    "msgpack": "msgpack",
    "tqdm": "tqdm",
    "torch": "torch",
    "timm": "timm",
    "numba": "numba",
}
# They bring no feature to a user.
_NO_FEATURE = frozenset({"all", "dev"})


class Requirement(NamedTuple):
    """A line of softshard's own metadata: a package, its lowest version, and the extra that wants it ("" is the base)."""

    package: str
    lowest: str
    extra: str


def installed_packages() -> dict[str, str]:
    """The normalised name of every package that this Python can import, and its version."""
    return {_normal(found.metadata["Name"]): found.version for found in reversed([*distributions()])}


def own_requirements(lines: Iterable[str] | None = None) -> list[Requirement]:
    """What softshard's metadata ask for, an extra's extras resolved; conditions other than extras hold, or are left out.

    Args:
        lines: of `Requires-Dist`; those of the installed softshard by default.
    """
    direct: list[Requirement] = []
    parts: dict[str, list[str]] = {}
    for line in requires("softshard") or () if lines is None else lines:
        found = re.match(r"([\w.-]+)(?:\[([\w,\s-]*)\])?[^;]*", line)
        if found is None or not _holds(line):
            continue
        extra = next(iter(re.findall(r"extra\s*==\s*[\"']([\w-]+)", line)), "")
        if _normal(found[1]) == "softshard":
            parts.setdefault(extra, []).extend(re.split(r"[,\s]+", found[2] or ""))
            continue
        lowest = re.search(r"[>=]=\s*([\d.]+)", found[0])
        direct.append(Requirement(_normal(found[1]), lowest[1] if lowest else "", extra))
    for _ in parts:  # an extra of an extra
        parts = {
            extra: [*inner, *(two for one in inner for two in parts.get(one, ()))]
            for extra, inner in parts.items()
        }
    return direct + [
        one._replace(extra=extra)
        for extra, inner in parts.items()
        for one in dict.fromkeys(direct)
        if one.extra in inner
    ]


def check_packages(installed: Mapping[str, str], needed: Sequence[Requirement]) -> list[Finding]:
    """The versions of what is there; what the base lacks is wrong, what an extra lacks is a note."""
    findings = [Finding("python", sys.version.split()[0])]
    findings.append(Finding("softshard", installed.get("softshard", "not installed: it runs from a folder")))
    for package in dict.fromkeys(one.package for one in needed if one.extra not in _NO_FEATURE):
        wanted = next(one for one in needed if one.package == package)
        name, version = _there(package, installed)
        if version is None:
            if not wanted.extra:
                fix = f"pip install '{package}>={wanted.lowest}'"
                findings.append(Finding(package, "not installed", WRONG, fix))
        elif _numbers(version) < _numbers(wanted.lowest):
            fix = f"pip install --upgrade '{package}>={wanted.lowest}'"
            findings.append(
                Finding(name, f"{version}: expected {wanted.lowest} or later, of {package}", WRONG, fix)
            )
        else:
            findings.append(Finding(name, version))
    for extra in sorted({one.extra for one in needed} - {"", *_NO_FEATURE}):
        missing = [
            one.package for one in needed if one.extra == extra and _there(one.package, installed)[1] is None
        ]
        if missing:
            fix = f"where it is wanted: pip install 'softshard[{extra}]'"
            findings.append(
                Finding(f"extra {extra}", f"not installed: {', '.join(sorted(missing))}", NOTE, fix)
            )
    return findings


def check_twice(installed: Mapping[str, str]) -> list[Finding]:
    """Packages that bring one module: whichever came last has overwritten the others' files."""
    findings = []
    for module, packages in SAME_MODULE.items():
        there = [package for package in packages if package in installed]
        if len(there) > 1:
            findings.append(
                Finding(
                    module,
                    f"{' and '.join(there)} are both installed, and overwrite each other's files",
                    WRONG,
                    f"pip uninstall -y {' '.join(there)} && pip install {there[0]}",
                )
            )
    return findings


def check_hidden(
    locate: Callable[[str], Path | None] | None = None, home: Callable[[str], Path | None] | None = None
) -> list[Finding]:
    """Modules that are imported from elsewhere than where their package is installed.

    Args:
        locate: gives the folder or file that a module would be imported from, None for none.
        home: gives the folder that a package is installed in, None where it is not, or is an editable install.
    """
    locate, home = locate or _locate, home or _home
    findings = []
    for module, package in _MODULES.items():
        place = locate(module)
        installed = next((found for one in _alike(package) if (found := home(one))), None)
        if place and installed and not place.is_relative_to(installed):
            findings.append(
                Finding(
                    module,
                    f"imported from {place}, and not from the installed {package}",
                    WRONG,
                    f"rename {place}, or leave its folder: {_why_on_path(place)}",
                )
            )
    own, installed = locate("softshard.loaders"), home("softshard")
    if own and installed and not own.is_relative_to(installed):
        findings.append(
            Finding(
                "softshard",
                f"imported from the folder {own.parent}, and not from the installed package",
                WRONG,
                "leave the folder above the clone, or install the clone: pip install -e "
                f"{own.parent}; {_why_on_path(own.parent)}",
            )
        )
    for name in ("shards", "loaders", "training"):
        if (bare := locate(name)) and bare == locate(f"softshard.{name}"):
            findings.append(
                Finding(
                    f"import {name}",
                    f"finds softshard's own folder {bare}, whose modules cannot be imported by that name",
                    NOTE,
                    f"write `import softshard.{name}`, and take {bare.parent} off PYTHONPATH: it would hide a module "
                    f"`{name}` of yours",
                )
            )
    return findings


def _why_on_path(place: Path) -> str:
    return f"{place.parent} is searched first (PYTHONPATH, or the folder of the script)"


def _alike(package: str) -> Sequence[str]:
    return next((packages for packages in SAME_MODULE.values() if package in packages), (package,))


def _there(package: str, installed: Mapping[str, str]) -> tuple[str, str | None]:
    """The package, or another that brings the same module, and its version."""
    return next(
        ((one, installed[one]) for one in _alike(package) if one in installed),
        (package, None),
    )


def _locate(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0] if places else spec.origin or "").resolve()


def _home(package: str) -> Path | None:
    try:
        found = distribution(package)
    except ImportError:
        return None
    origin = found.read_text("direct_url.json") or ""
    if re.search(r'"editable":\s*true', origin):  # pip writes a space, uv none
        return None
    home = Path(str(found.locate_file(""))).resolve()
    return None if (home / "pyproject.toml").exists() else home  # what building left in a clone


def _holds(line: str) -> bool:
    """Whether this Python is one that a requirement is for."""
    for sign, text in re.findall(r"python_version\s*(<|>=)\s*[\"']([\d.]+)", line):
        if (sys.version_info[:2] < _numbers(text)) != (sign == "<"):
            return False
    return True


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    """`2.6.0+cu124` as (2, 6): zeros at the end say nothing."""
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
