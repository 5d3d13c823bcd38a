"""solution.toml: what a solution folder says about itself."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Annotated

from flashinfer_bench.data.solution import SupportedBindings, SupportedLanguages
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from ..paths import BadInput
from .untrusted import CONFIG_BYTES, is_plain_name, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = "solution.toml"


def _printable(text: str) -> str:
    """Others read it in a terminal or on a page: no control characters, no marks of direction."""
    if not text.replace("\n", " ").isprintable():
        raise ValueError("expected printable characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]


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
    package: ModuleName
    path: str
    """Relative to the package's folder."""
    install: Text
    """The exact command that puts it there."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
            raise ValueError("expected a path inside the package")
        return path


class Requires(BaseModel):
    """The [requires] table: what a solution needs from the machine it runs on."""

    model_config = ConfigDict(extra="forbid")

    compute_capabilities: list[int] = []
    """CUDA devices it runs on, as 10 * major + minor (90 = sm_90); empty = any."""
    cpu: bool = False
    """Whether it runs on a machine without CUDA, too."""
    modules: list[ModuleName] = []
    """Modules that must be importable."""
    install: Text = ""
    """The exact command that installs them."""
    files: list[RequiredFile] = []
    """Files that some devices need besides."""


class SolutionConfig(BaseModel):
    """solution.toml; the fields are those of the harness's Solution and BuildSpec."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Must equal the folder's name."""
    description: Text
    author: str = Field(pattern=r"^\w[\w.-]*$", max_length=100)
    """Also a folder's name, in the official dataset."""
    definition: str
    language: SupportedLanguages
    """CuTe DSL, which the harness does not know, is "python"."""
    entry_point: str = Field(pattern=r"^[^:]+::\w+$")
    """`file::function`, the file relative to the folder."""
    dependencies: list[Text] = []
    target_hardware: list[Text] = Field(min_length=1)
    destination_passing_style: bool = True
    binding: SupportedBindings | None = None
    requires: Requires = Requires()

    @field_validator("definition")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError("expected a definition's name")
        return name


def read_config(folder: Path) -> SolutionConfig:
    """Parse and check `folder`/solution.toml; raises PackError."""
    path = folder / CONFIG_FILE
    if not path.exists() and not path.is_symlink():
        raise PackError([f"{folder}: missing {CONFIG_FILE}"])
    try:
        text = read_text(path, CONFIG_BYTES, within=folder)
        config = SolutionConfig.model_validate(tomllib.loads(text))
    except BadInput as error:
        raise PackError([str(error)]) from error
    except tomllib.TOMLDecodeError as error:
        raise PackError([f"{path}: not TOML: {error}"]) from error
    except ValidationError as error:
        raise PackError([f"{path}: {_describe(details)}" for details in error.errors()]) from error
    except (ValueError, RecursionError, MemoryError) as error:  # of the parser: numbers, nesting
        raise PackError([f"{path}: not TOML: {error or 'nested too deeply'}"]) from error
    if config.name != folder.name or not (config.name.isidentifier() and config.name.isascii()):
        raise PackError(
            [f"{path}: name: expected the folder's name, a Python identifier, got {config.name!r} "
             f"in folder {folder.name!r}"]
        )  # fmt: skip
    if config.requires.modules and not config.requires.install:
        raise PackError([f"{path}: requires.install: expected a command, as modules are required"])
    return config


def _describe(details: ErrorDetails) -> str:
    """One pydantic error as `key: what is wrong`."""
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if details["type"] == "missing":
        return f"{key}: missing key"
    return f"{key}: {details['msg']}, got {str(details['input'])[:200]!r}"
