"""Sphinx configuration. The sources are the Markdown files of the whole repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
sys.path.insert(0, str(ROOT / "src"))

project = "resnetkit"
copyright = "The resnetkit maintainers"
release = re.findall(
    r'^__version__ = "(.*)"', (ROOT / "src/resnetkit/__init__.py").read_text(encoding="utf-8"), re.M
)[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "from_source",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "benchmarks/*.md", "src/**/starter/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "demo", "docs/_extensions", "docs/_static"]
nitpicky = False  # the types of PyTorch and NumPy are not linked: building needs no network

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
default_role = "py:obj"
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"resnetkit {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False
