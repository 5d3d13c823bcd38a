"""From a folder solutions/<name>/ to the harness's Solution.

The packed tree mirrors solutions/: the folder's own files, plus exactly the files of
solutions/common/ that they import, directly or through each other, by relative imports. Everything
the harness would trip over later, in a worker process, is an error here.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flashinfer_bench.data import BuildSpec, Definition, Solution, SourceFile, save_json_file
from flashinfer_bench.data.solution import SupportedBindings, SupportedLanguages
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..paths import BadInput
from .loading import load_definition

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = "solution.toml"
PACKED_FILE = "solution.json"
COMMON = "common"
PYTHON_LANGUAGES = (
    SupportedLanguages.PYTHON,
    SupportedLanguages.TRITON,
    SupportedLanguages.TILELANG,
)


class PackError(BadInput):
    """A solution cannot be packed. `problems` lists every reason, each naming file and key/line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RequiredFile(BaseModel):
    """A [[requires.files]] table: a file inside an importable package, on one kind of device."""

    model_config = ConfigDict(extra="forbid")

    compute_capability: int
    """The CUDA device that needs it, as 10 * major + minor."""
    package: str
    path: str
    """Relative to the package's folder."""
    install: str
    """The exact command that puts it there."""


class Requires(BaseModel):
    """The [requires] table: what a solution needs from the machine it runs on."""

    model_config = ConfigDict(extra="forbid")

    compute_capabilities: list[int] = []
    """CUDA devices it runs on, as 10 * major + minor (90 = sm_90); empty = any."""
    cpu: bool = False
    """Whether it runs on a machine without CUDA, too."""
    modules: list[str] = []
    """Modules that must be importable."""
    install: str = ""
    """The exact command that installs them."""
    files: list[RequiredFile] = []
    """Files that some devices need besides."""


class SolutionConfig(BaseModel):
    """solution.toml; the fields are those of the harness's Solution and BuildSpec."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Must equal the folder's name."""
    description: str
    author: str = Field(pattern=r"^[\w.-]+$")
    definition: str
    language: SupportedLanguages
    """CuTe DSL, which the harness does not know, is "python"."""
    entry_point: str = Field(pattern=r"^[^:]+::\w+$")
    """`file::function`, the file relative to the folder."""
    dependencies: list[str] = []
    target_hardware: list[str] = Field(min_length=1)
    destination_passing_style: bool = True
    binding: SupportedBindings | None = None
    requires: Requires = Requires()


