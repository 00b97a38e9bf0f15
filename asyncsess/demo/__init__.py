"""The demo: one session hit by many requests at once, through two server processes, with and without locking.

Run it with ``python -m asyncsess.demo``; it needs the extra ``demo``. `ways.WAYS` is the list of what it compares.
"""
