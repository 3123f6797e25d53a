"""`python -m greg_cert`."""

from greg_cert.cli import main

if __name__ == "__main__":
    main()
