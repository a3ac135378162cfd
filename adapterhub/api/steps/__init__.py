"""What a public function and its command share: steps that take a session, of a terminal or of a program."""
