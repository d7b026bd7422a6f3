"""Adapters to other libraries, a module for each, which needs that library. None is imported with cw_ext."""
