"""What an answer may look like: JSON schemas, choices and GBNF as llguidance's grammars; which tokens they allow."""
