"""``python -m circuits`` is the command line."""

from circuits.cli import app

app(prog_name="circuits")
