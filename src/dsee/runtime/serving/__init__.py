"""``dsee serve``: one model behind HTTP, its requests gathered into batches. Imports neither torch nor FastAPI."""
