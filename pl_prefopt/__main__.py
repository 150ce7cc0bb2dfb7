"""`python -m pl_prefopt` is `prefopt`."""

from pl_prefopt.cli.main import main

if __name__ == "__main__":
    main()
