"""python -m bot.action PHASE"""

from bot.action.door import main

main()
