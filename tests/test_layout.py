"""The distribution: versions, extras, what an import costs, and what the wheels hold."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sae_steer_retriever

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sae_steer_retriever"
ALIASES = ("langchain-sae-steer", "llama-index-retrievers-sae-steer")
HEAVY = ("chromadb", "langchain_core", "langchain_text_splitters", "llama_index", "sentence_transformers", "sklearn")


def project(folder: Path) -> dict[str, Any]:
    """The `project` table of a folder's pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def run_python(code: str) -> str:
    """What a new interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_has_and_requires_the_version_of_the_package(alias: str) -> None:
    version = project(ROOT)["version"]
    table = project(ROOT / "integrations" / alias)
    assert table["name"] == alias
    assert table["version"] == version
    (requirement,) = table["dependencies"]
    match = re.fullmatch(r"sae-steer-retriever\[([a-z-]+)\]==(\S+)", requirement)
    assert match, requirement
    extra, required = match.groups()
    assert extra in project(ROOT)["optional-dependencies"]
    assert required == version


def test_package_and_changelog_name_the_version_of_the_distribution() -> None:
    version = project(ROOT)["version"]
    assert sae_steer_retriever.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def missing_extras() -> Iterator[tuple[str, str]]:
    """Where the package raises `MissingExtraError`, and the extra it names (or the source, if that is no literal)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtraError"):
                arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "extra")]
                extra = arguments[-1]
                where = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                yield where, str(extra.value) if isinstance(extra, ast.Constant) else ast.unparse(extra)


def test_every_extra_an_error_names_exists() -> None:
    extras = set(project(ROOT)["optional-dependencies"])
    named = list(missing_extras())
    assert named, "no MissingExtraError in the package: has this test gone blind?"
    assert [(where, extra) for where, extra in named if extra not in extras] == []


