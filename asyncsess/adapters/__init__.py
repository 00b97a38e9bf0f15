"""Drop-ins for other session libraries, so that their users change one line and lose no updates."""
