"""From a folder solutions/<name>/ to the harness's Solution.

The packed tree mirrors solutions/: the folder's own files, plus exactly the files of
solutions/common/ that they import, directly or through each other, by relative imports. Everything
the harness would trip over later, in a worker process, is an error here.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flashinfer_bench.data import BuildSpec, Definition, Solution, SourceFile
from flashinfer_bench.data.solution import SupportedLanguages

from ..files import replace_file
from ..paths import BadInput
from .loading import load_definition
from .manifest import CONFIG_FILE, PackError, read_config
from .syntax import Import, Syntax, SyntaxProblem, processor_seconds, read_syntax
from .untrusted import JSON_BYTES, SOURCE_BYTES, TREE_BYTES, TREE_ENTRIES, read_text

PACKED_FILE = "solution.json"
COMMON = "common"
PARSE_SECONDS = 10.0
"""Of a processor, for all files of one solution: those of this bundle take 0.3 s at most."""
PYTHON_LANGUAGES = (
    SupportedLanguages.PYTHON,
    SupportedLanguages.TRITON,
    SupportedLanguages.TILELANG,
)


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
            os.path.lexists(folder / CONFIG_FILE)
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
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            problems.append(f"{folder}: {type(error).__name__}: {error}")
    return solutions, problems


def pack_in_place(folders: list[Path], root: Path) -> list[str]:
    """Write each folder's solution.json, and return the problems of those that do not pack.

    The harness loads every .json below solutions/, so the one of a folder that no longer packs is
    removed, and so is that of a deleted solution, whose folder git leaves behind for it. Raises
    BadInput if what is packed in a folder is not its solution and cannot be replaced.
    """
    solutions, problems = pack_folders(folders, root)
    for folder in folders:
        path = folder / PACKED_FILE
        try:
            if folder in solutions:
                text = solutions[folder].model_dump_json(indent=2, exclude_unset=True)
                if not _holds(path, text):
                    replace_file(path, text.encode())
            elif not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
        except OSError as error:
            if path.is_file():
                raise BadInput(f"{path}: out of date, and cannot be replaced: {error}") from error
            problems.append(f"{path}: cannot be written: {error}")
    for path in (root / "solutions").glob(f"*/{PACKED_FILE}"):
        ours = f'"entry_point": "{path.parent.name}/'
        if not os.path.lexists(path.with_name(CONFIG_FILE)) and _holds(path, ours, part=True):
            path.unlink()
    return problems


def _holds(path: Path, text: str, part: bool = False) -> bool:
    """Whether the file is there, no link, and has this text, or has it as a part."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        found = read_text(path, JSON_BYTES)
    except BadInput:
        return False
    return text in found if part else text == found


def _own_files(folder: Path) -> Iterator[Path]:
    """What belongs to a solution: all but its config, its packed JSON, notes, caches.

    Links to folders and whatever else is no file are among it, for the reader to refuse.
    """
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(parent) / name
            is_ours = Path(parent) == folder and name in (CONFIG_FILE, PACKED_FILE)
            if name[0] != "." and path.suffix != ".md" and not is_ours:
                yield path


def _check_signature(syntax: Syntax, name: str, expected: list[str]) -> str | None:
    """What is wrong with function `name`; None if it takes exactly `expected`, in that order.

    The harness counts the parameters only, and passes arguments by position.
    """
    function = syntax.functions.get(name)
    if function is None:
        return f" does not define a top-level function {name!r}"
    if function.parameters != expected:
        return (
            f":{function.line}: {name} must take exactly ({', '.join(expected)}), "
            f"but takes ({', '.join(function.parameters)})"
        )
    return None


class _SourceTree:
    """The files of one solution, keyed by their path below solutions/.

    `contents` maps path to text, `modules` path to its syntax, `problems` lists what is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder.parent
        self.name = folder.name
        self.contents: dict[PurePosixPath, str] = {}
        self.modules: dict[PurePosixPath, Syntax] = {}
        self.problems: list[str] = []
        self.size = 0
        self.seconds = PARSE_SECONDS
        """Left for parsing."""
        self.unfollowed: list[PurePosixPath] = []
        for number, path in enumerate(_own_files(folder)):
            if number == TREE_ENTRIES:
                self.problems = [f"{folder}/: expected at most {TREE_ENTRIES} files"]
                break
            self._add(PurePosixPath(path.relative_to(self.root)))
            while self.unfollowed:
                self._follow_imports(self.unfollowed.pop())

    def _add(self, path: PurePosixPath) -> None:
        """Add one file; if it is Python, its imports are still to be followed."""
        if path in self.contents:
            return
        file = self.root / path
        text = self._text_of(path)
        if text is None:
            return
        self.contents[path] = text
        if file.suffix != ".py":
            return
        if self.seconds <= 0:
            return
        start = processor_seconds()
        try:
            self.modules[path] = read_syntax(text, self.seconds)
            self.unfollowed.append(path)
        except SyntaxProblem as problem:
            line = "" if problem.line is None else f":{problem.line}"
            self.problems.append(f"{file}{line}: {problem}")
        self.seconds -= processor_seconds() - start
        if self.seconds <= 0:  # said once
            self.problems.append(
                f"{file}: parsing this solution's Python takes more than {PARSE_SECONDS:g} s"
            )

    def _follow_imports(self, path: PurePosixPath) -> None:
        for found in self.modules[path].imports:
            if found.level == 0:
                self._check_absolute(path, found.line, found.module)
            else:
                self._follow(path, found)

    def _text_of(self, path: PurePosixPath) -> str | None:
        """The text of one file; None if there is none to pack, or a problem with it."""
        file = self.root / path
        if file.suffix == ".json":
            self.problems.append(
                f"{file}: the harness takes any .json below solutions/ for its own"
            )
            return None
        try:
            text = read_text(file, SOURCE_BYTES, within=self.root / path.parts[0])
        except BadInput as error:
            self.problems.append(str(error))
            return None
        if not text.strip():
            # the harness rejects empty sources; a package works without its empty __init__.py
            if file.name != "__init__.py":
                self.problems.append(f"{file}: empty source")
            return None
        self.size += len(text.encode())
        if self.size > TREE_BYTES:
            if self.size - len(text.encode()) <= TREE_BYTES:  # say it once
                self.problems.append(f"{file}: the files have more than {TREE_BYTES} bytes in all")
            return None
        return text

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

    def _follow(self, path: PurePosixPath, found: Import) -> None:
        """Add the files that one relative import needs."""
        where = f"{self.root / path}:{found.line}"
        if found.level > len(path.parts):
            self.problems.append(f"{where}: relative import goes above solutions/")
            return
        package = path.parents[found.level - 1]
        target = package.joinpath(*found.module.split(".")) if found.module else package
        # in `from ..a import b`, b is the module a/b, or else a name in a.py or a/__init__.py
        names = found.names if self._is_package(target) else []
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
