"""The command line, and the recipes that it runs."""

from fnloop.cli.app import main as main
from fnloop.cli.recipe import Recipe as Recipe
