"""HTTP with one server, whatever protocol it speaks: requests, streams, and the bounds of both."""
