"""Small ASGI parts, one behind another, that a request passes before an engine answers it, for every engine."""
