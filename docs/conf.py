"""The documentation site: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import jupytext  # noqa: E402
from docutils import nodes  # noqa: E402

import cw_ext  # noqa: E402

project = "cw_ext"
author = "the cw_ext authors"
release = version = cw_ext.__version__
copyright = author  # noqa: A001  (Sphinx's name)
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 4

# API pages
default_role = "code"  # docstrings write `name` for code
smartquotes_action = "D"  # dashes only: curly quotes around "none" would not be Python
autodoc_typehints = "none"  # the signatures in the docstrings' Args are easier to read
autodoc_member_order = "bysource"
autodoc_mock_imports = ["rectools", "replay", "sentence_transformers"]  # for the adapters
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _link_loss_arguments(app, what, name, obj, options, lines):  # noqa: ANN001, ANN202
    """One page describes the formula and the loss arguments, which every docstring repeats for help()."""
    places = {line: place for place, line in enumerate(lines)}
    header = places.get("Loss arguments (keywords):")
    if header is None:
        return
    at = next(place for line, place in places.items() if line.startswith("The loss of a row is L = "))
    if name.endswith("LossArguments"):
        lines[at : header + 1] = ["Keyword Args:"]
        return
    shared = ":doc:`the arguments of the loss </api/arguments>`."
    lines[at:] = []
    entry = next((place for place, line in enumerate(lines) if line.strip().startswith("**loss:")), None)
    if entry is None:
        lines += [f"``**loss`` stands for {shared}", ""]
    else:
        lines[entry] = f"    **loss: {shared}"


def _shorten_signature(app, what, name, obj, options, signature, annotation):  # noqa: ANN001, ANN202
    """`**loss` in place of all the loss arguments."""
    before, found, _ = (signature or "").partition("temperature=0.1, prior=0.0, weighting=")
    if not found:
        return None
    return f"{before.removesuffix('*, ')}**loss)", annotation


def _escape_at_signs(app, what, name, obj, options, lines):  # noqa: ANN001, ANN202
    """SL@20 is not an e-mail address."""
    lines[:] = [re.sub(r"(\w)@(\d)", r"\1\\@\2", line) for line in lines]


def _mark_what_is_wide(app, tree):  # noqa: ANN001, ANN202
    """Classes for site.css: long names, which have to break on a phone, and large pictures, which are also links."""
    for literal in tree.findall(nodes.literal):
        if max(map(len, literal.astext().split()), default=0) > 30:
            literal["classes"].append("long")
    for image in tree.findall(nodes.image):
        file = HERE / image["uri"]
        if file.suffix == ".png" and not image.get("width"):
            with open(file, "rb") as opened:
                (width,) = struct.unpack(">I", opened.read(20)[16:])
            if width > 1000:
                image["classes"].append("large")
                image["width"] = "100%"  # Sphinx links an image with a width to its file


def setup(app):  # noqa: ANN001, ANN201
    app.connect("doctree-read", _mark_what_is_wide)
    app.connect("autodoc-process-docstring", _escape_at_signs, priority=400)
    app.connect("autodoc-process-docstring", _link_loss_arguments, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten_signature)


# The tutorial is a notebook in percent format, which also runs as a program. The build runs it and shows its output.
_notebook = jupytext.read(ROOT / "examples" / "movielens.py")
_notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
jupytext.write(_notebook, HERE / "get-started" / "tutorial.ipynb")
os.environ["PYTHONPATH"] = str(ROOT)  # for the notebook's process, which runs in another folder
# Not your own IPython profile, but one that keeps quiet: each kernel would warn that its local port is not encrypted.
_profile = HERE / "_build" / "ipython" / "profile_default"
_profile.mkdir(parents=True, exist_ok=True)
(_profile / "ipython_kernel_config.py").write_text('get_config().IPKernelApp.log_level = "ERROR"\n')
os.environ["IPYTHONDIR"] = str(_profile.parent)
nb_execution_mode = "cache"  # runs it again only after a change
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True

# Formulas: MathJax comes with the site. The package is a carrier of MathJax 3; one file of it is enough.
_mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
assert _mathjax is not None and _mathjax.origin is not None, 'pip install -e ".[docs]"'
_fetched = HERE / "_build" / "mathjax"
_fetched.mkdir(parents=True, exist_ok=True)
shutil.copy(Path(_mathjax.origin).parent / "static" / "mathjax" / "tex-svg.js", _fetched)
mathjax_path = "tex-svg.js"

# Theme
html_theme = "pydata_sphinx_theme"
html_title = "cw_ext"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static", "_build/mathjax"]
html_css_files = ["site.css"]
html_js_files = ["print.js"]
html_search_scorer = str(HERE / "search_order.js")
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "use_edit_page_button": False,
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_domain_indices = False
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"  # no prompts and no output of docstring examples