def read_config(folder: Path) -> SolutionConfig:
    """Parse and check `folder`/solution.toml."""
    path = folder / CONFIG_FILE
    try:
        config = SolutionConfig.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise PackError([f"{folder}: missing {CONFIG_FILE}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise PackError([f"{path}: not TOML: {error}"]) from error
    except ValidationError as error:
        raise PackError([f"{path}: {_describe(details)}" for details in error.errors()]) from error
    if config.name != folder.name or not config.name.isidentifier():
        raise PackError(
            [f"{path}: name: expected the folder's name, a Python identifier, got {config.name!r} "
             f"in folder {folder.name!r}"]
        )  # fmt: skip
    if config.requires.modules and not config.requires.install:
        raise PackError([f"{path}: requires.install: expected a command, as modules are required"])
    return config


def pack(folder: Path, definition: Definition) -> Solution:
    """Pack one solution folder for `definition`; raises PackError with every problem found."""
    config = read_config(folder)
    tree = _SourceTree(folder)
    entry_file, _, entry_function = config.entry_point.partition("::")
    entry = PurePosixPath(config.name) / entry_file
    config_path = folder / CONFIG_FILE
    if entry not in tree.contents:
        tree.problems.append(f"{config_path}: entry_point: there is no file {entry_file!r}")
    elif config.language not in PYTHON_LANGUAGES:
        if entry_function not in tree.contents[entry]:
            tree.problems.append(
                f"{config_path}: entry_point: {entry_file} does not define {entry_function!r}"
            )
    elif entry in tree.modules:
        expected = list(definition.inputs)
        if config.destination_passing_style:
            expected += definition.outputs
        problem = _check_signature(tree.modules[entry], entry_function, expected)
        if problem:
            tree.problems.append(f"{config_path}: entry_point: {tree.root / entry}{problem}")
    if tree.problems:
        raise PackError(tree.problems)
    return Solution(
        name=config.name,
        definition=config.definition,
        author=config.author,
        description=config.description,
        spec=BuildSpec(
            language=config.language,
            target_hardware=config.target_hardware,
            entry_point=f"{entry}::{entry_function}",
            dependencies=config.dependencies,
            destination_passing_style=config.destination_passing_style,
            binding=config.binding,
        ),
        sources=[
            SourceFile(path=str(path), content=content)
            for path, content in sorted(tree.contents.items())
        ],
    )


def solution_folders(root: Path) -> list[Path]:
    """Every folder below `root`/solutions with a solution.toml, or with sources but none.

    A folder of nothing but JSON is another dataset's way to keep solutions, and left alone.
    """
    return [
        folder
        for folder in sorted((root / "solutions").glob("[!.]*"))
        if folder.is_dir()
        and folder.name not in (COMMON, "__pycache__")
        and (
            (folder / CONFIG_FILE).exists()
            or any(path.suffix != ".json" for path in _own_files(folder))
        )
    ]


def pack_folders(folders: list[Path], root: Path) -> tuple[dict[Path, Solution], list[str]]:
    """Pack folders for the definitions of the dataset at `root`; one bad folder stops no other.

    Returns the solutions by folder, and the problems of the folders that have none.
    """
    solutions, problems = {}, []
    for folder in folders:
        try:
            definition = load_definition(root, read_config(folder).definition)
            solutions[folder] = pack(folder, definition)
        except PackError as error:
            problems += error.problems
        except BadInput as error:
            problems.append(f"{folder / CONFIG_FILE}: {error}")
    return solutions, problems


def pack_in_place(folders: list[Path], root: Path) -> list[str]:
    """Write each folder's solution.json, and return the problems of those that do not pack.

    The harness loads every .json below solutions/, so the one of a folder that no longer packs is
    removed, and so is that of a deleted solution, whose folder git leaves behind for it.
    """
    solutions, problems = pack_folders(folders, root)
    for folder in folders:
        if folder in solutions:
            save_json_file(solutions[folder], folder / PACKED_FILE)
        else:
            (folder / PACKED_FILE).unlink(missing_ok=True)
    for path in (root / "solutions").glob(f"*/{PACKED_FILE}"):
        ours = f'"entry_point": "{path.parent.name}/'
        if not path.with_name(CONFIG_FILE).exists() and ours in path.read_text("utf-8"):
            path.unlink()
    return problems


def _describe(details: dict) -> str:
    """One pydantic error as `key: what is wrong`."""
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if details["type"] == "missing":
        return f"{key}: missing key"
    return f"{key}: {details['msg']}, got {details['input']!r}"


def _own_files(folder: Path) -> Iterator[Path]:
    """The files that belong to a solution: all but its config, its packed JSON, notes, caches."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        ours = parts in ((CONFIG_FILE,), (PACKED_FILE,)) or path.suffix == ".md"
        if path.is_file() and not hidden and not ours:
            yield path


def _check_signature(module: ast.Module, name: str, expected: list[str]) -> str | None:
    """What is wrong with function `name`; None if it takes exactly `expected`, in that order.

    The harness counts the parameters only, and passes arguments by position.
    """
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    function = next((node for node in functions if node.name == name), None)
    if function is None:
        return f" does not define a top-level function {name!r}"
    arguments = function.args
    actual = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    extra = [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    extra += [argument.arg for argument in arguments.kwonlyargs]
    extra += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    if actual + extra != expected:
        return (
            f":{function.lineno}: {name} must take exactly ({', '.join(expected)}), "
            f"but takes ({', '.join(actual + extra)})"
        )
    return None


class _SourceTree:
    """The files of one solution, keyed by their path below solutions/.

    `contents` maps path to text, `modules` path to syntax tree, `problems` lists what is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder.parent
        self.name = folder.name
        self.contents: dict[PurePosixPath, str] = {}
        self.modules: dict[PurePosixPath, ast.Module] = {}
        self.problems: list[str] = []
        for path in _own_files(folder):
            self._add(PurePosixPath(path.relative_to(self.root)))

    def _add(self, path: PurePosixPath) -> None:
        """Add one file and, if it is Python, everything it imports."""
        if path in self.contents:
            return
        file = self.root / path
        if file.suffix == ".json":
            self.problems.append(
                f"{file}: the harness takes any .json below solutions/ for its own"
            )
            return
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            self.problems.append(f"{file}: expected UTF-8 text: {error}")
            return
        if not text.strip():
            # the harness rejects empty sources; a package works without its empty __init__.py
            if file.name != "__init__.py":
                self.problems.append(f"{file}: empty source")
            return
        self.contents[path] = text
        if file.suffix != ".py":
            return
        try:
            self.modules[path] = ast.parse(text)
        except SyntaxError as error:
            self.problems.append(f"{file}:{error.lineno}: syntax error: {error.msg}")
            return
        for node in ast.walk(self.modules[path]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._check_absolute(path, node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                self._check_absolute(path, node.lineno, node.module)
            elif isinstance(node, ast.ImportFrom):
                self._follow(path, node)

    def _check_absolute(self, path: PurePosixPath, line: int, module: str) -> None:
        """The harness imports the tree below a name of its own: only relative imports work."""
        top = module.partition(".")[0]
        neighbours = [*(self.root / path).parent.iterdir(), *(self.root / path.parts[0]).iterdir()]
        own = {"solutions", COMMON, self.name}
        own |= {item.stem for item in neighbours if item.suffix == ".py" or item.is_dir()}
        if top in own:
            self.problems.append(
                f"{self.root / path}:{line}: absolute import of own module {module!r}: "
                "import it relatively"
            )

    def _follow(self, path: PurePosixPath, node: ast.ImportFrom) -> None:
        """Add the files that one relative import needs."""
        where = f"{self.root / path}:{node.lineno}"
        if node.level > len(path.parts):
            self.problems.append(f"{where}: relative import goes above solutions/")
            return
        package = path.parents[node.level - 1]
        target = package.joinpath(*node.module.split(".")) if node.module else package
        # in `from ..a import b`, b is the module a/b, or else a name in a.py or a/__init__.py
        names = [alias.name for alias in node.names] if self._is_package(target) else []
        for wanted in [target / name for name in names] or [target]:
            if wanted.parts[0] not in (self.name, COMMON):
                self.problems.append(
                    f"{where}: imports {wanted} of another solution: "
                    f"what solutions share belongs into solutions/{COMMON}/"
                )
            elif not self._add_module(wanted) and not (names and self._add_init(target)):
                self.problems.append(
                    f"{where}: relative import of {wanted}: there is no such module"
                )

    def _add_module(self, module: PurePosixPath) -> bool:
        """Add a module's file and its packages' __init__.py; False if there is no such file."""
        file = module.with_name(f"{module.name}.py")
        if self._is_package(module):
            file = module / "__init__.py"
        elif not (self.root / file).is_file():
            return False
        for package in reversed(module.parents[:-1]):
            self._add_init(package)
        if (self.root / file).is_file():
            self._add(file)
        return True

    def _add_init(self, package: PurePosixPath) -> bool:
        """Add a package's __init__.py; False if it has none, or an empty one."""
        file = package / "__init__.py"
        if (self.root / file).is_file():
            self._add(file)
        return file in self.contents

    def _is_package(self, module: PurePosixPath) -> bool:
        """Whether Python would take `module` for a package: a.py wins over a folder a/ that has no
        __init__.py.
        """
        folder = self.root / module
        has_init = (folder / "__init__.py").is_file()
        return has_init or (folder.is_dir() and not folder.with_name(f"{folder.name}.py").is_file())
