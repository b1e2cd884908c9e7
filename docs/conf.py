"""How the documentation is built: `make docs`. Nothing is fetched while it is built or read."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import dal_jax  # noqa: E402

project = "dal_jax"
author = copyright = "The dal_jax developers"
version = release = dal_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "api_pages"]
exclude_patterns = ["_build", "_ext", "figures", "**/.ipynb_checkpoints"]
nitpicky = True
# Types of other packages lead nowhere: their documentation is not looked up. The package's own
# private names have no entry by design.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!dal_jax).*"),
    (r"py:.*", r"dal_jax\.([a-z]\w*\.)?_\w+\.\w+"),
]

myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_ipywidgets_js = {}  # would be scripts from elsewhere

highlight_language = "none"
default_role = "code"  # single backticks in docstrings are code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]

html_theme = "sphinx_book_theme"
html_title = f"dal_jax {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_repository_button": False,
}
