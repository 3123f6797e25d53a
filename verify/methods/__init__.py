"""The methods of `certify`, one a file: settings as fields, made ready for one network."""
