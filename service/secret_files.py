"""Settings from files: a folder of secrets, as orchestrators mount it."""

import os
from collections.abc import Iterable
from pathlib import Path

from service.errors import ConfigurationError


def files_of(settings: Iterable[str]) -> dict[str, Path]:
    """Return the files of SECRETS_DIR that apply, by setting: an environment variable has precedence.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not (folder := os.environ.get("SECRETS_DIR")):
        return {}
    if not Path(folder).is_dir():
        raise ConfigurationError(f"SECRETS_DIR is {folder!r}, and there is no such folder: make it, or unset it")
    files = {name: Path(folder, name.upper()) for name in settings if not os.environ.get(name.upper())}
    return {name: file for name, file in files.items() if file.exists()}


def read_all(settings: Iterable[str]) -> dict[str, str]:
    """Return the texts of these files, without the end of the line; an empty one counts as unset.

    Raises:
        ConfigurationError: there is no such folder, or a file of it cannot be read.
    """
    texts = {name: _read(file) for name, file in files_of(settings).items()}
    return {name: text for name, text in texts.items() if text}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"The setting in the file {file} cannot be read: {reason}") from error
