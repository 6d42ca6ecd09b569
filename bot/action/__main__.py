"""python -m bot.action PHASE"""

from bot.action.entry import main

main()
