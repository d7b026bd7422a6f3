"""Adapters to other libraries, one module per library. `import cw_ext` imports none of them.

The guide docs/guides/other-libraries.md shows how to use each of them.
"""
