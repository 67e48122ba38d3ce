"""Do they agree: independent measures of the same heads laid against each other, with chance and errors beside every number."""
