"""What PyInstaller has to know to put this package into a program; the entry point `pyinstaller40` leads here."""

from pathlib import Path


def hook_directories() -> list[str]:
    """Where the hooks are: for this package, and for those below it that PyInstaller does not know."""
    return [str(Path(__file__).parent)]
