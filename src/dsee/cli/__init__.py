"""The ``dsee`` command: one file per verb. Importing it loads neither torch nor transformers."""
