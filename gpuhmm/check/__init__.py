"""Comparing one back end with another, and every back end with what a kernel did.

``case`` is one call of ``hmm_range_fault()`` with all that it meets, ``vectors`` the files of such
cases, ``random_case`` makes them up, ``replay`` runs one on a back end, ``difference`` says in
Linux's words where two outcomes part, ``shrink`` makes a differing case small.
"""
