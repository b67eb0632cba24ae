"""The trace viewer: one HTML page that plays how responses were unmasked."""
