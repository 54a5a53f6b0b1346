"""The application: HTTP edge and composition root of the gateway."""
