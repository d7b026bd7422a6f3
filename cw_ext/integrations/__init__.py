"""Adapters to other libraries, one module each, which needs its library. None is imported with cw_ext."""
