"""`python -m primekd.cli`."""

from primekd.cli import app

if __name__ == "__main__":
    app()
