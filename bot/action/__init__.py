"""The GitHub Action: INPUT_* and the event in; outputs, summary, annotations and reports out.

`python -m bot.action PHASE`: preflight (optional), fetch, merge, publish, each in a process of its own with only the
token that it needs; or all of them at once. They hand over by a state file in the work folder.
"""
