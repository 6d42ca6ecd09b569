"""python -m bot: the same as adapter-merge."""

from bot.cli import main

main()
