"""vmjob as a stranger meets it: a bare system, a new clone, and what README.md says.

``python -m tests.fresh`` (``make fresh``) does all that the README's first ten minutes say; the tests here, which are
part of ``make test``, a shorter form of it, and set-up where something is wrong.
"""
