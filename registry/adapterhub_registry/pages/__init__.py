"""The pages of a registry: `adapterhub.pages`, with the registry's data. No route of the API reads its cookies."""
