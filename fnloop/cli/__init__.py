"""The command line, and the recipes that it runs."""