def test_every_extra_a_text_tells_users_to_install_exists() -> None:
    extras = set(project(ROOT)["optional-dependencies"])
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".github/workflows/ci.yml", *PACKAGE.rglob("*.py")]
    named = {
        (path.relative_to(ROOT).as_posix(), extra.strip())
        for path in texts
        for group in re.findall(r"(?:sae-steer-retriever|[\"' ]\.)\[([a-z, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert ("CONTRIBUTING.md", "dev") in named
    assert {(path, extra) for path, extra in named if extra not in extras} == set()


def test_all_holds_every_other_extra_for_users() -> None:
    extras = project(ROOT)["optional-dependencies"]
    (requirement,) = extras["all"]
    match = re.fullmatch(r"sae-steer-retriever\[([a-z,-]+)\]", requirement)
    assert match, requirement
    # Nor `scale`: its one package has wheels for few platforms, and elsewhere wants a Rust compiler.
    assert set(match[1].split(",")) == set(extras) - {"all", "offline", "dev", "scale"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = json.loads(run_python("import json, sys, sae_steer_retriever; print(json.dumps(sorted(sys.modules)))"))
    assert "sae_steer_retriever" in loaded
    assert sorted({"torch", "transformers", "numpy", *HEAVY} & set(loaded)) == []


def test_using_a_core_name_loads_no_framework() -> None:
    code = (
        "import json, sys, sae_steer_retriever as package\n"
        "for name in package.__all__: getattr(package, name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(run_python(code))
    assert "torch" in loaded
    assert sorted({"langchain_core", "langchain_text_splitters", "llama_index"} & set(loaded)) == []


def test_every_exported_name_resolves_and_is_listed() -> None:
    for name in set(sae_steer_retriever.__all__) - {"SteerLike"}:  # a union of types
        assert getattr(sae_steer_retriever, name).__name__ == name
    assert set(sae_steer_retriever.__all__) <= set(dir(sae_steer_retriever))


def test_what_users_annotate_with_is_exported() -> None:
    needed = {"Concept", "Hits", "Reranker", "Resolution", "SearchOptions", "SteerLike", "TrainConfig"}
    assert needed <= set(sae_steer_retriever.__all__)


def test_what_a_request_is_made_of_is_exported() -> None:
    operations = importlib.import_module("sae_steer_retriever.steering.operations")
    needed = {"Add", "Clamp", "Scale", "Suppress", "When"}
    for name in needed:
        assert getattr(sae_steer_retriever, name) is getattr(operations, name)
    assert needed | {"Edit", "Steering", "compose", "Feedback", "Counterfactual"} <= set(sae_steer_retriever.__all__)


def test_every_error_class_is_exported() -> None:
    errors = importlib.import_module("sae_steer_retriever.errors")
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert classes <= set(sae_steer_retriever.__all__)


def test_asking_the_package_for_an_adapter_names_both_modules() -> None:
    with pytest.raises(ImportError, match=r"integrations\.langchain .*integrations\.llama_index"):
        from sae_steer_retriever import SAESteeredRetriever  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'SteredRetriever'"):
        _ = sae_steer_retriever.SteredRetriever


@pytest.mark.parametrize(
    ("adapter", "framework", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index", "llama-index")],
)
def test_an_adapter_without_its_framework_names_the_extra(adapter: str, framework: str, extra: str) -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {framework!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "try:\n"
        f"    import sae_steer_retriever.integrations.{adapter}\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    printed = run_python(code)
    assert printed.startswith("MissingExtraError")
    assert f"sae-steer-retriever[{extra}]" in printed


def build_wheel(folder: Path, target: Path) -> set[str]:
    """The names of the files in the wheel that pip builds of a folder."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: it comes with the dev extra")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's wheel."""
    target = tmp_path_factory.mktemp("wheel")
    build_wheel(ROOT, target)
    return next(target.glob("*.whl"))


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    assert "sae_steer_retriever/py.typed" in expected
    assert expected - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sae_steer_retriever"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_an_sae_and_stays_small(wheel: Path) -> None:
    folder = PACKAGE / "sae" / "pretrained"
    if not list(folder.glob("*/model.safetensors")):
        pytest.skip(f"no weights in {folder}: train/ship.py writes them")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("model.safetensors", "config.json", "features.json", "calibration.safetensors"):
        assert f"sae_steer_retriever/sae/pretrained/all-MiniLM-L6-v2/{name}" in names
    assert not [
        name for name in names if "/pretrained/" in name and name.endswith(("annotations.json", "evidence.json"))
    ]
    assert wheel.stat().st_size < 40 * 2**20


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    ("alias", "module"),
    [
        ("langchain-sae-steer", "langchain_sae_steer"),
        ("llama-index-retrievers-sae-steer", "llama_index/retrievers/sae_steer"),
    ],
)
def test_alias_wheel_holds_its_module_and_no_namespace_init(alias: str, module: str, tmp_path: Path) -> None:
    names = build_wheel(ROOT / "integrations" / alias, tmp_path)
    code = {name for name in names if ".dist-info/" not in name}
    assert code == {f"{module}/__init__.py", f"{module}/py.typed"}


@pytest.mark.parametrize(
    ("alias", "path", "framework"),
    [
        ("langchain-sae-steer", "langchain_sae_steer", "langchain"),
        ("llama-index-retrievers-sae-steer", "llama_index/retrievers/sae_steer", "llama_index"),
    ],
)
def test_alias_reexports_everything_the_adapter_exports(alias: str, path: str, framework: str) -> None:
    pytest.importorskip("langchain_core" if framework == "langchain" else "llama_index.core")
    file = ROOT / "integrations" / alias / path / "__init__.py"
    spec = importlib.util.spec_from_file_location("alias_under_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    adapter = importlib.import_module(f"sae_steer_retriever.integrations.{framework}")
    assert set(module.__all__) == set(adapter.__all__)
    for name in module.__all__:
        assert getattr(module, name) is getattr(adapter, name)
