"""What a request passes before an engine answers it, whichever engine that is: small ASGI parts, one behind another."""
