"""The command line: `entry.py` (signals, streams, exit codes) around `commands.py` (what can be asked for)."""


def main() -> None:
    """The entry point; it exits, and never returns."""
    from distill.cli.entry import main as enter

    enter()
