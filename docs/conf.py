"""The site: `python -m sphinx -W -b html docs site`. Nothing is fetched from a network.

Pages are Markdown (MyST) and notebooks (myst-nb). The reference is made from docstrings and from
the flags of the commands, so no page lists modules or flags by hand.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import site_extension  # noqa: E402

import rrope_jax  # noqa: E402

project = "rrope_jax"
author = "the rrope_jax authors"
version = release = rrope_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "site_extension",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "**/.ipynb_checkpoints", "jupyter_execute"]

# Markdown: headings are link targets, as on a repository's own pages.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Notebooks run in every build. A failing cell fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 170
nb_merge_streams = True
nb_execution_excludepatterns = site_extension.notebooks_without_their_model(ROOT)

# Reference: one page a module, found by walking the package.
autosummary_generate = True
autosummary_generate_overwrite = True
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
# A word where napoleon expects a type ("task: ...") may be the name of several attributes.
suppress_warnings = ["ref.python"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = f"rrope_jax {release}"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has a search field
    "show_toc_level": 2,
}
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
