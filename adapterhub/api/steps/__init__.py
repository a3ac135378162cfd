"""Steps that a public function and its command share: they take a session, of a terminal or of a program."""
