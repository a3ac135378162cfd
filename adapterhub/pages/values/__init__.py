"""What each page shows, as frozen dataclasses: the template gets the value, and `?format=json` its members."""
