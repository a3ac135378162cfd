"""A build on its way in: staging, description, refusals."""
