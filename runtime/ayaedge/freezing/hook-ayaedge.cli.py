"""PyInstaller's hook for a program that is our command line: its commands are imported by their names."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("ayaedge.cli")
