"""How fast a walk is, compared with what moves the same bytes and decides nothing.

``workloads`` names the spaces and requests, ``baselines`` the loops of plain copies and fills, ``peers``
walks as one would write them without this package, ``timing`` measures all of them in turns,
``report`` says on what and keeps the results.
"""
