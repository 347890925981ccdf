"""A bundle as a server on this machine, for the clients that people already have.

`serving.serve` runs it. Each surface (OpenAI's, Anthropic's, ...) is a file of its own that turns bodies into `Asked`
and answers into its dictionaries; what a request goes through is the same for all of them, in `endpoint`. Needs the
extra `server`. Neither requests nor images are logged.
"""
