"""Run folders and models from elsewhere: what is trained, evaluated and verified."""
