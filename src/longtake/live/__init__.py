"""``longtake serve``: an endless video live in the browser, steered by prompts. See ``docs/live.md``."""
