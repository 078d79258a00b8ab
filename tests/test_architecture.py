"""The rooms of the package and the direction of imports between them, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unetdiff"

ORDER = (
    "data",
    "models",
    "segmentation",
    "diffusion",
    "config",
    "training",
    "evaluation",
    "benchmark",
    "reports",
    "experiments",
    "app",
    "cli",
)
"""Each room imports only rooms before it."""
ASIDE = {
    "kernels": {"models", "segmentation"},
    "export": {"data", "models", "segmentation"},
}
"""Rooms outside of the order, and what each imports."""
IMPORTED_ASIDE = {
    "kernels": {"segmentation", "diffusion", "training", "evaluation", "benchmark"},
    "export": {"training", "cli"},
}
"""Who imports the rooms outside of the order."""
EVERYWHERE = {"console", "errors", "files", "text"}
"""Modules that every room imports."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("config.pretrained", "export.convert.from_diffusers"): "keys of a pretrained U-Net, imported when called",
    ("segmentation.pipeline", "diffusion.conditioning.text_encoder"): "the text encoder of a segmenter of captions",
    ("segmentation.pipeline", "diffusion.codecs"): "the autoencoder of a segmenter of latents, imported when there is",
    ("models.serialization", "export.convert.diffusers"): "UNet.from_diffusers and to_diffusers, imported when called",
    ("models.serialization", "export.convert.smp"): "UNet.from_smp, imported when called",
}
"""(importing module, imported module) -> reason."""
PRIVATE_TORCH = {
    ("training.runtime", "torch.cpu._is_avx512_bf16_supported"): "no public query of a CPU's bfloat16 exists",
}
"""(module, private name of torch) -> reason; in kernels/, private names are free."""


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name below unetdiff, file) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported_by(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name below unetdiff, line) of every import, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("unetdiff."):
                yield name.removeprefix("unetdiff."), node.lineno


def is_allowed(room: str, target: str) -> bool:
    if room == target or target in EVERYWHERE or target not in (*ORDER, *ASIDE):
        return True
    if target in ASIDE:
        return room in IMPORTED_ASIDE[target]
    if room in ASIDE:
        return target in ASIDE[room]
    return room in ORDER and ORDER.index(target) < ORDER.index(room)


def violations() -> dict[tuple[str, str], str]:
    """(importing module, imported module) -> file:line, of imports against the order."""
    known = {name for name, _ in modules()}
    wrong = {}
    for name, path in modules():
        room = name.split(".")[0]
        if room not in (*ORDER, *ASIDE, *EVERYWHERE):  # unetdiff itself and __main__
            continue
        for imported, line in imported_by(path):
            module = imported if imported in known else imported.rpartition(".")[0]
            if not is_allowed(room, module.split(".")[0]) and (
                room not in EVERYWHERE or module.split(".")[0] not in EVERYWHERE
            ):
                wrong[name, module] = f"unetdiff/{path.relative_to(PACKAGE)}:{line}"
    return wrong


def test_imports_follow_the_order_of_the_rooms() -> None:
    found = {key: where for key, where in violations().items() if key not in EXCEPTIONS}
    assert not found, "\n".join(f"{where}: {name} imports {module}" for (name, module), where in found.items())


def test_every_exception_still_exists() -> None:
    assert set(EXCEPTIONS) <= set(violations())


def test_shared_modules_import_no_room() -> None:
    for name in EVERYWHERE:
        for path in [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").is_file() else (PACKAGE / name).glob("*.py"):
            imported = {module.split(".")[0] for module, _ in imported_by(path)}
            assert imported <= EVERYWHERE, f"{path} imports {imported}"


def test_package_inits_hold_no_code() -> None:
    """A docstring, lazy names (`__getattr__`, tables of names) at most: importing a module costs no other."""
    for name, path in modules():
        if path.name == "__init__.py" and name != "__init__":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            loaded = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = [node.module for node in loaded if isinstance(node, ast.ImportFrom)]
            assert not any(str(module).startswith("unetdiff.") for module in names), f"{path} imports {names}"


def dotted(node: ast.AST) -> str:
    """`torch.ops.mkldnn` of an attribute chain; "" for others."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if not m[0].startswith("kernels")])
def test_no_private_names_of_torch_outside_of_kernels(name: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    private = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    private |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found = {chain for chain in private if re.match(r"torch\.(\w+\.)*_[a-z]", chain) or "torch.ops" in chain}
    assert not {chain for chain in found if (name, chain) not in PRIVATE_TORCH}, f"{name}: {found}"


def test_models_define_no_autograd_function() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        assert "autograd.Function" not in path.read_text(encoding="utf-8"), path


TOUCHES_FILES = re.compile(
    r"(?<![\w.])open\(|(?<!webbrowser)(?<!av)\.open\(|\.(read|write)_(text|bytes)\(|\b(load|save)_file\(|safe_open\("
    r"|torch\.(load|save)\(|rmtree\(|os\.(replace|rename|remove|unlink|mkdir|makedirs|listdir|scandir|walk)\("
    r"|\.(rename|unlink|rmdir|mkdir|touch|iterdir|glob|rglob)\(|\biglob\(|json\.(load|dump)\("
    r"|csv\.(reader|writer|DictReader)\(|yaml\.(safe_)?load\(|shutil\.(copy|move|rmtree)|tarfile\.|tempfile\."
)
"""Calls that list, open, read, write, move or delete a file."""
NOT_CONVERTED: set[str] = set()
"""Modules that still call these; nothing may be added."""


@pytest.mark.parametrize(("name", "path"), [m for m in modules() if not m[0].startswith("files")])
def test_files_are_touched_only_by_the_door(name: str, path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"{path}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if TOUCHES_FILES.search(line)]
    assert bool(found) == (name in NOT_CONVERTED), "\n".join(found)
